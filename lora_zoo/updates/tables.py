"""Adapters and pairs of them as pandas DataFrames: a row a matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lora_zoo.updates import measures, subspaces, vs_base
from lora_zoo.updates.delta import Delta
from lora_zoo.updates.reading import Deltas, checkpoints, position, read_each

FIRST = 8
"""Directions that are looked at where nobody says otherwise and the adapter has no rank."""
ENDS = 0.1
"""The part of W's directions that counts as its top, and as its bottom."""
WHERE = ("name", "role", "layer")


def spectra(deltas: Deltas) -> pd.DataFrame:
    """Norm, ranks and energy of each ΔW, from its singular values, which are the last column.

    `energy_1` and `energy_8` are the parts of ‖ΔW‖_F² in the first σ and the first 8, `rank_90` how many σ
    hold 90 % of it.
    """
    return _by_matrix(deltas, _spectrum)


def _spectrum(delta: Delta) -> dict[str, Any]:
    sigma = delta.singular_values
    energy = measures.energy(sigma)
    return {
        "shape": delta.shape,
        "norm": delta.norm,
        "numerical_rank": measures.numerical_rank(sigma),
        "stable_rank": measures.stable_rank(sigma),
        "effective_rank": measures.effective_rank(sigma),
        "participation_ratio": measures.participation_ratio(sigma),
        "energy_1": float(energy[0]),
        "energy_8": float(energy[: min(8, len(energy))][-1]),
        "rank_90": measures.energy_rank(sigma),
        "singular_values": sigma.tolist(),
    }


def changes(deltas: Deltas) -> pd.DataFrame:
    """How W changed: ‖ΔW‖ / ‖W‖ and DoRA's ΔM and ΔD. NeedsBase where W was not read."""

    def row(delta: Delta) -> dict[str, Any]:
        W_OI = deltas.base(delta.name)
        rows, norm = vs_base.row_changes(W_OI, delta.dense()), float(W_OI.norm())
        return {
            "norm": delta.norm,
            "relative_norm": delta.norm / norm if norm else float("nan"),
            "magnitude_change": rows.magnitude,
            "direction_change": rows.direction,
        }

    return _by_matrix(deltas, row)


def amplification(deltas: Deltas, directions: int | None = None) -> pd.DataFrame:
    """LoRA's table 7: ‖UᵀWVᵀ‖_F for U, V of ΔW, of W and at random, and ‖ΔW‖_F over the first of these.

    `directions`: how many of the first singular vectors; default: the adapter's rank. NeedsBase without W.
    """
    asked = directions or deltas.rank or FIRST

    def row(delta: Delta) -> dict[str, Any]:
        found = vs_base.amplification(delta, deltas.base(delta.name), asked)
        norm = float(deltas.base(delta.name).norm())
        return found._asdict() | {"norm": delta.norm, "base_norm": norm}

    return _by_matrix(deltas, row)


def touched(deltas: Deltas, side: str = "right") -> pd.DataFrame:
    """Which of W's singular directions ΔW lies along: the parts of ‖ΔW‖_F² in W's first and last tenth.

    `top`, `bottom` and what `expected` of a random ΔW; `profile` is all of `against.touched`. NeedsBase
    without W.
    """

    def row(delta: Delta) -> dict[str, Any]:
        along = vs_base.touched(delta, deltas.base(delta.name), side)
        tenth = max(1, round(ENDS * len(along)))
        dimension = delta.shape[1] if side == "right" else delta.shape[0]
        ends = {"top": float(along[:tenth].sum()), "bottom": float(along[-tenth:].sum())}
        return ends | {"expected": tenth / dimension, "profile": along.tolist()}

    return _by_matrix(deltas, row)


def intruders(
    deltas: Deltas, first: int = vs_base.INTRUDERS, epsilon: float = vs_base.EPSILON
) -> pd.DataFrame:
    """Intruder dimensions among the first left singular vectors of each W'. NeedsBase without W.

    `intruders` is None where ε is not above the `floor` that random vectors reach.
    """

    def row(delta: Delta) -> dict[str, Any]:
        found = vs_base.intruders(delta, deltas.base(delta.name), first)
        count = found.count(epsilon) if epsilon > found.floor else None
        return {
            "intruders": count,
            "of": len(found.cosines),
            "floor": found.floor,
            "cosines": found.cosines.tolist(),
        }

    return _by_matrix(deltas, row)


