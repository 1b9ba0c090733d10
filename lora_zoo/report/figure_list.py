"""The figures that a set of runs can fill, and the reasons why others are left out."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

from lora_zoo.report import figures
from lora_zoo.report.figures import Chart, Nothing
from lora_zoo.report.figures.axes import axis_of
from lora_zoo.report.figures.groups import done, groups
from lora_zoo.report.subspace_pairs import subspace_pairs
from lora_zoo.runs.curves import deltas, histories, ranks, routing, updates

SIZE = "trainable"
COSTS = ("saved_bytes", "step_seconds", "train_seconds", "peak_memory", "retention_after")
ALIKE = 1.1
"""Times the fewest trainable parameters, up to which contenders have one budget."""
OF_SIZE = ("rank", "budget")  # by which runs differ in their number of parameters
GRIDS = 4  # the fullest
SPECTRA = 24  # settings
CURVES = {"loss": "training loss", "grad_norm": "gradient norm"}


@dataclass(frozen=True)
class Views:
    """Charts of which a reader sees one at a time, named by what there is to choose."""

    heading: str
    choice: str
    charts: Mapping[str, Chart]


@dataclass
class FigureList:
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


def figure_list(runs: pd.DataFrame, axes: Sequence[str], *, value: str = "test") -> FigureList:
    """Every figure that these runs, which differ in `axes`, can fill."""
    found = FigureList()
    by = [axis for axis in axes if axis in runs] or ["variant"]
    own = [axis for axis in by if axis != "task"]
    name = {axis: axis_of(axis).label for axis in by}
    _add_curves(found, runs, by)
    numeric = {
        name[x]: partial(figures.against, runs, x, by, value=value) for x in own if _numbers(runs[x]) > 1
    }
    found.add("Outcome against a setting", "setting", numeric)
    pairs = {
        f"{name[r]} × {name[c]}": partial(figures.grid, runs, r, c, by, value=value)
        for r, c in _pairs(runs, own)
    }
    found.add("Two settings at once", "settings", pairs)
    _add_bits(found, runs, by)
    among = [] if _of_one_size(runs) else [SIZE]
    costs = {c: partial(figures.pareto, runs, c, by, value=value) for c in (*among, *COSTS)}
    found.add("Outcome against cost", "cost", {axis_of(cost).label: make for cost, make in costs.items()})
    if not among:
        found.absent.append("Outcome against cost, trainable parameters: all have one budget")
    found.add("Learning and forgetting", "by", {"all": partial(figures.forgetting, runs, by, value=value)})
    matrix = partial(figures.accuracy_matrix, runs, by, split=value)
    kinds = {"outcome": matrix, "routing accuracy": partial(matrix, metric="routing_accuracy")}
    found.add("A sequence of tasks", "of", kinds)
    profiles = {name[axis]: partial(figures.profiles, runs, axis, by, value=value) for axis in own}
    found.add("Performance profiles", "by", profiles)
    _add_ranks(found, runs, by)
    _add_routing(found, runs, by)
    _add_updates(found, runs, by)
    _add_recorded(found, runs, by)
    _add_subspaces(found, runs)
    return found


def _add_curves(found: FigureList, runs: pd.DataFrame, by: list[str]) -> None:
    history, metrics = histories(runs), tuple(runs["metric"].dropna().unique())
    logged = [c for c in map(str, history) if c.startswith("eval_") and c.endswith(metrics)]
    if not logged:
        found.absent.append("Metric during training: nothing was evaluated there (trainer.eval_steps=0)")
    titles = CURVES | {column: column.removeprefix("eval_").replace("_", " ") for column in logged}
    makers = {
        f"{what}, {unit}": partial(figures.curves, runs, history, by, y=y, against=x)
        for y, what in titles.items()
        for x, unit in (("step", "steps"), ("seconds", "seconds"))
    }
    found.add("Training", "curve", makers)


def _add_bits(found: FigureList, runs: pd.DataFrame, by: list[str]) -> None:
    """Bits, and bits a parameter, where a task counts them."""
    if "bits" not in runs or runs["bits"].isna().all():
        return
    sizes = [axis for axis in ("rank", "steps") if axis in by and _numbers(runs[axis]) > 1]
    apart = [axis for axis in by if axis not in OF_SIZE] or ["variant"]
    makers = {
        f"{axis_of(value).label}, {axis_of(x).label}": partial(figures.learned, runs, x, series, value=value)
        for value in ("bits", "bits_per_parameter")
        for x, series in (*((size, by) for size in sizes), ("trainable", apart))
    }
    found.add("Bits learned", "against", makers)


def _of_one_size(runs: pd.DataFrame) -> bool:
    """True where all have one budget, or one number of parameters: their cost is memory or time."""
    budget = runs.get("budget", pd.Series(dtype=float))
    if len(budget) and budget.notna().all() and budget.nunique() == 1:
        return True
    sizes = runs[SIZE].dropna() if SIZE in runs else runs.index[:0]
    return len(sizes) > 0 and bool(0 < max(sizes) <= ALIKE * min(sizes))


def _numbers(column: pd.Series) -> int:
    """The count of different numbers in a column; 0 where it holds words."""
    words = column.dropna().map(lambda value: isinstance(value, (str, bool))).any()
    return 0 if words else int(column.nunique())


def _pairs(runs: pd.DataFrame, axes: Sequence[str]) -> list[tuple[str, str]]:
    """Settings that make a grid: two values of each at least, numbers along the columns; fullest first."""
    able = sorted((axis for axis in axes if runs[axis].nunique() > 1), key=lambda axis: _numbers(runs[axis]))
    pairs = list(itertools.combinations(able, 2))
    return sorted(pairs, key=lambda pair: -math.prod(runs[axis].nunique() for axis in pair))[:GRIDS]


def _add_ranks(found: FigureList, runs: pd.DataFrame, by: Sequence[str]) -> None:
    """Ranks over the training, where a method or a program changes them."""
    changes = ranks(runs) if "record" in runs else pd.DataFrame()
    if len(changes):
        makers = {"all": partial(figures.rank_history, changes, runs, by)}
        found.add("Ranks over the training", "of", makers)


def _add_routing(found: FigureList, runs: pd.DataFrame, by: Sequence[str]) -> None:
    """Loads of experts, of methods that have some, on each split."""
    table = routing(runs) if "record" in runs else pd.DataFrame()
    if len(table):
        makers = {
            split: partial(figures.routing, table[table["split"] == split], runs, by)
            for split in table["split"].unique()
        }
        found.add("Routing among experts", "on", makers)


def _add_updates(found: FigureList, runs: pd.DataFrame, by: Sequence[str]) -> None:
    """Ranks and spectra of ΔW, as each run's record holds them."""
    heading = "Changes of the weights"
    try:
        every = groups(done(runs), by)
    except Nothing as reason:
        found.absent.append(f"{heading}: {reason}")
        return
    if len(every) > SPECTRA:
        found.absent.append(f"{heading}: the first {SPECTRA} of {len(every)} settings are shown")
    table = updates(runs)
    if table.empty:
        found.absent.append(f"{heading}: the results hold no singular values")
        return
    own = {group.name: table[table["run"].isin(group.runs["run"])] for group in every[:SPECTRA]}
    for title, draw in {"Ranks of ΔW": figures.layer_ranks, "Spectra of ΔW": figures.spectra}.items():
        makers = {name: partial(draw, part, title=name) for name, part in own.items() if len(part)}
        found.add(title, "setting", makers)
    shown = pd.concat([group.runs for group in every[:SPECTRA]])
    found.add("Agreement of ranks", "settings", {"all": partial(figures.agreement, shown, by)})


