"""ΔW against W: amplification, touched directions and intruders, from the tables of `lora_zoo.updates`.

table = deltas.of_runs(runs.load("runs"), "amplification")
figures.amplification(table, "rank").save("figures/table7")

Tables and points are those of deltas.py. What chance gives, and what is the most possible, are grey lines.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from lora_zoo.report.figures.cells import Cell, cells, needs
from lora_zoo.report.figures.chart import Axis, Chart, Nothing, Series
from lora_zoo.report.figures.comparisons import along, spanning
from lora_zoo.report.figures.deltas import MEANS, by_run, looks_of
from lora_zoo.report.figures.lines import Marks

TENTHS = 10


def amplification(table: pd.DataFrame, x: str, by: Sequence[str] = ()) -> Chart:
    """‖UᵀWV‖_F of ΔW's first directions between W's own and chance, and the factor, against rank or layer.

    Cells with the same baselines share a panel: those of other ranks, or of other matrices, have their own.
    """
    needs(table, x, "own", "factor")
    values = ("own", "base", "random", "directions", "factor")
    runs = by_run(table.dropna(subset=[x]), x, by, values)
    found = cells(runs, by)
    alike: dict[tuple[str, ...], list[Cell]] = {}
    for cell in found:
        alike.setdefault(tuple(f"{value:.3g}" for value in along(cell, x, "base").y), []).append(cell)
    factors = [along(cell, x, "factor") for cell in found]
    panels = [
        *(_projected(group, x) for group in alike.values()),
        Marks("amplification", spanning(runs, x), Axis("‖ΔW‖_F / ‖UᵀWV‖_F", log=True), factors),
    ]
    caption = (
        f"Points: {MEANS}. U, V: the first singular vectors of ΔW (points), those of W itself (W's own, the "
        "most possible) or random ones (‖W‖_F r / √(d k), expected). Factor: how much stronger ΔW is in its "
        "directions than W (LoRA, table 7 and H.4)."
    )
    return Chart("What ΔW strengthens in W", caption, panels, looks_of(found, by))


def _projected(group: Sequence[Cell], x: str) -> Marks:
    """The part of W in the directions of each cell, between the baselines that they share."""
    (of,) = cells(pd.concat([cell.runs for cell in group]), ())
    directions = {round(number) for number in along(of, x, "directions").y}
    whose = f"{group[0].name}: " if len(group) == 1 else ""
    title = f"{whose}first {directions.pop() if len(directions) == 1 else 'r'} directions"
    baselines = []
    for name, value in (("W's own", "base"), ("random", "random")):
        line = along(of, x, value)
        baselines.append(Series(name, line.x, line.y))
    own = [along(cell, x, "own") for cell in group]
    return Marks(title, spanning(of.runs, x), Axis("‖UᵀWV‖_F", log=True), own, baselines=baselines)


def touched(table: pd.DataFrame, by: Sequence[str] = ()) -> Chart:
    """The share of ‖ΔW‖_F² along each tenth of W's singular directions, largest σ first, beside chance."""
    needs(table, "profile", "expected")
    keys = [key for key in dict.fromkeys([*by, "run"]) if key in table]
    long = pd.DataFrame([dict(row[keys]) | part for _, row in table.iterrows() for part in _tenths(row)])
    runs = by_run(long, "tenth", by, ("share", "chance"))
    found = cells(runs, by)
    chance = along(cells(runs, ())[0], "tenth", "chance")
    panel = Marks(
        "",
        Axis("tenth of W's singular directions (1: largest σ)"),
        Axis("part of ‖ΔW‖_F²", "share"),
        [along(cell, "tenth", "share") for cell in found],
        baselines=[Series("random", chance.x, chance.y)],
    )
    return Chart(
        "Which of W's directions ΔW touches",
        f"Points: {MEANS}. Random: expected of a random ΔW.",
        [panel],
        looks_of(found, by),
    )


def _tenths(row: pd.Series) -> Iterator[dict[str, float]]:
    """The energy in each tenth of the directions; one that lies across two tenths counts in both by parts."""
    profile = np.asarray(row["profile"], dtype=float)
    K = len(profile)
    below = np.concatenate([[0.0], profile.cumsum()])
    shares = np.diff(np.interp(np.linspace(0, K, TENTHS + 1), np.arange(K + 1), below))
    chance = row["expected"] / max(1, round(K / TENTHS)) * K / TENTHS  # `expected` is of whole directions
    for tenth, share in enumerate(shares.tolist(), 1):
        yield {"tenth": tenth, "share": share, "chance": chance}


def intruders(table: pd.DataFrame, x: str = "rank", by: Sequence[str] = ("variant",)) -> Chart:
    """Intruder dimensions a matrix against the rank; cells without one, as full fine-tuning, are lines."""
    needs(table, "intruders")
    runs = by_run(table.dropna(subset=["intruders"]), x, by, ("intruders",))
    settings = sorted(runs[x].dropna().unique())
    if not settings:
        raise Nothing(f"no run has a {x}")
    found, flat = cells(runs.dropna(subset=[x]), by), cells(runs[runs[x].isna()], by)
    lines = [Series(c.name, settings, [c.runs["intruders"].mean()] * len(settings)) for c in flat]
    of, floor = int(table["of"].max()), float(table["floor"].max())
    panel = Marks(
        found[0].name if len(found) == 1 else "",
        spanning(runs, x),
        Axis(f"intruders among {of} directions"),
        [along(cell, x, "intruders") for cell in found],
        baselines=lines,
    )
    caption = (
        f"Points: {MEANS}. An intruder is a left singular vector of W + ΔW with no |cos| of 0.5 or more to "
        f"any of W's (2410.21228); random vectors reach about √(2 ln O / O), here {floor:.2f} at the most."
    )
    return Chart("Intruder dimensions by rank", caption, [panel], looks_of(found, by))


__all__ = ["amplification", "intruders", "touched"]
