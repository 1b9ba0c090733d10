"""Cells of a table, the best of them, and those that cannot be told from it."""

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, final

import numpy as np
import pandas as pd

from lora_zoo.analysis.columns import format_key, join_names
from lora_zoo.analysis.power import MOST, seeds_for
from lora_zoo.analysis.rounds import CLAIM, Job, Plan, Rounds, Seen
from lora_zoo.analysis.sequential import decide_all, interval_at_stop
from lora_zoo.analysis.statistics import Difference, Interval, holm, interval, paired

FEWEST = 3
"""Below so many seeds a cell's spread is hardly known, and a warning stands beside it."""


@final
@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of a table: a value for each seed, all of one configuration."""

    key: dict[str, Any]
    values: pd.Series
    validation: pd.Series
    runs: list[str]
    chosen: dict[str, Any] = field(default_factory=dict)
    tried: tuple[str, ...] = ()
    trainable: float = math.nan
    plan: Plan | None = None
    """The plan by which its seeds were added, where they are as many as a look at scores asked for."""

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def tries(self) -> int:
        """The number of settings of the tuned axes that were run for this cell."""
        return len(self.tried)

    @cached_property
    def interval(self) -> Interval:
        return interval_at_stop(self.values, self.plan.most) if self.plan else interval(self.values)

    @property
    def mean(self) -> float:
        return self.interval.estimate

    def scores(self, examples: pd.DataFrame) -> pd.DataFrame:
        """Items x seeds, out of the items x runs that `runs.examples` gives; for `paired_items`."""
        found = [run for run in self.runs if run in examples]
        seeds = [self.values.index[self.runs.index(run)] for run in found]
        return examples[found].set_axis(pd.Index(seeds, name="seed"), axis=1)

    def __str__(self) -> str:
        return format_key(self.key)


@final
@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one table. `rule` is what a reader must know; it belongs above the table."""

    cells: list[Cell]
    by: list[str]
    value: str
    better: str  # higher, lower, or "" where nothing declares it
    rule: str
    noted: tuple[str, ...] = ()
    plan: Plan | None = None

    def within(self, axis: str) -> dict[Any, "Cells"]:
        """The cells apart for each value of `axis`, each a family of comparisons of its own."""
        if axis not in self.by:
            raise ValueError(f"the cells are not laid out by {axis}; choose of {', '.join(self.by)}")
        if axis not in self._within:
            parts: dict[Any, list[Cell]] = {}
            for cell in self.cells:
                parts.setdefault(cell.key[axis], []).append(cell)
            whole = len(parts) == 1 and not self.noted
            self._within[axis] = {
                v: self if whole else replace(self, cells=part, noted=()) for v, part in parts.items()
            }
        return dict(self._within[axis])

    @cached_property
    def _within(self) -> dict[str, dict[Any, "Cells"]]:
        """Cells that `within` has taken apart, so that no comparison is made twice."""
        return {}

    def best(self) -> Cell:
        """The cell of the best mean. It need not be better than others: `tied` says which it may not beat."""
        self._comparable()
        sign = 1 if self.better == "higher" else -1
        return max((c for c in self.cells if c.n), key=lambda cell: sign * cell.mean)

    def against_best(self) -> dict[Cell, Difference]:
        """Each other cell minus the best one, on the seeds that both have.

        The best was picked by the same numbers, so that p is corrected by Holm for all pairs of cells and not
        for those with the best alone, which would declare a best too often; intervals are Bonferroni's.
        """
        return dict(self._against)

    @cached_property
    def _against(self) -> dict[Cell, Difference]:
        best = self.best()
        pairs = list(itertools.combinations(self.cells, 2))
        if self.plan:
            return self._at_stop(best, pairs, self.plan)
        level = 1 - 0.05 / max(len(pairs), 1)
        raw = {pair: paired(pair[1].values, pair[0].values, level) for pair in pairs}
        p = dict(zip(raw, holm([difference.p for difference in raw.values()]), strict=True))
        found = {}
        for pair, difference in raw.items():
            if best in pair:
                other = pair[1] if pair[0] is best else pair[0]
                seen = difference if other is pair[1] else difference.reversed()
                found[other] = seen.corrected(p[pair], f"Holm over {len(pairs)} pairs")
        return {cell: found[cell] for cell in self.cells if cell in found}

    def _at_stop(self, best: Cell, pairs: list[tuple[Cell, Cell]], plan: Plan) -> dict[Cell, Difference]:
        """The same where the seeds were added while scores were looked at."""
        raw = {pair: (pair[1].values - pair[0].values).sort_index() for pair in pairs}
        found = decide_all(raw, level=plan.level, most=plan.most)
        seen = {pair: decision.difference() for pair, decision in found.items() if best in pair}
        return {
            other: seen[best, other] if (best, other) in seen else seen[other, best].reversed()
            for other in self.cells
            if other is not best
        }

    def stops(self) -> list[str]:
        """The words for what stopped each cell of a sweep with seed=auto; else []."""
        if self.plan is None or not self.better:
            return []
        if self.plan.against.startswith(CLAIM):
            said = f"the cells of {self.plan.against} got seeds until it was decided, up to {self.plan.most}"
            return [f"{said}; {self.plan.halted} ended it" if self.plan.halted else said]
        differing = [axis for axis in self.by if len({cell.key[axis] for cell in self.cells}) > 1]
        keys = [{axis: cell.key[axis] for axis in differing} for cell in self.cells]
        rounds, names = Rounds(keys, self.plan), [*map(format_key, keys)]
        values: dict[Job, float] = {}
        for i, cell in enumerate(self.cells):
            own = {int(seed): float(value) for seed, value in cell.values.items()}
            # a seed in between that is not there ended without a value
            values |= {(i, seed): own.get(seed, math.nan) for seed in range(max(own, default=-1) + 1)}
        try:
            ends = rounds.ends(Seen(values, {}, self.better), self.plan.halted)
        except ValueError:  # of these cells no two compare
            return []
        return [f"{names[end.cell]}: {end.words(names)}" for end in ends]

    def tied(self, level: float = 0.05) -> list[Cell]:
        """The best cell and those that cannot be told from it, one seed's cells among them."""
        best, against = self.best(), self.against_best()
        return [c for c in self.cells if c is best or not against[c].is_resolved(level)]

    @cached_property
    def warnings(self) -> list[str]:
        """Reasons to doubt the table, one sentence each."""
        found = [*self.noted]
        few = [f"{cell} ({cell.n})" for cell in self.cells if cell.n < FEWEST]
        if few:
            found.append(
                f"fewer than {FEWEST} seeds: {join_names(few)}; no statement about new seeds is safe"
            )
        counts = {cell.n for cell in self.cells}
        if len(counts) > 1 and not self.plan:
            said = join_names([f"{cell}: {cell.n}" for cell in self.cells])
            found.append(f"unequal numbers of seeds ({said}); comparisons take the common ones")
        return found + self._of_tuning() + self._of_noise()

    def _of_tuning(self) -> list[str]:
        if len({cell.tried for cell in self.cells}) <= 1:
            return []
        said = join_names([f"{cell}: {cell.tries} ({join_names(cell.tried, 8)})" for cell in self.cells])
        return [f"unequal tuning: not every cell was tried at the same settings ({said})"]

    def _of_noise(self) -> list[str]:
        """For each task: whether the best is lost in seed noise against the next."""
        if not self.better:
            return [undeclared(self.value)]
        if "task" in self.by:
            parts = self.within("task")
            if len(parts) > 1:
                return [f"task={task}: {w}" for task, part in parts.items() for w in part._of_noise()]
        tied = self.tied() if any(cell.n for cell in self.cells) else []
        if len(tied) < 2:
            return []
        best, against = self.best(), self.against_best()
        sign = 1 if self.better == "higher" else -1
        nearest = max((c for c in tied if c is not best), key=lambda cell: (cell.n > 0, sign * cell.mean))
        level = [c for c in tied if math.isclose(c.mean, best.mean, rel_tol=1e-12)]
        if len(level) > 1:
            return [f"{join_names(level)} share the best mean: none leads"]
        said = (
            f"{best} leads within seed noise: {len(tied) - 1} of {len(self.cells) - 1} others cannot be told"
        )
        return [f"{said} from it, {nearest} differs by {_noise(against[nearest], best, nearest)}"]

    def _comparable(self) -> None:
        tasks = {cell.key["task"] for cell in self.cells if "task" in cell.key}
        if len(tasks) > 1:
            raise ValueError(f'values of {len(tasks)} tasks do not compare; ask within("task") of each')
        if not any(cell.n for cell in self.cells):
            raise ValueError(f"no run has a value of {self.value}")
        if not self.better:
            raise ValueError(undeclared(self.value))


def undeclared(value: str) -> str:
    """The line that tells how to give a value its direction."""
    return (
        f"no best {value}: nothing declares its direction; give the metric's class higher_is_better = True "
        "or False (and range = (low, high)), and run again"
    )


def _noise(difference: Difference, best: Cell, other: Cell) -> str:
    """The difference, and the seeds that it would take at the level of the table's interval."""
    gap = abs(difference.estimate)
    text = f"{gap:.3g} over {difference.n} seed{'' if difference.n == 1 else 's'}"
    sd = float((best.values - other.values).std(ddof=1))
    seeds = seeds_for(gap, sd, 1 - difference.level)
    if np.isnan(seeds) or not gap:
        return text
    needed = f"more than {MOST} seeds" if np.isinf(seeds) else f"about {seeds} seeds"
    return f"{text}; to see so little takes {needed}"
