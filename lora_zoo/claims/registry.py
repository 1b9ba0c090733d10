"""One registry of claims: the command line, the report and the tests read it.

A claim is a function under `lora_zoo/analysis/claims/`, found because its file is there. What it says is a
precise statement about the result table; verdicts.py has the rule by which it counts as supported.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lora_zoo.analysis.claims.reading import Evidence, Missing, Runs
from lora_zoo.analysis.claims.verdicts import Comparison, Rule, Status, Verdict, every, verdict


@dataclass(frozen=True)
class Claim(ABC):
    """Who says what and where, and how it is tested. `against` names claims that disagree with it."""

    id: str
    paper: str
    where: str
    says: str
    against: tuple[str, ...]

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
        """What `evidence`, of any runs at all, says about it."""


Compare = Callable[[Runs], Iterator[Comparison]]


@dataclass(frozen=True)
class Measured(Claim):
    """A claim about runs: of an `experiment`, or of a sweep of its own."""

    compare: Compare
    experiment: str
    sweep: str
    rule: Rule

    @property
    def needs(self) -> str:
        return self.experiment or "a sweep of its own"

    @property
    def command(self) -> str:
        return f"python -m lora_zoo.run -m {self.sweep or '+experiment=' + self.experiment}"

    def verdict(self, evidence: Evidence) -> Verdict:
        """Not run without runs of the experiment; every model and task makes comparisons of its own."""
        comparisons: list[Comparison] = []
        missing: list[str] = []
        for runs in evidence.of(self.experiment):
            try:
                for comparison in self.compare(runs):  # what was compared before a gap counts
                    comparisons.append(runs.named(comparison))
            except Missing as gap:
                missing.append(runs.said(str(gap)))
        if not comparisons and (self.sweep or not missing):
            why = f" ({missing[0]})" if missing else ""
            return Verdict(Status.NOT_RUN, f"run: {self.command}{why}")
        return verdict(comparisons, missing, self.rule)


@dataclass(frozen=True)
class Computed(Claim):
    """A statement that needs no runs: computed now, from shapes or on a tiny model."""

    compute: Callable[[], Verdict]

    def verdict(self, evidence: Evidence) -> Verdict:
        return self.compute()


@dataclass(frozen=True)
class Unbuilt(Claim):
    """A statement that waits for a variant or an analysis."""

    waits_for: str

    @property
    def needs(self) -> str:
        return self.waits_for

    def verdict(self, evidence: Evidence) -> Verdict:
        return Verdict(Status.NOT_BUILT, f"needs {self.waits_for}")


@dataclass(frozen=True)
class OnRecord(Claim):
    """A statement of the sources that no measurement decides; `known` is what is on record about it."""

    known: str

    def verdict(self, evidence: Evidence) -> Verdict:
        return Verdict(Status.NOT_MEASURABLE, self.known)


_CLAIMS: dict[str, Claim] = {}


def enter(claim: Claim) -> None:
    """Enter a claim. An id that is taken is an error."""
    if _CLAIMS.get(claim.id, claim) != claim:
        raise ValueError(f"the claim {claim.id!r} is entered twice")
    _CLAIMS[claim.id] = claim


def claim(
    id: str,
    *,
    paper: str,
    where: str,
    says: str,
    needs: str = "",
    sweep: str = "",
    against: Iterable[str] = (),
    rule: Rule = every,
) -> Callable[[Compare], Compare]:
    """Enter the function below: given the runs of one model and task, it yields what the claim compares.

    `needs` names the experiment whose runs it reads; `sweep` is the command line of one without a name.
    """
    if bool(needs) == bool(sweep):
        raise ValueError(f"claim {id!r}: give either the experiment that it needs or a sweep")

    def keep(compare: Compare) -> Compare:
        enter(Measured(id, paper, where, says, tuple(against), compare, needs, sweep, rule))
        return compare

    return keep


def computed(
    id: str, *, paper: str, where: str, says: str, against: Iterable[str] = ()
) -> Callable[[Callable[[], Verdict]], Callable[[], Verdict]]:
    """Enter the function below, which computes its verdict from nothing."""

    def keep(compute: Callable[[], Verdict]) -> Callable[[], Verdict]:
        enter(Computed(id, paper, where, says, tuple(against), compute))
        return compute

    return keep


def claims() -> Mapping[str, Claim]:
    """Every registered claim by id, in alphabetical order."""
    from lora_zoo.analysis import claims as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_CLAIMS.items()))
