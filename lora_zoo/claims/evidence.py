"""The result table as claims read it: its cells, by the table's own protocol.

Whatever is not there as expected raises Missing with a sentence, never another error: a claim is asked of
any results at all.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from lora_zoo.analysis.columns import format_value, settings, varying
from lora_zoo.analysis.integrity import sound
from lora_zoo.analysis.protocol import cells, chosen_by, found_of, plan_of
from lora_zoo.claims.doubts import FIXED, TIMES, Doubt, of_the_machine, rising
from lora_zoo.runs import column
from lora_zoo.runs.frame import COLUMNS

SETTING = ("model", "task", "steps", "batch_size")
"""Runs that differ in one of these are never compared with each other."""

LR = "task_lr"

Measure = Callable[[pd.Series], float]
"""A number of one run (a row of the frame), or Missing."""
Axes = Mapping[str, Any]
"""The cell of the runs with these values of these axes."""
Tune = Sequence[str] | None
"""Axes to be chosen on validation; None for those of the experiment."""


class Missing(LookupError):
    """Something that a claim needs is not in the results; the message says what."""


@dataclass(frozen=True)
class Runs:
    """The runs of one experiment on one model and task, all of them finished."""

    frame: pd.DataFrame
    setting: str
    diverged: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)
    doubts: dict[str, Doubt] = field(default_factory=dict, repr=False, compare=False)
    """What was found of the cells that were asked for: a sentence, and its kind."""
    asked: set[str] = field(default_factory=set, repr=False, compare=False)
    """The runs of these cells, by their names."""
    _known: dict[Any, tuple[pd.Series, dict[str, Doubt], set[str]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def of_one_claim(self) -> "Runs":
        """The same runs, with the doubts and the names of those that one claim asks for."""
        made = copy.copy(self)
        object.__setattr__(made, "doubts", {})
        object.__setattr__(made, "asked", set())
        return made

    def prefixed(self, text: str) -> str:
        return f"{self.setting}: {text}" if self.setting else text

    def levels(self, axis: str) -> list[Any]:
        """The values of `axis` that were run, in order. Missing unless there are two."""
        found = self._axis(axis).dropna().unique().tolist()
        if len(found) < 2:
            raise Missing(f"only {axis}={found[0]} was run" if found else f"no runs with {axis}")
        return sorted(found)

    def by_seed(self, where: Axes, value: str | Measure = "test", tune: Tune = None) -> pd.Series:
        """`value` by seed in the cell `where`."""
        key = (frozenset(where.items()), value, tune if tune is None else tuple(tune))
        if key not in self._known:
            values, rows = self._cell(where, value, tune)
            self._known[key] = values, dict(self._doubts(where, value, rows)), set(rows["run"])
        values, doubts, names = self._known[key]
        self.doubts.update(doubts)
        self.asked.update(names)
        return values

    def run_by_seed(self, where: Axes) -> dict[Any, pd.Series]:
        """Seed -> the run in the cell `where`. Missing where there is none, or several of one seed."""
        chosen = self._chosen(where)
        if chosen["seed"].duplicated().any():
            raise Missing(f"several runs of one seed with {_words(where)}")
        self.doubts.update(self._doubts(where, "", chosen))
        self.asked.update(chosen["run"])
        return {run["seed"]: run for _, run in chosen.sort_values("seed").iterrows()}

    def difference(
        self, one: Axes, other: Axes, value: str | Measure = "test", tune: Tune = None
    ) -> pd.Series:
        """`one` - `other`, paired by seed."""
        table = aligned({"one": self.by_seed(one, value, tune), "other": self.by_seed(other, value, tune)})
        return table["one"] - table["other"]

    def ratio(self, one: Axes, other: Axes, value: str | Measure = "test") -> pd.Series:
        """`one` / `other`, paired by seed; Missing unless both are positive."""
        a, b = self.by_seed(one, value), self.by_seed(other, value)
        if (a <= 0).any() or (b <= 0).any():
            raise Missing(f"{_name(value)} is not positive, so there is no ratio")
        table = aligned({"one": a, "other": b})
        return table["one"] / table["other"]

    @cached_property
    def point(self) -> float:
        """One point of the metric: 0.01 where it lies in 0..1, 1 where it counts to 100."""
        scores = self._numbers(self.frame, "test").abs()
        return 1.0 if scores.max() > 1 else 0.01

    @cached_property
    def most(self) -> int | None:
        """The greatest number of seeds where seed=auto added them; None where they were given."""
        plan = plan_of(self.frame)
        return plan.most if plan else None

    @property
    def metric(self) -> str:
        names = self.frame["metric"].dropna().unique().tolist() if "metric" in self.frame else []
        return str(names[0]) if len(names) == 1 else "score"

    def _doubts(self, where: Axes, value: str | Measure, rows: pd.DataFrame) -> Iterator[tuple[str, Doubt]]:
        """The reasons why the runs of a cell do not decide a claim about `value`."""
        if value in TIMES:
            yield from of_the_machine(_words(where), rows)
        elif value not in FIXED and LR not in where and not found_of(rows) and self._rates(where) < 2:
            lost, risen = len(self._matching(self.diverged, where)), rising(rows)
            if lost + risen > (lost + len(rows)) / 2:
                rate = f", {format_value(rows[LR].iloc[0])}" if LR in rows else ""
                yield (
                    f"untuned: {lost + risen} of {lost + len(rows)} runs with {_words(where)} diverged, or "
                    f"ended at a greater loss than they began with, at the one rate that was tried{rate}",
                    Doubt.UNTUNED,
                )

    def _rates(self, where: Axes) -> int:
        every = [self._matching(runs, where) for runs in (self.frame, self.diverged)]
        return len({rate for runs in every if LR in runs for rate in runs[LR].dropna()})

    def _matching(self, frame: pd.DataFrame, where: Axes) -> pd.DataFrame:
        matches = np.ones(len(frame), dtype=bool)
        for axis, wanted in where.items():
            if axis in frame:
                matches &= _equal(frame[axis], wanted)
        return frame[matches]

    def _cell(self, where: Axes, value: str | Measure, tune: Tune) -> tuple[pd.Series, pd.DataFrame]:
        chosen, words = self._chosen(where), _words(where)
        axes = [axis for axis in self._tuned(tune) if axis not in where and chosen[axis].notna().any()]
        if axes and not self._numbers(chosen, "validation").notna().any():
            raise Missing(f"the runs with {words} have no validation to choose {', '.join(axes)} by")
        chosen = chosen.assign(measured=self._measured(chosen, value), cell=words)
        chosen = chosen.drop(columns=self._constant.difference(axes)).copy()  # in few blocks
        try:
            judge = chosen_by(chosen, value if isinstance(value, str) else "")
            table = cells(chosen, by=["cell"], value="measured", tune=axes, judge=judge).cells
        except ValueError as refusal:
            raise Missing(f"{words}: {refusal}") from refusal
        values = table[0].values if table else pd.Series(dtype=float)
        values = values[np.isfinite(values)]
        if values.empty:
            raise Missing(f"the runs with {words} have no {_name(value)}")
        names = set(table[0].runs)
        counted = self.frame.loc[chosen.index]
        return values, counted[counted["run"].astype(str).isin(names)]

    def _chosen(self, where: Axes) -> pd.DataFrame:
        for axis in where:
            self._axis(axis)
        chosen = self._matching(self.frame, where)
        if chosen.empty:
            lost = len(self.diverged) and len(self._matching(self.diverged, where))
            raise Missing(f"{'all runs diverged' if lost else 'no runs'} with {_words(where)}")
        return chosen

    def _axis(self, axis: str) -> pd.Series:
        if axis not in self.frame:
            raise Missing(f"the results have no {axis}")
        return self.frame[axis]

    @cached_property
    def _constant(self) -> set[str]:
        """The settings in which the runs, hence those of a cell, do not differ, or only as in another one."""
        return set(settings(self.frame)).difference(varying(self.frame))

    def _tuned(self, tune: Tune) -> list[str]:
        if tune is None:
            abouts = self.frame["experiment_about"] if "experiment_about" in self.frame else pd.Series()
            about = next((a for a in abouts if isinstance(a, dict)), {})
            tune = about.get("tune") or []
        try:
            return [column(self.frame, axis) for axis in tune]
        except ValueError as unknown:
            raise Missing(str(unknown)) from unknown

    def _measured(self, chosen: pd.DataFrame, value: str | Measure) -> pd.Series:
        return chosen.apply(value, axis=1).astype(float) if callable(value) else self._numbers(chosen, value)

    def _numbers(self, chosen: pd.DataFrame, column: str) -> pd.Series:
        if column not in chosen:
            return pd.Series(math.nan, index=chosen.index)
        return pd.to_numeric(chosen[column], errors="coerce")


class Evidence:
    """A frame of any runs, sorted out once for all claims that ask for the same experiment."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self._contexts: dict[str, list[Runs]] = {}

    def of(self, experiment: str) -> list[Runs]:
        """The finished runs of an experiment ("": of no experiment) by model, task, steps and batch size."""
        if experiment not in self._contexts:
            self._contexts[experiment] = list(_contexts(self._whole, experiment))
        return self._contexts[experiment]

    @cached_property
    def _whole(self) -> pd.DataFrame:
        """The frame with every column of `COLUMNS`."""
        lacking = [name for name in COLUMNS if name not in self.frame]
        return self.frame.reset_index(drop=True).reindex(columns=[*self.frame.columns, *lacking]).copy()


