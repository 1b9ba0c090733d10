"""Choose the adapters of a sweep to lay side by side: ranks of different seeds, and seeds of one rank.

Of one seed the first rows of A at a greater rank are those at a smaller one, so that adapters of one seed
overlap before any training: ranks are compared across seeds, as if they had been drawn apart.
"""

from collections.abc import Iterator

import pandas as pd

from lora_zoo.updates.comparisons import grid
from lora_zoo.updates.reading import AdapterUpdates, NeedsBase, position, read
from lora_zoo.updates.weight_update import FactoredUpdate

FIRST = (8, 64)
MATRICES = 2
Overlaps = tuple[dict[str, pd.DataFrame], int | None]
"""φ(i, j) by title, and the dimension of the space of all of them; None where they differ."""


def subspace_pairs(runs: pd.DataFrame) -> Overlaps:
    """Of up to two pairs of runs, two matrices in the middle of the model: directions of the factor A.

    Empty where no two adapters can be compared without their base.
    """
    found: dict[str, pd.DataFrame] = {}
    dimensions = set()
    for pair in _pairs(runs):
        title = " and ".join(f"rank {run['rank']:g} (seed {run['seed']:g})" for run in pair)
        try:
            one, other = (read(run["adapter"]) for run in pair)
        except (NeedsBase, OSError, ValueError):  # a figure less; the adapters' own commands say why
            continue
        for name in middle(one, other):
            updates = one[name], other[name]
            if all(isinstance(update, FactoredUpdate) and update.rank for update in updates):
                role, layer = position(name)
                where = f"{role or name}, layer {layer}" if layer is not None else role or name
                found[f"{where}: {title}"] = grid(*updates, factor="A", first=FIRST)
                dimensions.add(updates[0].shape[1])
    return found, dimensions.pop() if len(dimensions) == 1 else None


def _pairs(runs: pd.DataFrame) -> Iterator[tuple[pd.Series, pd.Series]]:
    """The smallest rank against the greatest, then two seeds of the greatest: of one variant."""
    able = runs[runs["adapter"].notna() & runs["rank"].notna() & runs["seed"].notna()]
    for _, own in able.groupby("variant", sort=False):
        ranks = sorted(own["rank"].unique())
        small, great = (own[own["rank"] == rank].drop_duplicates("seed") for rank in (ranks[0], ranks[-1]))
        others = great[great["seed"] != small.iloc[0]["seed"]]
        if len(ranks) > 1 and len(others):
            yield small.iloc[0], others.iloc[0]
        if len(great) > 1:
            yield great.iloc[0], great.iloc[1]
        if len(great) > 1 or len(others):
            return


def middle(one: AdapterUpdates, other: AdapterUpdates) -> list[str]:
    """Matrices of different roles that both have, of the layer in the middle."""
    common = [name for name in one if name in set(other)]
    layers = sorted({layer for name in common if (layer := position(name).layer) is not None})
    middle = layers[len(layers) // 2] if layers else None
    here = {position(name).role: name for name in reversed(common) if position(name).layer == middle}
    return list(here.values())[::-1][:MATRICES]
