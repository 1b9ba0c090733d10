"""ΔW against W: amplification, overlap and intruders, from the tables of `lora_zoo.updates`.

table = deltas.of_runs(runs.load("runs"), "amplification")
figures.amplification(table, "rank").save("figures/table7")

Tables and points are those of deltas.py. What chance gives, and what is the most possible, are grey lines.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lora_zoo.report.figures.axes import Axis, spanning
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.deltas import MEANS, by_run, styles_of
from lora_zoo.report.figures.groups import Group, Nothing, groups, needs
from lora_zoo.report.figures.planes import Marks
from lora_zoo.report.figures.rows import line, means, stack

TENTHS = 10


def amplification(table: pd.DataFrame, x: str, by: Sequence[str] = ()) -> Chart:
    """‖UᵀWV‖_F of ΔW's first directions between W's own and chance, and the factor, against rank or layer.

    Groups with the same baselines share a panel: those of other ranks, or of other matrices, have their own.
    """
    needs(table, x, "own", "factor")
    values = ("own", "base", "random", "directions", "factor")
    runs = by_run(table.dropna(subset=[x]), x, by, values)
    found = groups(runs, by)
    alike: dict[tuple[str, ...], list[Group]] = {}
    for group in found:
        alike.setdefault(tuple(f"{value:.3g}" for value in means([group], x, "base")["y"]), []).append(group)
    factor = Axis("‖ΔW‖_F / ‖UᵀWV‖_F", log=True)
    panels = [
        *(_projected(those, x) for those in alike.values()),
        Marks("amplification", spanning(runs, x), factor, means(found, x, "factor")),
    ]
    caption = (
        f"Points: {MEANS}. U, V: the first singular vectors of ΔW (points), those of W itself (W's own, the "
        "most possible) or random ones (‖W‖_F r / √(d k), expected). Factor: how much stronger ΔW is in its "
        "directions than W (LoRA, table 7 and H.4)."
    )
    return Chart("What ΔW strengthens in W", caption, panels, styles_of(found, by))


def _projected(those: Sequence[Group], x: str) -> Marks:
    """The part of W in the directions of each group, between the baselines that they share."""
    runs = pd.concat([group.runs for group in those])
    directions = {round(number) for number in _baseline("", runs, x, "directions")["y"]}
    whose = f"{those[0].name}: " if len(those) == 1 else ""
    title = f"{whose}first {directions.pop() if len(directions) == 1 else 'r'} directions"
    y, own = Axis("‖UᵀWV‖_F", log=True), means(those, x, "own")
    bounds = _baseline("W's own", runs, x, "base"), _baseline("random", runs, x, "random")
    return Marks(title, spanning(runs, x), y, own, baselines=stack(bounds))


def _baseline(name: str, runs: pd.DataFrame, x: str, value: str) -> pd.DataFrame:
    """The mean over all runs at each x."""
    found = means([Group(name, "", runs)], x, value)
    return line(name, found["x"].to_numpy(), found["y"].to_numpy())


def overlap(table: pd.DataFrame, by: Sequence[str] = ()) -> Chart:
    """The share of ‖ΔW‖_F² along each tenth of W's singular directions, largest σ first, beside chance."""
    needs(table, "profile", "expected")
    keys = [key for key in dict.fromkeys([*by, "run"]) if key in table]
    tenths = pd.concat([_tenths(row, keys) for _, row in table.iterrows()])
    runs = by_run(tenths, "tenth", by, ("share", "chance"))
    found = groups(runs, by)
    panel = Marks(
        "",
        Axis("tenth of W's singular directions (1: largest σ)"),
        Axis("part of ‖ΔW‖_F²", "share"),
        means(found, "tenth", "share"),
        baselines=_baseline("random", runs, "tenth", "chance"),
    )
    caption = f"Points: {MEANS}. Random: expected of a random ΔW."
    return Chart("Which of W's directions ΔW touches", caption, [panel], styles_of(found, by))


def _tenths(row: pd.Series, keys: Sequence[str]) -> pd.DataFrame:
    """The energy in each tenth of the directions; one that lies across two tenths counts in both by parts."""
    profile = np.asarray(row["profile"], dtype=float)
    K = len(profile)
    below = np.concatenate([[0.0], profile.cumsum()])
    shares = np.diff(np.interp(np.linspace(0, K, TENTHS + 1), np.arange(K + 1), below))
    chance = row["expected"] / max(1, round(K / TENTHS)) * K / TENTHS  # `expected` is of whole directions
    columns = {"tenth": range(1, TENTHS + 1), "share": shares, "chance": chance}
    return pd.DataFrame({key: row[key] for key in keys} | columns)


def intruders(table: pd.DataFrame, x: str = "rank", by: Sequence[str] = ("variant",)) -> Chart:
    """Intruder dimensions a matrix against the rank; groups without one, as full fine-tuning, are lines."""
    needs(table, "intruders")
    runs = by_run(table.dropna(subset=["intruders"]), x, by, ("intruders",))
    settings = sorted(runs[x].dropna().unique())
    if not settings:
        raise Nothing(f"no run has a {x}")
    found, flat = groups(runs.dropna(subset=[x]), by), groups(runs[runs[x].isna()], by)
    bounds = [line(g.name, settings, g.runs["intruders"].mean()) for g in flat if len(g.runs)]
    of, floor = int(table["of"].max()), float(table["floor"].max())
    y, title = Axis(f"intruders among {of} directions"), found[0].name if len(found) == 1 else ""
    panel = Marks(title, spanning(runs, x), y, means(found, x, "intruders"), baselines=stack(bounds))
    caption = (
        f"Points: {MEANS}. An intruder is a left singular vector of W + ΔW with no |cos| of 0.5 or more to "
        f"any of W's (2410.21228); random vectors reach about √(2 ln O / O), here {floor:.2f} at the most."
    )
    return Chart("Intruder dimensions by rank", caption, [panel], styles_of(found, by))
