"""LoRA, section 7.2 and appendix G: whether adapters of two ranks, and of two seeds, share their directions.

φ(i, j) of the first i directions of one and the first j of the other is 1 where the smaller subspace lies
within the greater, and max(i, j) / width for random ones. Runs of one seed draw nested A: the first rows of A
at rank 64 are those at rank 8, so that at one seed φ(8, 64) is 1 before anything is learned. Hence two ranks
are never compared at one seed, but rank 8 of each seed with rank 64 of the next, the last with the first.
Each number is the mean over the matrices of one role; the paper looks at those of layer 48 of 96.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from torch import Tensor

from lora_zoo import deltas
from lora_zoo.adapters.roles import role_of
from lora_zoo.analysis.claims.lora import PAPER
from lora_zoo.analysis.claims.reading import Missing, Runs
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import Comparison, Sampled, above, below
from lora_zoo.deltas.subspaces import directions, expected, similarity

NEEDS = "lora_table7"
SMALL, GREAT = 8, 64
ROLES = ("q", "v")
SHARED, PART, FIRST = 0.5, 0.2, 8

Directions = Mapping[str, Tensor]
"""Name of a matrix -> its directions (K, D) as orthonormal rows, the most important first."""
Measure = Callable[[Tensor, Tensor], float]


def top(one_KD: Tensor, other_KD: Tensor) -> float:
    """φ(1, 1)."""
    return float(similarity(one_KD[:1], other_KD[:1])[0, 0])


def others(one_KD: Tensor, other_KD: Tensor) -> float:
    """How much of one but its first direction lies within the other: 0 as at random, 1 all of it."""
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


def mean_over(role: str, measure: Measure, one: Directions, other: Directions) -> float:
    """The mean of `measure` over the matrices of `role` that both have. Missing where there is none."""
    names = [name for name in one if name in other and role_of(name) == role]
    if not names:
        raise Missing(f"the adapters have no matrix of {role} in common")
    return float(np.mean([measure(one[name], other[name]) for name in names]))


def kept(runs: Runs, rank: int, of: str) -> dict[int, Directions]:
    """Seed -> the directions of the adapter of this rank; `of`: "A", or "right" for those of ΔW."""
    return {seed: _directions(run.get("adapter"), of) for seed, run in runs.each({"rank": rank}).items()}


def _directions(folder: object, of: str) -> Directions:
    if not isinstance(folder, str):
        raise Missing("the adapters of the runs were not kept")
    try:
        adapter = deltas.read(folder)
        return {name: found for name in adapter if len(found := directions(adapter[name], of))}
    except (OSError, ValueError) as unreadable:
        raise Missing(f"an adapter cannot be read: {unreadable}") from unreadable


def neighbours(seeds: Sequence[int]) -> dict[int, int]:
    """Each seed -> the next, the last -> the first. Missing unless there are two."""
    if len(seeds) < 2:
        raise Missing("adapters of two seeds are needed")
    return dict(zip(seeds, [*seeds[1:], seeds[0]], strict=True))


def between_ranks(runs: Runs, of: str, measure: Measure) -> Iterator[tuple[str, pd.Series]]:
    """Role -> `measure` of rank 8 of each seed against rank 64 of the next."""
    small, great = kept(runs, SMALL, of), kept(runs, GREAT, of)
    pairs = neighbours(sorted(small.keys() & great.keys()))
    for role in ROLES:
        found = {s: mean_over(role, measure, small[s], great[other]) for s, other in pairs.items()}
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


@claim(
    "lora/top-direction-shared",
    paper=PAPER,
    where="section 7.2, figure 3",
    says=f"The top directions of A at ranks 8 and 64 overlap: φ(1, 1) is above {SHARED:g}, for q and v.",
    needs=NEEDS,
)
def top_direction_shared(runs: Runs) -> Iterator[Comparison]:
    """At different seeds: nested starts make A of one seed alike at all ranks."""
    for role, values in between_ranks(runs, "A", top):
        yield Sampled(f"{role}: φ(1, 1) of A, ranks 8 and 64", values, above(SHARED), "φ")


@claim(
    "lora/top-direction-of-change-shared",
    paper=PAPER,
    where="section 7.2, figure 3",
    says=(
        "The top right singular vectors of ΔW at ranks 8 and 64 overlap: φ(1, 1) is above "
        f"{SHARED:g}, for q and v."
    ),
    needs=NEEDS,
)
def top_direction_of_change_shared(runs: Runs) -> Iterator[Comparison]:
    """Of ΔW instead of A. At different seeds: nested starts make ΔW of one seed alike at all ranks."""
    for role, values in between_ranks(runs, "right", top):
        yield Sampled(f"{role}: φ(1, 1) of ΔW, ranks 8 and 64", values, above(SHARED), "φ")


@claim(
    "lora/other-directions-differ",
    paper=PAPER,
    where="section 7.2, figure 3",
    says=(
        "All but the top direction of A at rank 8 share little with A at rank 64: less than "
        f"{PART:g} of the way from random ones to wholly within it, for q and v."
    ),
    needs=NEEDS,
)
def other_directions_differ(runs: Runs) -> Iterator[Comparison]:
    """At different seeds: at one seed all of A at rank 8 lies within A at rank 64 from the start."""
    for role, values in between_ranks(runs, "A", others):
        yield Sampled(
            f"{role}: directions 2 to 8, way from random to shared", values, below(PART), "of the way"
        )


@claim(
    "lora/seeds-share-directions",
    paper=PAPER,
    where="section 7.2, figure 4",
    says=(
        "The first 8 directions of A at rank 64 of two seeds share more than those of random matrices: "
        "φ(8, 8) is above 8 / width, for q and v."
    ),
    needs=NEEDS,
)
def seeds_share_directions(runs: Runs) -> Iterator[Comparison]:
    for role in ROLES:

        def number(one: Directions, other: Directions, role: str = role) -> float:
            return mean_over(role, first_over_random, one, other)

        yield Sampled(f"{role}: φ(8, 8) - random", between_seeds(runs, number), above(0), "φ")


@claim(
    "lora/q-shares-more-than-v",
    paper=PAPER,
    where="section 7.2, figure 4",
    says="At rank 64, the first 8 directions of A of two seeds share more for q than for v.",
    needs=NEEDS,
)
def q_shares_more_than_v(runs: Runs) -> Iterator[Comparison]:
    def number(one: Directions, other: Directions) -> float:
        q, v = (mean_over(role, first_over_random, one, other) for role in ROLES)
        return q - v

    yield Sampled("φ(8, 8), q - v", between_seeds(runs, number), above(0), "φ")
