"""How much of the differences between variants is the learning rate: the bake-offs, and "
"scans of α and rate."""

from collections.abc import Iterator
from itertools import pairwise

from lora_zoo.analysis.claims.reading import LR, Missing, Runs, by_seed
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import RATIO, Comparison, Sampled, above, below, most, within

RECENT = "recent re-tuning studies"
NO_VARIANTS = ("lora", "full", "head_only", "zero_shot")


def _others(runs: Runs) -> list[str]:
    names = [name for name in runs.values("variant") if name not in NO_VARIANTS]
    if len(names) < 3:
        raise Missing("fewer than three variants beside LoRA were run")
    return names


def _ties(runs: Runs) -> Iterator[Comparison]:
    for name in _others(runs):
        difference = runs.difference({"variant": name}, {"variant": "lora"})
        yield Sampled(f"{name} - lora", difference, within(-runs.point, runs.point), runs.metric)


@claim(
    "tuning/most-tie",
    paper=RECENT,
    where="equal rank",
    says="At one rank, each at its own best learning rate, most variants are within 1 point of LoRA.",
    needs="bakeoff_rank",
    rule=most,
)
def most_tie(runs: Runs) -> Iterator[Comparison]:
    yield from _ties(runs)


@claim(
    "tuning/most-tie-at-equal-parameters",
    paper=RECENT,
    where="equal parameters",
    says="At equal parameters, each at its own best learning rate, most variants are within 1 point of LoRA.",
    needs="bakeoff_budget",
    rule=most,
)
def most_tie_at_equal_parameters(runs: Runs) -> Iterator[Comparison]:
    yield from _ties(runs)


@claim(
    "tuning/shrinks-differences",
    paper=RECENT,
    where="equal rank",
    says=(
        "The spread between variants is smaller with each one's own best rate than with LoRA's best for all."
    ),
    needs="bakeoff_rank",
)
def shrinks_differences(runs: Runs) -> Iterator[Comparison]:
    names = ["lora", *_others(runs)]
    rate = _chosen_rate(runs)
    own = by_seed({name: runs.of({"variant": name}, tune=[LR]) for name in names})
    same = by_seed({name: runs.of({"variant": name, LR: rate}) for name in names})
    shrunk = (same.std(axis=1) - own.std(axis=1)).dropna()
    if shrunk.empty:
        raise Missing("the cells share no seed")
    label = f"spread at rate {rate:g} - spread at own rates"
    yield Sampled(label, shrunk, above(0), runs.metric)


def _chosen_rate(runs: Runs) -> float:
    """LoRA's best learning rate by validation."""
    means = {rate: runs.of({"variant": "lora", LR: rate}, "validation").mean() for rate in runs.values(LR)}
    return max(means, key=lambda rate: means[rate])


@claim(
    "tuning/alpha-is-a-rate",
    paper="source S0, S1",
    where="H09",
    says="Under Adam and from B = 0, runs with equal α x rate score within 1 point of each other.",
    sweep="+variant=lora alpha=4,8,16 task.lr=1e-2,2e-2,4e-2 seed=0,1,2,3,4",
)
def alpha_is_a_rate(runs: Runs) -> Iterator[Comparison]:
    cells = [(alpha, rate) for alpha in runs.values("alpha") for rate in runs.values(LR)]
    target = _middle([alpha * rate for alpha, rate in cells])
    equal = sorted(cell for cell in cells if abs(cell[0] * cell[1] / target - 1) < 1e-6)
    if len(equal) < 2:
        raise Missing("no two runs have the same product of alpha and rate")
    for (alpha, rate), (other, other_rate) in pairwise(equal):
        one = runs.of({"variant": "lora", "alpha": alpha, LR: rate}, tune=[])
        two = runs.of({"variant": "lora", "alpha": other, LR: other_rate}, tune=[])
        label = f"α={alpha:g} rate {rate:g} - α={other:g} rate {other_rate:g}"
        yield Sampled(label, (one - two).dropna(), within(-runs.point, runs.point), runs.metric)


def _middle(products: list[float]) -> float:
    """The product that most cells share, up to rounding."""
    return max(products, key=lambda p: sum(abs(q / p - 1) < 1e-6 for q in products))


@claim(
    "cost/steps-faster-than-full",
    paper="source S1, S2",
    where="H11",
    says="A training step of LoRA takes less time than one of full fine-tuning.",
    needs="bakeoff_rank",
    against=["cost/steps-slower-than-full"],
)
def steps_faster_than_full(runs: Runs) -> Iterator[Comparison]:
    ratio = runs.ratio({"variant": "lora"}, {"variant": "full"}, "step_seconds")
    yield Sampled("seconds a step, lora / full", ratio, below(1), "of full's time", RATIO)


@claim(
    "cost/steps-slower-than-full",
    paper="source S0",
    where="H11",
    says="LoRA trains longer than full fine-tuning, read here as: its step takes more time.",
    needs="bakeoff_rank",
    against=["cost/steps-faster-than-full"],
)
def steps_slower_than_full(runs: Runs) -> Iterator[Comparison]:
    ratio = runs.ratio({"variant": "lora"}, {"variant": "full"}, "step_seconds")
    yield Sampled("seconds a step, lora / full", ratio, above(1), "of full's time", RATIO)


@claim(
    "cost/back-to-the-lowest-layer",
    paper="source S1",
    where="section 3.1.1; H40",
    says=(
        "A step is slower with one adapted layer at the bottom than with one at the top: "
        "gradients reach that far."
    ),
    sweep="+variant=lora layers=0,3 seed=0,1,2,3,4",
)
def back_to_the_lowest_layer(runs: Runs) -> Iterator[Comparison]:
    layers = sorted(runs.values("layers"), key=_first_number)
    bottom, top = {"layers": layers[0]}, {"layers": layers[-1]}
    ratio = runs.ratio(bottom, top, "step_seconds")
    label = f"seconds a step, layer {layers[0]} / layer {layers[-1]}"
    yield Sampled(label, ratio, above(1), "of the top layer's time", RATIO)


def _first_number(layer: object) -> float:
    try:
        return float(str(layer))
    except ValueError:
        raise Missing(f"layers={layer} is no single layer") from None


@claim(
    "data/gap-grows",
    paper="source S0",
    where="H14",
    says="With 16 times the examples (as many steps), the lead of full fine-tuning over LoRA grows.",
    sweep="+variant=lora,full 'task.sizes.train=400,6400' seed=0,1,2,3,4",
)
def gap_grows(runs: Runs) -> Iterator[Comparison]:
    size = "config.task.sizes.train"
    sizes = runs.values(size)
    leads = [
        runs.difference({"variant": "full", size: n}, {"variant": "lora", size: n})
        for n in (sizes[0], sizes[-1])
    ]
    growth = (leads[1] - leads[0]).dropna()
    if growth.empty:
        raise Missing("the cells share no seed")
    label = f"lead of full, {sizes[-1]:g} - {sizes[0]:g} examples"
    yield Sampled(label, growth, above(0), runs.metric)
