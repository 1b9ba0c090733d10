"""Claims about learning rates that fit no row: differences under tuning, and the best rates of two starts."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from lora_zoo.claims.evidence import LR, Missing, Runs, aligned
from lora_zoo.claims.forms import RATE, difference
from lora_zoo.claims.hypotheses import Hypothesis, OnGrid, Sampled, above, between
from lora_zoo.claims.measures import best_by_seed
from lora_zoo.claims.registry import measured

NO_VARIANTS = ("lora", "full", "linear_probe", "zero_shot")


def _others(names: list[str]) -> list[str]:
    others = [name for name in names if name not in NO_VARIANTS]
    if len(others) < 3:
        raise Missing("fewer than three variants beside LoRA were run")
    return others


@measured("tuning/shrinks-differences", "recent re-tuning studies", "equal rank", experiment="bakeoff_rank")
def shrinks_differences(runs: Runs) -> Iterator[Hypothesis]:
    """The spread between variants is smaller with each one's own best rate than with LoRA's best for all."""
    names = ["lora", *_others(runs.levels("variant"))]
    rate = _best_rate_of_lora(runs)
    own = aligned({name: runs.by_seed({"variant": name}, tune=RATE) for name in names})
    same = aligned({name: runs.by_seed({"variant": name, LR: rate}) for name in names})
    spread = aligned({"same": same.std(axis=1), "own": own.std(axis=1)})
    label = f"spread at rate {rate:g} - spread at own rates"
    yield Sampled(label, spread["same"] - spread["own"], above(0), runs.metric)


def _best_rate_of_lora(runs: Runs) -> float:
    """LoRA's best learning rate by validation."""
    rates = runs.levels(LR)
    return max(rates, key=lambda rate: runs.by_seed({"variant": "lora", LR: rate}, "validation").mean())


@measured(
    "tuning/alpha-is-a-rate",
    "source S0, S1",
    "H09",
    sweep="+variant=lora alpha=4,8,16 task.lr=1e-2,2e-2,4e-2 seed=0,1,2,3,4",
)
def alpha_is_a_rate(runs: Runs) -> Iterator[Hypothesis]:
    """Under Adam and from B = 0, runs with equal α x rate score within 1 point of each other."""
    cells = [(alpha, rate) for alpha in runs.levels("alpha") for rate in runs.levels(LR)]
    target = _commonest([alpha * rate for alpha, rate in cells])
    equal = sorted(cell for cell in cells if abs(cell[0] * cell[1] / target - 1) < 1e-6)
    if len(equal) < 2:
        raise Missing("no two runs have the same product of alpha and rate")
    for one, other in pairwise({"variant": "lora", "alpha": alpha, LR: rate} for alpha, rate in equal):
        yield from difference([one, other], between(-1, 1), tune=())(runs)


def _commonest(products: list[float]) -> float:
    """The product that most cells share, up to rounding."""
    return max(products, key=lambda p: sum(abs(q / p - 1) < 1e-6 for q in products))


@measured("starts/a-random-takes-larger-rates", "2406.08447", "H04", experiment="starts")
def a_random_takes_larger_rates(runs: Runs) -> Iterator[Hypothesis]:
    """A random (B = 0) has its best learning rate above that of B random (A = 0), seed by seed."""
    rates = runs.levels(LR)
    of_A, of_B = (
        best_by_seed({rate: runs.by_seed({"init": name, LR: rate}) for rate in rates})
        for name in ("kaiming", "zero_a")
    )
    best = aligned({"A": of_A, "B": of_B})
    step = float(np.sqrt(2) * np.diff(np.log2(rates)).max())  # both rates are rounded
    yield OnGrid("log2 of the best rates' ratio", best["A"] - best["B"], above(0), "log2 of the rate", step)