def _contexts(whole: pd.DataFrame, experiment: str) -> Iterator[Runs]:
    ours = whole[(whole["experiment"].fillna("") == experiment) & whole["seed"].notna()]
    if ours.empty:
        return
    empty = ours.columns[ours.isna().all()].difference(COLUMNS)  # keys of other experiments' variants
    ours = ours.drop(columns=empty).copy()
    mine, diverged = (ours[ours["state"] == state] for state in ("done", "diverged"))
    printed = [key for key in SETTING if key in SETTING[:2] or mine[key].nunique(dropna=False) > 1]
    for values, part in mine.groupby(list(SETTING), dropna=False):
        setting = dict(zip(SETTING, values, strict=True))
        words = [str(setting[key]) if key in SETTING[:2] else f"{key}={setting[key]}" for key in printed]
        alike = [_equal(diverged[key], setting[key]) for key in SETTING[:2]]
        yield Runs(sound(part), ", ".join(words), diverged[alike[0] & alike[1]])


def aligned(columns: Mapping[Any, pd.Series]) -> pd.DataFrame:
    """Seeds x columns, of the seeds that all columns have. Missing where they share none."""
    table = pd.DataFrame(dict(columns)).dropna()
    if table.empty:
        raise Missing("the cells share no seed")
    return table


def _words(where: Axes) -> str:
    return ", ".join(f"{axis}={wanted}" for axis, wanted in where.items())


def _plain(value: Any) -> Any:
    """A value of an axis so that equal settings are equal: 8 and 8.0, "q,v" and "v,q", NaN and None."""
    if isinstance(value, str):
        return ",".join(sorted(value.split(",")))
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return float(value) if isinstance(value, int | float | np.number) else value


def _equal(column: pd.Series, wanted: Any) -> np.ndarray:
    """True for each value of a column that is the one that is wanted."""
    level = _plain(wanted)
    return np.fromiter((_plain(value) == level for value in column.tolist()), dtype=bool, count=len(column))


def _name(value: str | Measure) -> str:
    return value if isinstance(value, str) else value.__name__.replace("_", " ")
