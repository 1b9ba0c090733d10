"""Which figures a set of runs gets, and why the others are left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import pandas as pd

from lora_zoo.report.figures import (
    Chart,
    Nothing,
    against,
    amplification,
    curves,
    evolution,
    grid,
    intruders,
    layer_ranks,
    magnitude_direction,
    pareto,
    profiles,
    spectra,
    subspaces,
    touched,
)
from lora_zoo.report.figures.cells import axis_of, cells, done
from lora_zoo.results.curves import deltas

COSTS = ("trainable", "saved_bytes", "step_seconds", "train_seconds", "peak_memory", "retention_after")
GRIDS = 4  # the fullest
CELLS = 24  # whose spectra are shown
CURVED = {"loss": "training loss", "grad_norm": "gradient norm"}


@dataclass(frozen=True)
class Views:
    """Charts of which a reader sees one at a time, named by what there is to choose."""

    heading: str
    choice: str
    charts: Mapping[str, Chart]


@dataclass
class Gallery:
    """Figures, and a line for each that could not be drawn."""

    views: list[Views] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def add(self, heading: str, choice: str, makers: Mapping[str, Callable[[], Chart]]) -> None:
        """Draw what can be drawn of `makers`, by their names."""
        charts = {}
        for name, make in makers.items():
            try:
                charts[name] = make()
            except Nothing as reason:
                self.absent.append(f"{heading}, {name}: {reason}")
        if charts:
            self.views.append(Views(heading, choice, charts))

    def with_subspaces(self, similarities: Mapping[str, pd.DataFrame], dimension: int | None) -> Self:
        """Add the overlaps φ(i, j), by title; with the `dimension` of their space, what chance gives, too."""
        if similarities:
            drawn = partial(subspaces, similarities, dimension=dimension)
            self.add("Overlap of subspaces", "pairs", {"all": drawn})
        else:
            self.absent.append(
                "Overlap of subspaces: no two adapters of different seeds are there to compare"
            )
        return self


def gallery(
    runs: pd.DataFrame,
    histories: pd.DataFrame,
    updates: pd.DataFrame,
    axes: Sequence[str],
    *,
    value: str = "test",
) -> Gallery:
    """Every figure that these runs, which differ in `axes`, can fill."""
    found = Gallery()
    by = [axis for axis in axes if axis in runs] or ["variant"]
    _curves(found, runs, histories, by)
    numeric = [axis for axis in by if axis != "task" and _numbers(runs[axis]) > 1]
    name = {axis: axis_of(axis).label for axis in by}
    found.add(
        "Outcome against a setting",
        "setting",
        {name[x]: partial(against, runs, x, by, value=value) for x in numeric},
    )
    pairs = _pairs(runs, by)
    found.add(
        "Two settings at once",
        "settings",
        {f"{name[r]} × {name[c]}": partial(grid, runs, r, c, by, value=value) for r, c in pairs},
    )
    found.add(
        "Outcome against cost",
        "cost",
        {axis_of(c).label: partial(pareto, runs, c, by, value=value) for c in COSTS},
    )
    profiled = {name[axis]: partial(profiles, runs, axis, by, value=value) for axis in by if axis != "task"}
    found.add("Performance profiles", "by", profiled)
    _changes(found, runs, updates, by)
    _learned(found, runs, by)
    return found


def _curves(found: Gallery, runs: pd.DataFrame, histories: pd.DataFrame, by: list[str]) -> None:
    metrics = set(runs["metric"].dropna())
    logged = [c for c in histories if str(c).startswith("eval_") and any(str(c).endswith(m) for m in metrics)]
    if not logged:
        found.absent.append("Metric during training: nothing was evaluated there (trainer.eval_steps=0)")
    said = CURVED | {column: str(column).removeprefix("eval_").replace("_", " ") for column in logged}
    makers = {
        f"{what}, {unit}": partial(curves, runs, histories, by, y=y, against=x)
        for y, what in said.items()
        for x, unit in (("step", "steps"), ("seconds", "seconds"))
    }
    found.add("Training", "curve", makers)


def _numbers(column: pd.Series) -> int:
    """How many different numbers a column holds; 0 where it holds words."""
    values = column.dropna()
    words = values.map(lambda value: isinstance(value, (str, bool))).any()
    return 0 if words else int(values.nunique())


def _pairs(runs: pd.DataFrame, by: Sequence[str]) -> list[tuple[str, str]]:
    """Settings that make a grid: two values of each at least, numbers along the columns; fullest first."""
    able = [axis for axis in by if axis != "task" and runs[axis].nunique() > 1]
    able.sort(key=lambda axis: _numbers(runs[axis]))
    pairs = [(row, column) for i, row in enumerate(able) for column in able[i + 1 :]]
    pairs.sort(key=lambda pair: runs[pair[0]].nunique() * runs[pair[1]].nunique(), reverse=True)
    return pairs[:GRIDS]


def _changes(found: Gallery, runs: pd.DataFrame, updates: pd.DataFrame, by: Sequence[str]) -> None:
    try:
        every = cells(done(runs), by)
    except Nothing as reason:
        found.absent.append(f"Changes of the weights: {reason}")
        return
    if len(every) > CELLS:
        found.absent.append(f"Changes of the weights: the first {CELLS} of {len(every)} settings are shown")
    if updates.empty:
        found.absent.append("Changes of the weights: the results hold no singular values")
        return
    own = {cell.name: updates[updates["run"].isin(cell.runs["run"])] for cell in every[:CELLS]}
    own = {name: part for name, part in own.items() if len(part)}
    found.add("Ranks of ΔW", "setting", {n: partial(layer_ranks, own[n], title=n) for n in own})
    found.add("Spectra of ΔW", "setting", {n: partial(spectra, own[n], title=n) for n in own})


def _learned(found: Gallery, runs: pd.DataFrame, by: list[str]) -> None:
    """What was recorded of ΔW by `lora_zoo.deltas`."""
    heading = "What ΔW has to do with W"
    if "record" not in runs or not any("deltas" in record for record in runs["record"]):
        said = "nothing was recorded of it; python -m lora_zoo.spectra RUN… --record does that"
        found.absent.append(f"{heading}: {said}")
        return
    x = "rank" if "rank" in by and _numbers(runs["rank"]) > 1 else "layer"
    apart = [axis for axis in by if axis != x]
    makers: dict[str, tuple[str, Callable[[pd.DataFrame], Chart]]] = {
        "what ΔW strengthens in W": ("amplification", lambda table: amplification(table, x, apart)),
        "W's directions": ("touched", lambda table: touched(table, by)),
        "intruders": ("intruders", lambda table: intruders(table, "rank", apart)),
        "growth": ("evolution", lambda table: evolution(table, by)),
        "magnitude and direction": ("evolution", lambda table: magnitude_direction(_queries(table), by)),
    }
    drawn = {label: partial(_drawn, make, runs, name, by) for label, (name, make) in makers.items()}
    found.add(heading, "of", drawn)


def _queries(table: pd.DataFrame) -> pd.DataFrame:
    """The query matrices, which DoRA's figure 2 shows; all where there are none."""
    queries = table[table["role"] == "q"]
    return queries if len(queries) else table


def _drawn(make: Callable[[pd.DataFrame], Chart], runs: pd.DataFrame, table: str, by: Sequence[str]) -> Chart:
    """A figure of a recorded table, with the settings of its runs."""
    try:
        rows = deltas(runs, table)
    except (KeyError, ValueError) as missing:
        raise Nothing(str(missing)) from missing
    settings = runs.set_index("run")[[c for c in dict.fromkeys((*by, "rank")) if c in runs and c not in rows]]
    return make(rows.join(settings, on="run"))


__all__ = ["Gallery", "Views", "gallery"]
