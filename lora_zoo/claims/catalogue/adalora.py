"""AdaLoRA: quantities of its final ranks, and the claim that compares those of two budgets."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lora_zoo.claims.evidence import Missing, Runs
from lora_zoo.claims.hypotheses import FISHER_Z, Hypothesis, Sampled, above
from lora_zoo.claims.measures import changes, register_quantity
from lora_zoo.claims.registry import measured

ATTENTION, FEED_FORWARD = ("q", "k", "v", "o"), ("gate", "up", "down")


@register_quantity("spread_of_ranks", "spread of final ranks", "of the mean rank")
def unevenness(run: pd.Series) -> float:
    """Standard deviation of the final ranks over matrices, as a part of their mean."""
    ranks = changes(run)["numerical_rank"]
    return float(ranks.std(ddof=0) / ranks.mean()) if ranks.mean() else float("nan")


@register_quantity("budget_used", "part used", "of the budget", counted=True)
def budget_kept(run: pd.Series) -> float:
    """The mean of the ranks that are left, as a part of the budget (the average rank asked for)."""
    return float(changes(run)["numerical_rank"].mean()) / float(run["rank"])


@register_quantity("feed_forward_gain", "feed-forward - attention", "of the mean rank")
def feed_forward_gain(run: pd.Series) -> float:
    """Mean final rank of the feed-forward matrices less that of attention's, in average ranks."""
    ranks = changes(run)
    upper, lower = (ranks["role"].isin(roles) for roles in (FEED_FORWARD, ATTENTION))
    if not (upper.any() and lower.any()):
        raise Missing("AdaLoRA was not run on attention and feed-forward matrices together")
    return _gain(ranks["numerical_rank"], upper, lower)


@register_quantity("top_gain", "upper - lower layers", "of the mean rank")
def top_gain(run: pd.Series) -> float:
    """Mean final rank of the upper half of the layers less that of the lower half, in average ranks."""
    ranks = changes(run).dropna(subset="layer")
    of_each = ranks["layer"].astype(int)
    layers = np.sort(of_each.unique())
    if len(layers) < 2:
        raise Missing("AdaLoRA was run on a single layer")
    upper, lower = layers[(len(layers) + 1) // 2 :], layers[: len(layers) // 2]
    return _gain(ranks["numerical_rank"], of_each.isin(upper), of_each.isin(lower))


def _gain(ranks: pd.Series, upper: pd.Series, lower: pd.Series) -> float:
    return float((ranks[upper].mean() - ranks[lower].mean()) / ranks.mean())


@measured("adalora/same-pattern", "2303.10512", "section 4.4, figure 3", experiment="adalora_budgets")
def same_pattern(runs: Runs) -> Iterator[Hypothesis]:
    """Across budgets the pattern stays: final ranks at the least and greatest budget correlate over 0.5."""
    least, *_, greatest = runs.levels("rank")
    one, other = (_ranks_by_matrix(runs, budget) for budget in (least, greatest))
    found = {seed: one[seed].corr(other[seed]) for seed in sorted(one.keys() & other.keys())}
    values = pd.Series(found, dtype=float).dropna()
    if values.empty:
        raise Missing("no seed has uneven ranks at both budgets")
    label = f"rank maps at budgets {least:g} and {greatest:g}"
    yield Sampled(label, values, above(0.5), "correlation", FISHER_Z)


def _ranks_by_matrix(runs: Runs, budget: float) -> dict[int, pd.Series]:
    """Seed -> final ranks by matrix."""
    found = runs.run_by_seed({"variant": "adalora", "rank": budget})
    return {seed: changes(run).set_index("name")["numerical_rank"] for seed, run in found.items()}
