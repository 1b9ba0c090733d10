"""What training changed: ranks of ΔW by layer and role, singular values by layer, subspaces."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lora_zoo.report.figures.cells import grouped, in_order, needs
from lora_zoo.report.figures.chart import Axis, Chart, Nothing, Series
from lora_zoo.report.figures.heat import Heat
from lora_zoo.report.figures.lines import Bands
from lora_zoo.report.figures.looks import ordered

RANKS = {
    "effective_rank": Axis("effective rank of ΔW"),
    "numerical_rank": Axis("numerical rank of ΔW"),
    "stable_rank": Axis("stable rank of ΔW"),
    "relative_norm": Axis("‖ΔW‖ / ‖W‖"),
}


def layer_ranks(updates: pd.DataFrame, measures: Sequence[str] = tuple(RANKS)[:2], title: str = "") -> Chart:
    """A grid of roles x layers for each measure, means over the runs in `updates`.

    `updates` is the long frame of `lora_zoo.runs.updates`, of the runs of one cell.
    """
    present = [m for m in measures if m in updates and updates[m].notna().any()]
    if not present:
        raise Nothing(f"the results have no {' or '.join(measures)} of any matrix")
    placed = _placed(updates)
    panels = [_ranks(placed.dropna(subset=[measure]), measure) for measure in present]
    what = " and ".join(RANKS[m].label.removesuffix(" of ΔW") for m in present)
    return Chart(
        f"{what.capitalize()} of ΔW by layer and role{f': {title}' if title else ''}",
        f"Cells: mean over {_counted(updates)}. Effective rank: exp of σ's entropy (Roy & Vetterli 2007);"
        " numerical rank: how many of the recorded σ (64 at most) are above 1e-6 of the first.",
        panels,
    )


def _placed(updates: pd.DataFrame) -> pd.DataFrame:
    """With a role and a layer everywhere; a matrix outside of the layers stands by its own name."""
    needs(updates, "name")
    role = updates["role"] if "role" in updates else pd.Series(None, updates.index, dtype=object)
    layer = updates["layer"] if "layer" in updates else pd.Series(None, updates.index, dtype=object)
    said = [str(int(value)) if pd.notna(value) else "–" for value in layer]
    return updates.assign(role=role.where(role.notna() & (role != ""), updates["name"]), layer=said)


def _counted(updates: pd.DataFrame) -> str:
    n = updates["run"].nunique()
    return f"{n} runs" if n > 1 else "one run"


def _number(layer: str) -> tuple[bool, int]:
    return (not layer.isdigit(), int(layer) if layer.isdigit() else 0)


def _ranks(placed: pd.DataFrame, measure: str) -> Heat:
    means = placed.groupby(["role", "layer"])[measure].mean()
    roles, layers = (
        sorted(placed["role"].unique(), key=in_order),
        sorted(placed["layer"].unique(), key=_number),
    )
    values = [[float(means.get((role, layer), float("nan"))) for layer in layers] for role in roles]
    ends = (float(means.min()), float(means.max()))
    return Heat(
        RANKS[measure].title, Axis("layer"), Axis("role"), layers, roles, values, RANKS[measure], *ends
    )


def spectra(updates: pd.DataFrame, title: str = "", most: int = 64) -> Chart:
    """Singular values of ΔW against their index, a panel a role and a line a layer, means over runs."""
    needs(updates, "singular_values")
    placed = _placed(updates)
    layers = sorted(placed["layer"].unique(), key=_number)
    names = {layer: f"layer {layer}" if layer.isdigit() else "outside of layers" for layer in layers}
    panels = []
    for (role,), part in grouped(placed, ["role"]):
        series = [_values(part[part["layer"] == layer], names[layer], most) for layer in layers]
        series = [one for one in series if one.x]
        if series:
            panels.append(Bands(str(role), Axis("index i"), Axis("σᵢ(ΔW)", log=True), series))
    if not panels:
        raise Nothing("no ΔW differs from zero")
    return Chart(
        f"Singular values of ΔW by layer and role{f': {title}' if title else ''}",
        f"Lines: mean over {_counted(updates)}; values that are zero to rounding are left out.",
        panels,
        ordered([names[layer] for layer in layers]),
    )


def _values(part: pd.DataFrame, name: str, most: int) -> Series:
    """Means by index, up to the last index where every run has a value above rounding."""
    table = pd.DataFrame([list(row)[:most] for row in part["singular_values"]], dtype=float)
    if table.empty:
        return Series(name, [], [])
    real = table.where(table.ge(table.max(axis=1) * 1e-6, axis=0)).dropna(axis=1)
    real = real.loc[:, (real > 0).all()]
    return Series(name, [int(i) + 1 for i in real.columns], real.mean().tolist())


def subspaces(
    similarities: Mapping[str, pd.DataFrame],
    title: str = "Overlap of subspaces",
    dimension: int | None = None,
) -> Chart:
    """φ(i, j) in 0..1 of the first i and the first j directions: a panel a title, index i down, columns j.

    With the `dimension` of the space that they lie in, the last panel is what random directions have.
    """
    if not similarities:
        raise Nothing("no subspaces were compared")
    shown = dict(similarities)
    if dimension:
        largest = max(shown.values(), key=lambda table: table.size)
        ij = np.maximum.outer(largest.index.to_numpy(), largest.columns.to_numpy())
        shown[f"random, expected: max(i, j) / {dimension}"] = largest.mask(largest.notna(), ij / dimension)
    panels = [_overlap(name, table) for name, table in shown.items()]
    caption = "φ = 1: the smaller subspace lies within the other; 0: they are orthogonal (LoRA, section 7.2)."
    return Chart(title, caption, panels)


def _overlap(name: str, table: pd.DataFrame) -> Heat:
    return Heat(
        name,
        Axis("first j directions"),
        Axis("first i directions"),
        [str(j) for j in table.columns],
        [str(i) for i in table.index],
        table.to_numpy(dtype=float).tolist(),
        Axis("φ(i, j)"),
        0.0,
        1.0,
        digits=2,
    )


__all__ = ["layer_ranks", "spectra", "subspaces"]
