"""The registry of claims: the command line, the report and the tests read it.

A claim is found because a file of `lora_zoo/claims/catalogue/` has it: as a row of YAML (rows.py), or as a
function. A Python file that cannot be imported is left out with a warning that says why.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora_zoo.claims.evidence import Evidence, Missing
from lora_zoo.claims.forms import Form
from lora_zoo.claims.hypotheses import Hypothesis
from lora_zoo.claims.rule import Rule, Status, Verdict, every, verdict
from lora_zoo.core.registry import Registry


@dataclass(frozen=True)
class Claim(ABC):
    """A statement, who makes it and where, and how it is tested. `against` names claims that disagree."""

    id: str
    paper: str
    where: str = ""
    against: Sequence[str] = ()
    statement: str = ""

    @property
    def needs(self) -> str:
        """The experiment or the runs that decide it; "" where it needs none."""
        return ""

    @property
    def command(self) -> str:
        """The command that makes these runs; "" where there is none."""
        return ""

    @abstractmethod
    def verdict(self, evidence: Evidence) -> Verdict:
        """The verdict that `evidence`, of any runs at all, gives."""


@dataclass
class Tested:
    """The hypotheses of a claim, what is missing for others, doubts (sentence: status), and its runs."""

    hypotheses: list[Hypothesis] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Measured(Claim):
    """A claim about runs: of an `experiment`, or of a `sweep` of its own."""

    tests: Sequence[Form] = ()
    experiment: str = ""
    sweep: str = ""
    rule: Rule = every

    def __post_init__(self) -> None:
        if bool(self.experiment) == bool(self.sweep):
            raise ValueError(f"claim {self.id!r}: give either the experiment that it needs or a sweep")

    @property
    def needs(self) -> str:
        return self.experiment or "a sweep of its own"

    @property
    def command(self) -> str:
        return f"python -m lora_zoo.run -m {self.sweep or '+experiment=' + self.experiment}"

    def verdict(self, evidence: Evidence) -> Verdict:
        """Not run without runs of the experiment; every model and task makes hypotheses of its own."""
        return self.of(self.tested(evidence))

    def of(self, tested: Tested) -> Verdict:
        hypotheses, missing = tested.hypotheses, tested.missing
        if not hypotheses and (self.sweep or not missing):
            why = f" ({missing[0]})" if missing else ""
            return Verdict(Status.NOT_RUN, f"run: {self.command}{why}")
        return verdict(hypotheses, missing, self.rule).doubted(tested.doubts)

    def tested(self, evidence: Evidence) -> Tested:
        """The hypotheses that these runs make, and what they rest on."""
        found = Tested()
        for every_claim in evidence.of(self.experiment):
            runs = every_claim.of_one_claim()
            try:
                for form in self.tests:
                    for hypothesis in form(runs):  # what was tested before a gap counts
                        label = runs.prefixed(hypothesis.label)
                        found.hypotheses.append(replace(hypothesis, label=label, most=runs.most))
            except Missing as gap:
                found.missing.append(runs.prefixed(str(gap)))
            found.doubts |= {runs.prefixed(sentence): kind for sentence, kind in runs.doubts.items()}
            found.runs |= runs.asked
        return found


Compute = Callable[[], Verdict]


@dataclass(frozen=True)
class Computed(Claim):
    """A statement that needs no runs: computed now, from shapes or on a tiny model."""

    compute: Compute = field(kw_only=True)

    def verdict(self, evidence: Evidence) -> Verdict:
        return self.compute()


@dataclass(frozen=True)
class NotBuilt(Claim):
    """A statement that waits for a variant or an analysis."""

    waits_for: str = field(kw_only=True)

    @property
    def needs(self) -> str:
        return self.waits_for

    def verdict(self, evidence: Evidence) -> Verdict:
        return Verdict(Status.NOT_BUILT, f"needs {self.waits_for}")


@dataclass(frozen=True)
class Untestable(Claim):
    """A statement of the sources that no measurement decides; `known` is what is on record about it."""

    known: str = field(kw_only=True)

    def verdict(self, evidence: Evidence) -> Verdict:
        return Verdict(Status.NOT_MEASURABLE, self.known)


def measured(id: str, paper: str, where: str, **rest: Any) -> Callable[[Form], Form]:
    """Add the claim that the function below tests; its docstring is the statement, `rest` other fields."""

    def decorated(form: Form) -> Form:
        add(Measured(id, paper, where, statement=first_paragraph(form), tests=(form,), **rest))
        return form

    return decorated


def computed(id: str, paper: str, where: str) -> Callable[[Compute], Compute]:
    """Add the claim that the function below computes from nothing; its docstring is the statement."""

    def decorated(compute: Compute) -> Compute:
        add(Computed(id, paper, where, statement=first_paragraph(compute), compute=compute))
        return compute

    return decorated


def add(claim: Claim) -> None:
    CLAIMS.add(claim.id, claim)


def first_paragraph(function: Callable[..., object]) -> str:
    """The first paragraph of a function's docstring in one line."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


CLAIMS: Registry[Claim] = Registry("claim", "lora_zoo.claims.catalogue", by_import=True)


def claims() -> Mapping[str, Claim]:
    """Every claim of the catalogue by id, in alphabetical order."""
    return CLAIMS