def evolution(run: str | Path, *, model: str | None = None) -> pd.DataFrame:
    """A row a checkpoint of a run and matrix: `step`, norm, ranks, ΔM and ΔD; the base is loaded once.

    ValueError where the run has no checkpoints: they are kept with trainer.save_steps=N.
    """
    found = checkpoints(run)
    tables = []
    for step, deltas in zip(
        found, read_each({str(s): p for s, p in found.items()}, model=model), strict=True
    ):
        ranks = spectra(deltas)[[*WHERE, "numerical_rank", "stable_rank", "effective_rank"]]
        tables.append(changes(deltas).merge(ranks, on=list(WHERE)).assign(step=step))
    return pd.concat(tables, ignore_index=True)[
        ["step", *WHERE, *(c for c in tables[0] if c not in ("step", *WHERE))]
    ]


def comparison(one: Deltas, other: Deltas, *, of: str = "right", first: int = FIRST) -> pd.DataFrame:
    """Two adapters, a row a matrix that both change.

    `cosine` between the ΔW, `phi_1` = φ(1, 1), `phi` = φ(i, j) of the first i and j directions, which are
    `first` or as many as there are, and `random`, what is expected of random ones; `of` is one of
    `subspaces.DIRECTIONS`. ValueError where they have no matrix in common.
    """
    rows = []
    for name in _common(one, other):
        a, b = one[name], other[name]
        phi = subspaces.similarity(subspaces.directions(a, of)[:first], subspaces.directions(b, of)[:first])
        i, j = phi.shape
        dimension = a.shape[1] if of in ("right", "A") else a.shape[0]
        rows.append(
            {
                **_where(name),
                "cosine": subspaces.cosine(a, b),
                "phi_1": float(phi[0, 0]) if phi.numel() else float("nan"),
                "i": i,
                "j": j,
                "phi": float(phi[-1, -1]) if phi.numel() else float("nan"),
                "random": subspaces.expected(i, j, dimension),
            }
        )
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def grid(one: Delta, other: Delta, *, of: str = "A", first: Sequence[int] = (8, 64)) -> pd.DataFrame:
    """φ(i, j) for i and j from 1 to the numbers in `first`: LoRA's figures 3 and 4. Rows i, columns j."""
    i, j = first
    phi = subspaces.similarity(subspaces.directions(one, of)[:i], subspaces.directions(other, of)[:j])
    return pd.DataFrame(
        phi.numpy(), index=range(1, phi.shape[0] + 1), columns=range(1, phi.shape[1] + 1)
    ).rename_axis(index="i", columns="j")


def random_grid(
    dimension: int, first: Sequence[int] = (8, 64), *, ranks: Sequence[int] | None = None, seed: int = 0
) -> pd.DataFrame:
    """φ(i, j) of two random Gaussian matrices (rank, dimension): the last panel of LoRA's figure 4."""
    source = torch.Generator().manual_seed(seed)
    drawn = [
        torch.linalg.svd(
            torch.randn(rank, dimension, generator=source, dtype=torch.float64), full_matrices=False
        ).Vh[:n]
        for rank, n in zip(ranks or first, first, strict=True)
    ]
    phi = subspaces.similarity(*drawn)
    return pd.DataFrame(
        phi.numpy(), index=range(1, phi.shape[0] + 1), columns=range(1, phi.shape[1] + 1)
    ).rename_axis(index="i", columns="j")


def _by_matrix(deltas: Deltas, row: Any) -> pd.DataFrame:
    with torch.no_grad():
        table = pd.DataFrame([{**_where(name), **row(deltas[name])} for name in deltas])
    return table.astype({"layer": "Int64"})


def _where(name: str) -> dict[str, Any]:
    return {"name": name, **position(name)._asdict()}


def _common(one: Deltas, other: Deltas) -> list[str]:
    found = [name for name in one if name in set(other)]
    if not found:
        raise ValueError(
            f"{one.label} and {other.label} have no matrix in common: {next(iter(one))}, {next(iter(other))}"
        )
    return found


__all__ = [
    "amplification",
    "changes",
    "comparison",
    "evolution",
    "grid",
    "intruders",
    "random_grid",
    "spectra",
    "touched",
]
