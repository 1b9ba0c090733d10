"""Choose the adapters of a sweep to lay side by side: ranks of different seeds, and seeds of one rank.

Of one seed the first rows of A at a greater rank are those at a smaller one, so that adapters of one seed
overlap before any training: ranks are compared across seeds, as if they had been drawn apart.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from lora_zoo.updates.comparisons import grid
from lora_zoo.updates.reading import AdapterUpdates, NeedsBase, position, read
from lora_zoo.updates.weight_update import FactoredUpdate

FIRST = (8, 64)
MATRICES = 2


class Pair(NamedTuple):
    title: str
    one: pd.Series
    other: pd.Series


class SubspacePairs(NamedTuple):
    """φ(i, j) by title, and the dimension of the space of all of them; None where they differ."""

    similarities: dict[str, pd.DataFrame]
    dimension: int | None


def subspace_pairs(runs: pd.DataFrame) -> SubspacePairs:
    """Of up to two pairs of runs, two matrices in the middle of the model: directions of the factor A.

    Empty where no two adapters can be compared without their base.
    """
    found: dict[str, pd.DataFrame] = {}
    dimensions = set()
    for title, *both in _pairs(runs):
        try:
            one, other = (read(run["adapter"]) for run in both)
        except (NeedsBase, OSError, ValueError):  # a figure less; the adapters' own commands say why
            continue
        for name in middle(one, other):
            deltas = one[name], other[name]
            if all(isinstance(delta, FactoredUpdate) and delta.rank for delta in deltas):
                role, layer = position(name)
                said = f"{role or name}, layer {layer}" if layer is not None else role or name
                found[f"{said}: {title}"] = grid(*deltas, factor="A", first=FIRST)
                dimensions.add(deltas[0].shape[1])
    return SubspacePairs(found, dimensions.pop() if len(dimensions) == 1 else None)


def _pairs(runs: pd.DataFrame) -> Iterator[Pair]:
    """The smallest rank against the greatest, then two seeds of the greatest: of one variant."""
    able = runs[runs["adapter"].notna() & runs["rank"].notna() & runs["seed"].notna()]
    for _, own in able.groupby("variant", sort=False):
        ranks = sorted(own["rank"].unique())
        small, great = (own[own["rank"] == rank].drop_duplicates("seed") for rank in (ranks[0], ranks[-1]))
        others = great[great["seed"] != small.iloc[0]["seed"]]
        if len(ranks) > 1 and len(others):
            yield _format_value(small.iloc[0], others.iloc[0])
        if len(great) > 1:
            yield _format_value(great.iloc[0], great.iloc[1])
        if len(great) > 1 or len(others):
            return


def _format_value(one: pd.Series, other: pd.Series) -> Pair:
    words = " and ".join(f"rank {run['rank']:g} (seed {run['seed']:g})" for run in (one, other))
    return Pair(words, one, other)


def middle(one: AdapterUpdates, other: AdapterUpdates) -> list[str]:
    """Matrices of different roles that both have, of the layer in the middle."""
    common = [name for name in one if name in set(other)]
    layers = sorted({layer for name in common if (layer := position(name).layer) is not None})
    middle = layers[len(layers) // 2] if layers else None
    here = {position(name).role: name for name in reversed(common) if position(name).layer == middle}
    return list(here.values())[::-1][:MATRICES]