def _add_recorded(found: FigureList, runs: pd.DataFrame, by: list[str]) -> None:
    """The tables of ΔW that `lora_zoo.updates` recorded."""
    heading = "What ΔW has to do with W"
    if "record" not in runs or not any("deltas" in record for record in runs["record"]):
        absent = "nothing was recorded of it; python -m lora_zoo.spectra RUN… --record does that"
        found.absent.append(f"{heading}: {absent}")
        return
    x = "rank" if "rank" in by and _numbers(runs["rank"]) > 1 else "layer"
    apart, table = [axis for axis in by if axis != x], partial(_recorded, runs, by)
    makers = {
        "what ΔW strengthens in W": lambda: figures.amplification(table("amplification"), x, apart),
        "W's directions": lambda: figures.overlap(table("overlap"), by),
        "intruders": lambda: figures.intruders(table("intruders"), "rank", apart),
        "growth": lambda: figures.evolution(table("evolution"), by),
        "magnitude and direction": lambda: figures.magnitude_direction(_queries(table("evolution")), by),
    }
    found.add(heading, "of", makers)


def _queries(table: pd.DataFrame) -> pd.DataFrame:
    """The query matrices, which DoRA's figure 2 shows; all where there are none."""
    queries = table[table["role"] == "q"]
    return queries if len(queries) else table


def _recorded(runs: pd.DataFrame, by: Sequence[str], name: str) -> pd.DataFrame:
    """A recorded table, with the settings of its runs."""
    try:
        rows = deltas(runs, name)
    except (KeyError, ValueError) as missing:
        raise Nothing(str(missing)) from missing
    settings = runs.set_index("run")[[c for c in dict.fromkeys((*by, "rank")) if c in runs and c not in rows]]
    return rows.join(settings, on="run")


def _add_subspaces(found: FigureList, runs: pd.DataFrame) -> None:
    tables, dimension = subspace_pairs(runs)
    if tables:
        draw = partial(figures.subspaces, tables, dimension=dimension)
        found.add("Overlap of subspaces", "pairs", {"all": draw})
    else:
        found.absent.append("Overlap of subspaces: no two adapters of different seeds are there to compare")
