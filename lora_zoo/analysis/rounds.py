"""Add seeds where a comparison is open: rounds of jobs until all is decided, or seeds or time are spent.

    rounds = Rounds([{"variant": "lora"}, {"variant": "dora"}], Plan(most=20, against="variant=lora"))
    ends = rounds.run(launch, read)

`launch` runs a list of jobs (cell, seed), however it likes; `read` gives what is known of all jobs that have
ended. Nothing here trains. What is found by `read` is not launched again, so that a sweep that was killed
goes on, and one that is finished does nothing.
"""

import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any, NamedTuple, final

import numpy as np

from lora_zoo.analysis.columns import format_key, join_names
from lora_zoo.analysis.sequential import Decision, decide_all

Key = Mapping[str, Any]
Job = tuple[int, int]
"""The number of a cell, and a seed."""
APART = ("task", "model")
"""Axes whose values are never compared with each other."""
BEST, ALL, CLAIM = "best", "all", "claim:"


@final
@dataclass(frozen=True)
class Plan:
    """The rules by which seeds are added; chosen before the first look, but for `hours` and `step`.

    `against` is best (each cell with the best one), all (every pair), KEY=VALUE, the cells of reference, or
    claim:ID, a claim of the ledger.
    """

    first: int = 3
    most: int = 20
    hours: float | None = None
    against: str = BEST
    margin: float = 0.0
    step: int = 1
    value: str = "test"
    level: float = 0.05
    tune: Sequence[str] = ()
    """Axes whose value is chosen for each cell, by validation over its first seeds."""
    halted: str = ""
    """What ended the rounds before their end, of a plan that was carried out: the time."""


@final
@dataclass(frozen=True)
class Seen:
    """The jobs that have ended: their value, nan for one that has none, and their seconds.

    `found` are those that were there already, made for something else.
    """

    values: Mapping[Job, float] = field(default_factory=dict)
    seconds: Mapping[Job, float] = field(default_factory=dict)
    better: str = "higher"
    validation: Mapping[Job, float] = field(default_factory=dict)
    better_validation: str = "higher"
    found: Collection[Job] = ()

    def tried(self, cell: int) -> int:
        """The number of seeds 0, 1, … of a cell that have ended, without a gap."""
        return next(seed for seed in itertools.count() if (cell, seed) not in self.values)

    def differences(self, cell: int, other: int) -> list[float]:
        both = min(self.tried(cell), self.tried(other))
        return [self.values[cell, seed] - self.values[other, seed] for seed in range(both)]

    def mean(self, cell: int) -> float:
        found = [self.values[cell, seed] for seed in range(self.tried(cell))]
        finite = [value for value in found if math.isfinite(value)]
        return float(np.mean(finite)) if finite else math.nan


class End(NamedTuple):
    """The end of one cell: its seeds, the words for what stopped it, and its comparison, if it has one."""

    cell: int
    seeds: int
    stopped: str
    reference: int | None = None
    decision: Decision | None = None

    def words(self, names: Sequence[object]) -> str:
        """The end in words, its interval that of the sequential procedure."""
        if self.decision is None or self.reference is None:
            return f"{self.seeds} seeds, {self.stopped}"
        d = self.decision
        known = f" ({d.low:.3g} to {d.high:.3g})" if math.isfinite(d.low) else ""
        found = f"{d.estimate + 0.0:+.3g}{known}"
        told = f"; {found} from {names[self.reference]}" if d.is_open else f", {found}"
        many = "" if f"after {self.seeds} seeds" in self.stopped else f"{self.seeds} seeds, "
        return f"{many}{self.stopped}{told}"


