"""The rule by which a claim counts as supported, one for all of them.

A claim is tested by one or more *hypotheses*: a quantity with one value a seed (a difference between two
paired runs, a ratio, a slope, …) and the open range in which the claim says that it lies, any margin
included: (0, ∞) for "X beats Y", (-m, ∞) for "X is as good as Y" (non-inferiority), (-m, m) for "X and Y are
alike" (TOST, each of its two tests at half of 1 - level), (m, ∞) for "the sizes differ by more than m".

* A hypothesis **holds** if the whole confidence interval of its mean lies in the range, **fails** if the
  whole interval lies outside, and is **open** otherwise, and always with fewer than 3 seeds.
* The level is 95 % for the claim as a whole: with m hypotheses, Holm's: they are judged from the clearest
  on, the k-th by its interval of level 1 - 0.05 / (m - k + 1), and with the first open one all that follow
  are open. The interval that is printed is the one that was judged.
* A claim is **supported** if every hypothesis holds, **not supported** if one fails, else **inconclusive**.
  A claim about *most* of its hypotheses needs more than half of them to hold; if half of them or more fail,
  it is not supported.
* A verdict that rests on a cell which diverged at the only learning rate that was tried is **untuned**, one
  on seconds from a machine that did other work (or may have) **busy machine**: neither counts as a verdict.
* Every model and task in the results makes its own hypotheses; none are averaged.
* Runs are paired by seed: intervals are Student's t of the differences, of logarithms for ratios and of
  Fisher's z for correlations, and the sequential ones of `lora_zoo.analysis.boundaries` where seed=auto added
  the seeds. A quantity that is read off a grid (the best of six ratios) has the rounding's variance besides,
  step²/12. Equal values in all seeds leave no spread to judge by and stay open, unless the quantity is
  counted and not sampled (bytes, ranks); a counted one holds or fails as all of its runs do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from lora_zoo.analysis.statistics import Interval
from lora_zoo.claims.hypotheses import Hypothesis

LEVEL = 0.95
SEEDS = 3


class Status(StrEnum):
    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    INCONCLUSIVE = "inconclusive"
    UNTUNED = "untuned"
    BUSY = "busy machine"
    NOT_RUN = "not run"
    NOT_BUILT = "not built"
    NOT_MEASURABLE = "not measurable"


@dataclass(frozen=True)
class Verdict:
    """A status, its reason in words, the interval of the hypothesis that decided (in `unit`), the seeds."""

    status: Status
    reason: str
    effect: Interval | None = None
    unit: str = ""
    n: int = 0

    def doubted(self, doubts: Mapping[str, str]) -> "Verdict":
        """The verdict, not counted as one where there are doubts (sentence: status) about its cells."""
        if not doubts:
            return self
        decided = self.status in (Status.SUPPORTED, Status.NOT_SUPPORTED)
        status = Status(next(iter(doubts.values()))) if decided else self.status
        told = f"not counted ({self.status}): " if decided else ""
        return replace(self, status=status, reason=f"{told}{'; '.join(doubts)}; {self.reason}")


Rule = Callable[[Sequence[bool | None]], Status]
"""From what each hypothesis came to (True: it holds, None: it is open) to the claim's status."""


def every(outcomes: Sequence[bool | None]) -> Status:
    if False in outcomes:
        return Status.NOT_SUPPORTED
    return Status.SUPPORTED if outcomes and all(outcomes) else Status.INCONCLUSIVE


def most(outcomes: Sequence[bool | None]) -> Status:
    if 2 * outcomes.count(True) > len(outcomes):
        return Status.SUPPORTED
    failed = outcomes.count(False)
    return Status.NOT_SUPPORTED if failed and 2 * failed >= len(outcomes) else Status.INCONCLUSIVE


RULES = {"every": every, "most": most}


class Judged(NamedTuple):
    """A hypothesis, the interval by which it was judged, and whether it holds (None: open)."""

    hypothesis: Hypothesis
    interval: Interval
    holds: bool | None

    def __str__(self) -> str:
        word = {True: "holds", False: "fails", None: "open"}[self.holds]
        of, interval = self.hypothesis, format_interval(self.interval)
        return f"{of.label}: {interval}, claimed {of.claimed}: {word}"


def format_interval(interval: Interval) -> str:
    """An interval in words, with its level and the number of seeds."""
    if math.isnan(interval.low):
        return f"{interval.estimate:.4g} (n={interval.n})"
    level = f"{100 * interval.level:.4g} %"
    return f"{interval.estimate:.4g} [{interval.low:.4g}, {interval.high:.4g}] ({level}, n={interval.n})"


def judge(hypotheses: Sequence[Hypothesis]) -> list[Judged]:
    """Each hypothesis by Holm's procedure, the clearest first."""
    done: list[Judged] = []
    level, stopped = LEVEL, False
    for rank, hypothesis in enumerate(sorted(hypotheses, key=_p_value)):
        level = level if stopped else 1 - (1 - LEVEL) / (len(hypotheses) - rank)
        made = hypothesis.interval(level)
        decidable = not stopped and _p_value(hypothesis) < 1
        holds = hypothesis.claimed.holds(made.low, made.high) if decidable else None
        stopped = stopped or holds is None
        done.append(Judged(hypothesis, made, holds))
    return done


def _p_value(hypothesis: Hypothesis) -> float:
    return hypothesis.p_value() if len(hypothesis.values) >= SEEDS else 1.0


def verdict(hypotheses: Sequence[Hypothesis], missing: Sequence[str] = (), rule: Rule = every) -> Verdict:
    """The claim's verdict from its hypotheses; `missing` names what could not be tested, and is printed.

    A claim is not supported by what is there while a hypothesis that it needs is missing.
    """
    results = judge(hypotheses)
    status = rule([result.holds for result in results])
    if missing and status is Status.SUPPORTED:
        status = Status.INCONCLUSIVE
    reasons = [*map(str, results), *missing]
    if not results:
        return Verdict(Status.INCONCLUSIVE, "; ".join(reasons) or "nothing to compare")
    if any(hypothesis.most for hypothesis in hypotheses):
        reasons.append("seeds were added by seed=auto: the intervals are sequential and hold at any stop")
    n = min(len(hypothesis.values) for hypothesis in hypotheses)
    if n < SEEDS:
        reasons.append(f"fewer than {SEEDS} seeds decide nothing")
    decisive = _decisive(results, status)
    return Verdict(status, "; ".join(reasons), decisive.interval, decisive.hypothesis.unit, n)


def _decisive(results: Sequence[Judged], status: Status) -> Judged:
    """The weakest hypothesis of those that hold, the clearest of those that fail, or of the open ones."""
    wanted = {Status.SUPPORTED: True, Status.NOT_SUPPORTED: False}.get(status)
    fitting = [result for result in results if result.holds is wanted] or list(results)
    return fitting[-1] if status is Status.SUPPORTED else fitting[0]
