"""Changes of the weights in training: ranks of ΔW by layer and role, singular values by layer, subspaces."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lora_zoo.report.figures.axes import Axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import Nothing, grouped, in_order, line, needs, stack
from lora_zoo.report.figures.heat import Heat, unstacked
from lora_zoo.report.figures.planes import Bands
from lora_zoo.report.figures.style import ordered_styles

RANKS = {
    "effective_rank": Axis("effective rank of ΔW"),
    "numerical_rank": Axis("numerical rank of ΔW"),
    "stable_rank": Axis("stable rank of ΔW"),
    "relative_norm": Axis("‖ΔW‖ / ‖W‖"),
}


def layer_ranks(updates: pd.DataFrame, measures: Sequence[str] = tuple(RANKS)[:2], title: str = "") -> Chart:
    """A grid of roles x layers for each measure, means over the runs in `updates`.

    `updates` is the long frame of `lora_zoo.runs.updates`, of the runs of one group.
    """
    present = [m for m in measures if m in updates and updates[m].notna().any()]
    if not present:
        raise Nothing(f"the results have no {' or '.join(measures)} of any matrix")
    placed = _placed(updates)
    panels = []
    for measure in present:
        means = placed.pivot_table(measure, "role", "layer", sort=False)
        means = means.loc[sorted(means.index, key=in_order), sorted(means, key=_by_number)]
        ends = float(np.nanmin(means)), float(np.nanmax(means))
        axes = Axis("layer"), Axis("role")
        panels.append(Heat(RANKS[measure].title, *axes, unstacked(means), RANKS[measure], *ends))
    what = " and ".join(RANKS[m].label.removesuffix(" of ΔW") for m in present)
    return Chart(
        f"{what.capitalize()} of ΔW by layer and role{f': {title}' if title else ''}",
        f"Cells: mean over {_count(updates)}. Effective rank: exp of σ's entropy (Roy & Vetterli 2007);"
        " numerical rank: how many of the recorded σ (64 at most) are above 1e-6 of the first.",
        panels,
    )


def _placed(updates: pd.DataFrame) -> pd.DataFrame:
    """With a role and a layer everywhere; a matrix outside of the layers stands by its own name."""
    needs(updates, "name")
    known = updates.reindex(columns=[*dict.fromkeys([*updates, "role", "layer"])])
    role = known["role"].where(known["role"].notna() & (known["role"] != ""), known["name"])
    return known.assign(role=role, layer=[str(int(at)) if pd.notna(at) else "–" for at in known["layer"]])


def _count(updates: pd.DataFrame) -> str:
    n = updates["run"].nunique()
    return f"{n} runs" if n > 1 else "one run"


def _by_number(layer: str) -> tuple[bool, int]:
    return (not layer.isdigit(), int(layer) if layer.isdigit() else 0)


def spectra(updates: pd.DataFrame, title: str = "", most: int = 64) -> Chart:
    """Singular values of ΔW against their index, a panel a role and a line a layer, means over runs."""
    needs(updates, "singular_values")
    placed = _placed(updates)
    layers = sorted(placed["layer"].unique(), key=_by_number)
    names = {layer: f"layer {layer}" if layer.isdigit() else "outside of layers" for layer in layers}
    panels = []
    for (role,), part in grouped(placed, ["role"]):
        rows = stack(_values(part[part["layer"] == layer], names[layer], most) for layer in layers)
        if len(rows):
            panels.append(Bands(str(role), Axis("index i"), Axis("σᵢ(ΔW)", log=True), rows))
    if not panels:
        raise Nothing("no ΔW differs from zero")
    return Chart(
        f"Singular values of ΔW by layer and role{f': {title}' if title else ''}",
        f"Lines: mean over {_count(updates)}; values that are zero to rounding are left out.",
        panels,
        ordered_styles([*names.values()]),
    )


def _values(part: pd.DataFrame, name: str, most: int) -> pd.DataFrame:
    """Means by index, up to the last index where every run has a value above rounding."""
    table = pd.DataFrame([list(row)[:most] for row in part["singular_values"]], dtype=float)
    if table.empty:
        return table
    real = table.where(table.ge(table.max(axis=1) * 1e-6, axis=0)).dropna(axis=1)
    real = real.loc[:, (real > 0).all()]
    return line(name, [int(i) + 1 for i in real.columns], real.mean().to_numpy())


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
    axes = Axis("first j directions"), Axis("first i directions")
    panels = [
        Heat(name, *axes, unstacked(table), Axis("φ(i, j)"), 0.0, 1.0, digits=2)
        for name, table in shown.items()
    ]
    caption = "φ = 1: the smaller subspace lies within the other; 0: they are orthogonal (LoRA, section 7.2)."
    return Chart(title, caption, panels)