def families(keys: Sequence[Key], against: str = BEST) -> list[list[Job]]:
    """The pairs (cell, reference) that are compared, each family apart: those of one task and model.

    ValueError where there is nothing to compare.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for cell, key in enumerate(keys):
        groups.setdefault(tuple(str(key.get(axis)) for axis in APART), []).append(cell)
    if against in (BEST, ALL):
        found = [[(j, i) for i, j in itertools.combinations(group, 2)] for group in groups.values()]
    else:
        found = [_with_reference(keys, group, against) for group in groups.values()]
    if not any(found):
        cells = join_names([format_key(key) for key in keys])
        raise ValueError(f"nothing to compare: no two of the cells ({cells}) are of one task and model")
    return [pairs for pairs in found if pairs]


def _with_reference(keys: Sequence[Key], group: Sequence[int], against: str) -> list[Job]:
    axis, _, value = against.partition("=")
    known = list(dict.fromkeys(str(keys[cell][axis]) for cell in group if axis in keys[cell]))
    if _word(value) not in map(_word, known):
        axes = list(dict.fromkeys(a for cell in group for a in keys[cell]))
        values = f"{axis} is {', '.join(known)}" if known else f"the sweep is over {', '.join(axes)}"
        raise ValueError(
            f"no cell has {against}: {values}; give best, all, claim:ID or one of these KEY=VALUE"
        )
    rest = {cell: {k: v for k, v in keys[cell].items() if k != axis} for cell in group}
    references = [cell for cell in group if _word(keys[cell].get(axis)) == _word(value)]
    return [
        (cell, reference)
        for cell in group
        for reference in references
        if cell not in references and rest[cell] == rest[reference]
    ]


def _word(value: Any) -> str:
    """A value as a command line or a frame has it: [q, v] and q,v are one, and so are 1e-2 and 0.01."""
    text = str(value).strip("[]").replace(" ", "")
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


Launch = Callable[[list[Job]], object]
Read = Callable[[], Seen]


@final
@dataclass(frozen=True)
class Rounds:
    """The rounds over the cells of `keys`. ValueError where there is nothing to compare."""

    keys: Sequence[Key]
    plan: Plan

    @cached_property
    def families(self) -> list[list[Job]]:
        return families(self.keys, self.plan.against)

    def run(self, launch: Launch, read: Read, **how: Any) -> list[End]:
        """Launch rounds until every comparison that counts is decided, or the seeds or the hours are spent.

        `how` is that of `launched`.
        """
        return self.ends(*launched(self.next_jobs, launch, read, self.plan.hours, **how))

    def next_jobs(self, seen: Seen) -> list[Job]:
        """The jobs of the next round, [] where no more are wanted.

        The first seed of every cell comes first, for what a run costs; then the first seeds; then more of
        both sides of each open pair. A cell of which no run has a value gets no more.
        """
        if missing := first_jobs(seen, len(self.keys), self.plan.first):
            return missing
        decisions, wanted = self.decisions(seen), dict.fromkeys(range(len(self.keys)), 0)
        for pair in self.counting(seen):
            if decisions[pair].is_open and not any(math.isnan(seen.mean(cell)) for cell in pair):
                target = min(self.plan.most, min(map(seen.tried, pair)) + self.plan.step)
                wanted |= {cell: max(wanted[cell], target) for cell in pair}
        return [(cell, seed) for cell, most in wanted.items() for seed in range(seen.tried(cell), most)]

    def decisions(self, seen: Seen) -> dict[Job, Decision]:
        """The decisions on all pairs; their error holds within each family."""
        found: dict[Job, Decision] = {}
        how = {"margin": self.plan.margin, "level": self.plan.level, "most": self.plan.most}
        for pairs in self.families:
            differences = {pair: seen.differences(*pair) for pair in pairs}
            found |= decide_all(differences, better=seen.better, **how)  # type: ignore[arg-type]
        return found

    def counting(self, seen: Seen) -> list[Job]:
        """The pairs that have to be decided: all, or those with the best cell of each family."""
        if self.plan.against != BEST:
            return [pair for pairs in self.families for pair in pairs]
        cells = [sorted({cell for pair in pairs for cell in pair}) for pairs in self.families]
        best = [_best(seen, own) for own in cells]
        return [pair for one, pairs in zip(best, self.families, strict=True) for pair in pairs if one in pair]

    def ends(self, seen: Seen, halted: str = "") -> list[End]:
        """The end of each cell, with its comparison with the reference or the best; `halted` ended it all."""
        decisions = self.decisions(seen)
        counted = {pair: decisions[pair] for pair in self.counting(seen)}
        return [self._end(cell, seen, counted, halted) for cell in range(len(self.keys))]

    def _end(self, cell: int, seen: Seen, counted: Mapping[Job, Decision], halted: str) -> End:
        mine, tried = {pair: d for pair, d in counted.items() if cell in pair}, seen.tried(cell)
        own = [pair for pair in mine if self._speaks_of(cell, pair, seen)]
        reference = decision = None
        if len(own) == 1:
            (pair,) = own
            reference = pair[0] if pair[1] == cell else pair[1]
            decision = mine[pair] if pair[0] == cell else mine[pair].reversed()
        open_ = any(d.is_open for d in mine.values())
        if math.isnan(seen.mean(cell)):
            stopped = "no run has a value"
        elif open_:
            stopped = self._why_open(tried, halted)
        elif decision is None or reference is None:
            others = "the other" if len(mine) == 1 else f"each of {len(mine)} others"
            stopped = f"decided against {others}" if mine else "not compared"
        else:
            words = "the same as" if decision.verdict == "same" else f"{decision.verdict} than"
            stopped = f"decided after {decision.after} seeds: {words} {format_key(self.keys[reference])}"
        return End(cell, tried, stopped, reference, decision)

    def _why_open(self, tried: int, halted: str) -> str:
        if tried >= self.plan.most:
            return f"open at the greatest number of seeds ({self.plan.most})"
        return f"open: {halted or 'the other side of a comparison has no value, or no seeds left'}"

    def _speaks_of(self, cell: int, pair: Job, seen: Seen) -> bool:
        """True where the other of the pair is the reference, or the best."""
        return pair[0] == cell if self.plan.against != BEST else _best(seen, pair) != cell


def launched(
    wanted: Callable[[Seen], list[Job]],
    launch: Launch,
    read: Read,
    hours: float | None = None,
    *,
    spent: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Seen, str]:
    """Launch the jobs that are `wanted`, round by round; what is known then, and what halted it, if anything.

    `spent` are the seconds of earlier processes. A round that would not end in time, by what the runs before
    it took, is not begun; of the first round nothing is known.
    """
    began, seen, work, wall = clock() - spent, read(), 0.0, 0.0
    while jobs := wanted(seen):
        start = clock()
        needed = expected(seen, jobs) / (max(1.0, work / wall) if wall else 1.0)
        if hours is not None and start - began + needed > 3600 * hours:
            return seen, f"time ({hours:g} hours)"
        launch(jobs)
        seen, wall = read(), wall + clock() - start
        if any(job not in seen.values for job in jobs):
            return seen, "interrupted"
        work += sum(seen.seconds.get(job, 0.0) for job in jobs if job not in seen.found)
    return seen, ""


def first_jobs(seen: Seen, cells: int, first: int) -> list[Job]:
    """The jobs that cells lack of their first seeds; that of the first seed before the others."""
    for target in (1, first):
        if missing := [(c, s) for c in range(cells) for s in range(seen.tried(c), target)]:
            return missing
    return []


def chosen(seen: Seen, groups: Sequence[Sequence[int]]) -> list[int]:
    """Of each group of settings the one of the best mean validation; one that lacks seeds is not eligible."""
    return [max(group, key=lambda cell: _merit(seen, cell)) for group in groups]


def _merit(seen: Seen, cell: int) -> tuple[int, float]:
    found = [seen.validation.get((cell, seed), math.nan) for seed in range(seen.tried(cell))]
    finite = [value for value in found if math.isfinite(value)]
    sign = 1 if seen.better_validation == "higher" else -1
    return len(finite), sign * float(np.mean(finite)) if finite else -math.inf


def expected(seen: Seen, jobs: Sequence[Job]) -> float:
    """The seconds of `jobs` one after the other, each as long as its cell's median; 0 if none is known."""
    of_all = list(seen.seconds.values())
    own = {cell: [s for (c, _), s in seen.seconds.items() if c == cell] for cell, _ in jobs}
    return sum(median(own[cell] or of_all or [0.0]) for cell, _ in jobs)


def _best(seen: Seen, cells: Sequence[int]) -> int:
    """The cell of the best mean; one without a value is the last."""
    means = {cell: seen.mean(cell) * (1 if seen.better == "higher" else -1) for cell in cells}
    return max(cells, key=lambda cell: -math.inf if math.isnan(means[cell]) else means[cell])
