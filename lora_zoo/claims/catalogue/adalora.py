"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al., ICLR 2023)."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from lora_zoo.analysis.claims.matrices import changes
from lora_zoo.analysis.claims.reading import Missing, Runs
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import CORRELATION, Comparison, Counted, Sampled, above, within

PAPER = "2303.10512"
NEEDS = "adalora_budgets"
ATTENTION, FEED_FORWARD = ("q", "k", "v", "o"), ("gate", "up", "down")


def _each_budget(runs: Runs) -> list[float]:
    return runs.values("rank")


def unevenness(run: pd.Series) -> float:
    """Standard deviation of the final ranks over matrices, as a part of their mean."""
    ranks = changes(run)["numerical_rank"]
    return float(ranks.std(ddof=0) / ranks.mean()) if ranks.mean() else float("nan")


def budget_kept(run: pd.Series) -> float:
    """What is left of all ranks, as a part of the budget (the average rank asked for)."""
    return float(changes(run)["numerical_rank"].mean()) / float(run["rank"])


def feed_forward_gain(run: pd.Series) -> float:
    """Mean final rank of the feed-forward matrices less that of attention's, in average ranks."""
    ranks = changes(run)
    groups = [ranks[ranks["role"].isin(roles)]["numerical_rank"] for roles in (FEED_FORWARD, ATTENTION)]
    if min(map(len, groups)) == 0:
        raise Missing("AdaLoRA was not run on attention and feed-forward matrices together")
    return float((groups[0].mean() - groups[1].mean()) / ranks["numerical_rank"].mean())


def top_gain(run: pd.Series) -> float:
    """Mean final rank of the upper half of the layers less that of the lower half, in average ranks."""
    ranks = changes(run).dropna(subset="layer")
    layers = np.sort(ranks["layer"].astype(int).unique())
    if len(layers) < 2:
        raise Missing("AdaLoRA was run on a single layer")
    upper = ranks["layer"].astype(int).isin(layers[(len(layers) + 1) // 2 :])
    lower = ranks["layer"].astype(int).isin(layers[: len(layers) // 2])
    return float(
        (ranks[upper]["numerical_rank"].mean() - ranks[lower]["numerical_rank"].mean())
        / ranks["numerical_rank"].mean()
    )


def _at_each_budget(
    runs: Runs, what: Callable[[pd.Series], float], label: str, floor: float
) -> Iterator[Comparison]:
    for rank in _each_budget(runs):
        values = runs.of({"variant": "adalora", "rank": rank}, what)
        yield Sampled(f"budget {rank:g}: {label}", values, above(floor), "of the mean rank")


@claim(
    "adalora/uneven",
    paper=PAPER,
    where="section 4.4, figure 3; H19",
    says=(
        "The final ranks differ: at each budget, their standard deviation over matrices is over "
        "0.1 of their mean."
    ),
    needs=NEEDS,
)
def uneven(runs: Runs) -> Iterator[Comparison]:
    yield from _at_each_budget(runs, unevenness, "spread of final ranks", 0.1)


@claim(
    "adalora/feed-forward",
    paper=PAPER,
    where="section 4.4, figure 3",
    says="Feed-forward matrices end with greater ranks than attention's, at each budget.",
    needs=NEEDS,
)
def feed_forward(runs: Runs) -> Iterator[Comparison]:
    yield from _at_each_budget(runs, feed_forward_gain, "feed-forward - attention", 0.0)


@claim(
    "adalora/top-layers",
    paper=PAPER,
    where="section 4.4, figure 3; H20",
    says="The upper half of the layers ends with greater ranks than the lower half, at each budget.",
    needs=NEEDS,
)
def top_layers(runs: Runs) -> Iterator[Comparison]:
    yield from _at_each_budget(runs, top_gain, "upper - lower layers", 0.0)


@claim(
    "adalora/same-pattern",
    paper=PAPER,
    where="section 4.4, figure 3",
    says="Across budgets the pattern stays: final ranks at the least and greatest budget correlate over 0.5.",
    needs=NEEDS,
)
def same_pattern(runs: Runs) -> Iterator[Comparison]:
    budgets = _each_budget(runs)
    maps = [_maps(runs, budget) for budget in (budgets[0], budgets[-1])]
    seeds = sorted(maps[0].keys() & maps[1].keys())
    found = {seed: maps[0][seed].corr(maps[1][seed]) for seed in seeds}
    values = pd.Series(found, dtype=float).dropna()
    if values.empty:
        raise Missing("no seed has uneven ranks at both budgets")
    label = f"rank maps at budgets {budgets[0]:g} and {budgets[-1]:g}"
    yield Sampled(label, values, above(0.5), "correlation", CORRELATION)


def _maps(runs: Runs, budget: float) -> dict[int, pd.Series]:
    """seed -> final ranks by matrix."""
    found = runs.each({"variant": "adalora", "rank": budget})
    return {seed: changes(run).set_index("name")["numerical_rank"] for seed, run in found.items()}


@claim(
    "adalora/budget-met",
    paper=PAPER,
    where="section 3.3, equation 14",
    says=(
        "The ranks that are left make up the budget: their mean is within 2 % of the rank asked "
        "for, in every run."
    ),
    needs=NEEDS,
)
def budget_met(runs: Runs) -> Iterator[Comparison]:
    for rank in _each_budget(runs):
        kept = runs.of({"variant": "adalora", "rank": rank}, budget_kept)
        yield Counted(f"budget {rank:g}: part used", kept, within(0.98, 1.02), "of the budget")


@claim(
    "adalora/over-lora",
    paper=PAPER,
    where="section 4, table 1; H36",
    says=(
        "At equal trainable parameters, each at its own best learning rate, AdaLoRA scores higher than LoRA."
    ),
    needs="bakeoff_budget",
)
def over_lora(runs: Runs) -> Iterator[Comparison]:
    difference = runs.difference({"variant": "adalora"}, {"variant": "lora"})
    yield Sampled("adalora - lora", difference, above(0), runs.metric)
