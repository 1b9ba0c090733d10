"""Tables of one adapter's updates as pandas DataFrames: a row a matrix."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lora_zoo.updates import measures, vs_base
from lora_zoo.updates.reading import AdapterUpdates, checkpoints, position, read_each
from lora_zoo.updates.weight_update import WeightUpdate

FIRST = 8
"""The default number of directions where the adapter has no rank."""
ENDS = 0.1
"""The part of W's directions that counts as its top, and as its bottom."""
WHERE = ("name", "role", "layer")


def spectra(updates: AdapterUpdates) -> pd.DataFrame:
    """Norm, ranks and energy of each ΔW, from its singular values, which are the last column.

    `energy_1` and `energy_8` are the parts of ‖ΔW‖_F² in the first σ and the first 8, `rank_90` how many σ
    hold 90 % of it.
    """
    return _by_matrix(updates, _spectrum)


def _spectrum(update: WeightUpdate) -> dict[str, Any]:
    sigma = update.singular_values
    energy = measures.energy(sigma)
    return {
        "shape": update.shape,
        "norm": update.norm,
        "numerical_rank": measures.numerical_rank(sigma),
        "stable_rank": measures.stable_rank(sigma),
        "effective_rank": measures.effective_rank(sigma),
        "participation_ratio": measures.participation_ratio(sigma),
        "energy_1": float(energy[0]),
        "energy_8": float(energy[: min(8, len(energy))][-1]),
        "rank_90": measures.energy_rank(sigma),
        "singular_values": sigma.tolist(),
    }


def changes(updates: AdapterUpdates) -> pd.DataFrame:
    """Changes of W: ‖ΔW‖ / ‖W‖ and DoRA's ΔM and ΔD. NeedsBase where W was not read."""

    def row(update: WeightUpdate) -> dict[str, Any]:
        W_OI = updates.base(update.name)
        rows, norm = vs_base.row_changes(W_OI, update.dense()), float(W_OI.norm())
        return {
            "norm": update.norm,
            "relative_norm": update.norm / norm if norm else float("nan"),
            "magnitude_change": rows.magnitude,
            "direction_change": rows.direction,
        }

    return _by_matrix(updates, row)


def amplification(updates: AdapterUpdates, directions: int | None = None) -> pd.DataFrame:
    """LoRA's table 7: ‖UᵀWVᵀ‖_F for U, V of ΔW, of W and at random, and ‖ΔW‖_F over the first of these.

    `directions`: how many of the first singular vectors; default: the adapter's rank. NeedsBase without W.
    """
    first = directions or updates.rank or FIRST

    def row(update: WeightUpdate) -> dict[str, Any]:
        found = vs_base.amplification(update, updates.base(update.name), first)
        norm = float(updates.base(update.name).norm())
        return found._asdict() | {"norm": update.norm, "base_norm": norm}

    return _by_matrix(updates, row)


def overlap(updates: AdapterUpdates, side: str = "right") -> pd.DataFrame:
    """Overlap of ΔW with W's singular directions: the parts of ‖ΔW‖_F² in W's first and last tenth.

    `top`, `bottom`, and the `expected` part of a random ΔW; `profile` is all of `vs_base.overlap`. NeedsBase
    without W.
    """

    def row(update: WeightUpdate) -> dict[str, Any]:
        along = vs_base.overlap(update, updates.base(update.name), side)
        tenth = max(1, round(ENDS * len(along)))
        dimension = update.shape[1] if side == "right" else update.shape[0]
        ends = {"top": float(along[:tenth].sum()), "bottom": float(along[-tenth:].sum())}
        return ends | {"expected": tenth / dimension, "profile": along.tolist()}

    return _by_matrix(updates, row)


def intruders(
    updates: AdapterUpdates, first: int = vs_base.INTRUDERS, epsilon: float = vs_base.EPSILON
) -> pd.DataFrame:
    """Intruder dimensions among the first left singular vectors of each W'. NeedsBase without W.

    `intruders` is None where ε is not above the `floor` that random vectors reach.
    """

    def row(update: WeightUpdate) -> dict[str, Any]:
        found = vs_base.intruders(update, updates.base(update.name), first)
        count = found.count(epsilon) if epsilon > found.floor else None
        return {
            "intruders": count,
            "of": len(found.cosines),
            "floor": found.floor,
            "cosines": found.cosines.tolist(),
        }

    return _by_matrix(updates, row)


def evolution(run: str | Path, *, model: str | None = None) -> pd.DataFrame:
    """A row a checkpoint of a run and matrix: `step`, norm, ranks, ΔM and ΔD; the base is loaded once.

    ValueError where the run has no checkpoints: they are kept with trainer.save_steps=N.
    """
    found = checkpoints(run)
    tables = []
    for step, updates in zip(
        found, read_each({str(s): p for s, p in found.items()}, model=model), strict=True
    ):
        ranks = spectra(updates)[[*WHERE, "numerical_rank", "stable_rank", "effective_rank"]]
        tables.append(changes(updates).merge(ranks, on=list(WHERE)).assign(step=step))
    return pd.concat(tables, ignore_index=True)[
        ["step", *WHERE, *(c for c in tables[0] if c not in ("step", *WHERE))]
    ]


def _by_matrix(updates: AdapterUpdates, row: Any) -> pd.DataFrame:
    with torch.no_grad():
        table = pd.DataFrame([{**where(name), **row(updates[name])} for name in updates])
    return table.astype({"layer": "Int64"})


def where(name: str) -> dict[str, Any]:
    """The columns of a table that identify a matrix."""
    return {"name": name, **position(name)._asdict()}
