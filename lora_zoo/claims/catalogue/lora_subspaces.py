"""LoRA, section 7.2 and appendix G: the directions that adapters of two ranks, and of two seeds, share.

φ(i, j) of the first i directions of one and the first j of the other is 1 where the smaller subspace lies
within the greater, and max(i, j) / width for random ones. Runs of one seed draw nested A: the first rows of A
at rank 64 are those at rank 8, so that at one seed φ(8, 64) is 1 before anything is learned. Hence two ranks
are never compared at one seed, but rank 8 of each seed with rank 64 of the next, the last with the first.
Each number is the mean over the matrices of one role; the paper looks at those of layer 48 of 96.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
from torch import Tensor

from lora_zoo import updates
from lora_zoo.claims.evidence import Missing, Runs
from lora_zoo.claims.forms import Form
from lora_zoo.claims.hypotheses import Hypothesis, Sampled, above, below
from lora_zoo.claims.registry import measured
from lora_zoo.injection.roles import role_of
from lora_zoo.updates.subspaces import directions, expected, similarity

SMALL, GREAT = 8, 64
ROLES = ("q", "v")
FIRST = 8

Directions = Mapping[str, Tensor]
"""Name of a matrix -> its directions (K, D) as orthonormal rows, the most important first."""
Overlap = Callable[[Tensor, Tensor], float]
"""A number of the directions of one matrix in two adapters."""


def top(one_KD: Tensor, other_KD: Tensor) -> float:
    """φ(1, 1)."""
    return float(similarity(one_KD[:1], other_KD[:1])[0, 0])


def others(one_KD: Tensor, other_KD: Tensor) -> float:
    """The part of one but its first direction that lies within the other: 0 as at random, 1 all of it."""
    rest_KD = one_KD[1:]
    random = expected(len(rest_KD), len(other_KD), one_KD.shape[1])
    if random >= 1 or not len(rest_KD):
        raise Missing("the ranks are too near to the width, or to 1, for a share of the other directions")
    return float((similarity(rest_KD, other_KD)[-1, -1] - random) / (1 - random))


def first_over_random(one_KD: Tensor, other_KD: Tensor) -> float:
    """φ(8, 8) less what is expected of random matrices."""
    i, j = min(FIRST, len(one_KD)), min(FIRST, len(other_KD))
    phi_KK = similarity(one_KD[:i], other_KD[:j])
    return float(phi_KK[-1, -1]) - expected(i, j, one_KD.shape[1])


def mean_over(role: str, overlap: Overlap, one: Directions, other: Directions) -> float:
    """The mean of `overlap` over the matrices of `role` that both have. Missing where there is none."""
    names = [name for name in one if name in other and role_of(name) == role]
    if not names:
        raise Missing(f"the adapters have no matrix of {role} in common")
    return float(np.mean([overlap(one[name], other[name]) for name in names]))


def kept(runs: Runs, rank: int, of: str) -> dict[int, Directions]:
    """Seed -> the directions of the adapter of this rank; `of`: "A", or "right" for those of ΔW."""
    return {
        seed: _directions(run.get("adapter"), of) for seed, run in runs.run_by_seed({"rank": rank}).items()
    }


def _directions(folder: object, of: str) -> Directions:
    if not isinstance(folder, str):
        raise Missing("the adapters of the runs were not kept")
    try:
        adapter = updates.read(folder)
        return {name: found for name in adapter if len(found := directions(adapter[name], of))}
    except (OSError, ValueError) as unreadable:
        raise Missing(f"an adapter cannot be read: {unreadable}") from unreadable


def neighbours(seeds: Sequence[int]) -> dict[int, int]:
    """Each seed -> the next, the last -> the first. Missing unless there are two."""
    if len(seeds) < 2:
        raise Missing("adapters of two seeds are needed")
    return dict(zip(seeds, [*seeds[1:], seeds[0]], strict=True))


def between_ranks(runs: Runs, of: str, overlap: Overlap) -> Iterator[tuple[str, pd.Series]]:
    """Role -> `overlap` of rank 8 of each seed with rank 64 of the next."""
    small, great = kept(runs, SMALL, of), kept(runs, GREAT, of)
    pairs = neighbours(sorted(small.keys() & great.keys()))
    for role in ROLES:
        found = {s: mean_over(role, overlap, small[s], great[other]) for s, other in pairs.items()}
        yield role, pd.Series(found)


def between_seeds(runs: Runs, number: Callable[[Directions, Directions], float]) -> pd.Series:
    """`number` of A of every two seeds at rank 64, as one value a seed."""
    found = kept(runs, GREAT, "A")
    neighbours(sorted(found))
    return jackknife(
        {(one, other): number(found[one], found[other]) for one, other in combinations(found, 2)}
    )


def jackknife(pairs: Mapping[tuple[int, int], float]) -> pd.Series:
    """One value a seed whose mean is that of all pairs of n seeds: the pseudo-values of the jackknife.

    A seed is in n - 1 pairs, which are therefore not independent; what varies with it counts once.
    """
    whole = float(np.mean(list(pairs.values())))
    seeds = sorted({seed for pair in pairs for seed in pair})
    n = len(seeds)
    own = {s: float(np.mean([value for pair, value in pairs.items() if s in pair])) for s in seeds}
    return pd.Series({s: whole + 2 * (n - 1) / max(n - 2, 1) * (own[s] - whole) for s in seeds})


def claimed(id: str, figure: int) -> Callable[[Form], Form]:
    return measured(id, "2106.09685", f"section 7.2, figure {figure}", experiment="lora_table7")


@claimed("lora/top-direction-shared", 3)
def top_direction_shared(runs: Runs) -> Iterator[Hypothesis]:
    """The top directions of A at ranks 8 and 64 overlap: φ(1, 1) is above 0.5, for q and v."""
    for role, values in between_ranks(runs, "A", top):
        yield Sampled(f"{role}: φ(1, 1) of A, ranks 8 and 64", values, above(0.5), "φ")


@claimed("lora/top-direction-of-change-shared", 3)
def top_direction_of_change_shared(runs: Runs) -> Iterator[Hypothesis]:
    """The top right singular vectors of ΔW at ranks 8 and 64 overlap: φ(1, 1) above 0.5, for q and v."""
    for role, values in between_ranks(runs, "right", top):
        yield Sampled(f"{role}: φ(1, 1) of ΔW, ranks 8 and 64", values, above(0.5), "φ")


@claimed("lora/other-directions-differ", 3)
def other_directions_differ(runs: Runs) -> Iterator[Hypothesis]:
    """All but the top direction of A at rank 8 share little with A at rank 64: less than 0.2 of the way from
    random ones to wholly within it, for q and v.
    """
    for role, values in between_ranks(runs, "A", others):
        label = f"{role}: directions 2 to 8, way from random to shared"
        yield Sampled(label, values, below(0.2), "of the way")


@claimed("lora/seeds-share-directions", 4)
def seeds_share_directions(runs: Runs) -> Iterator[Hypothesis]:
    """The first 8 directions of A at rank 64 of two seeds share more than those of random matrices:
    φ(8, 8) is above 8 / width, for q and v.
    """
    for role in ROLES:
        number = partial(mean_over, role, first_over_random)
        yield Sampled(f"{role}: φ(8, 8) - random", between_seeds(runs, number), above(0), "φ")


@claimed("lora/q-shares-more-than-v", 4)
def q_shares_more_than_v(runs: Runs) -> Iterator[Hypothesis]:
    """At rank 64, the first 8 directions of A of two seeds share more for q than for v."""

    def number(one: Directions, other: Directions) -> float:
        q, v = (mean_over(role, first_over_random, one, other) for role in ROLES)
        return q - v

    yield Sampled("φ(8, 8), q - v", between_seeds(runs, number), above(0), "φ")
