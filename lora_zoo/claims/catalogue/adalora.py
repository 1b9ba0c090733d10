"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al., ICLR 2023)."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lora_zoo.claims.evidence import Missing, Runs
from lora_zoo.claims.forms import Form, better, each, lies
from lora_zoo.claims.hypotheses import FISHER_Z, Hypothesis, Sampled, above, between
from lora_zoo.claims.measures import CountedQuantity, Quantity, changes
from lora_zoo.claims.registry import Source

ATTENTION, FEED_FORWARD = ("q", "k", "v", "o"), ("gate", "up", "down")

budgets = Source("2303.10512", "adalora_budgets")


def unevenness(run: pd.Series) -> float:
    """Standard deviation of the final ranks over matrices, as a part of their mean."""
    ranks = changes(run)["numerical_rank"]
    return float(ranks.std(ddof=0) / ranks.mean()) if ranks.mean() else float("nan")


def budget_kept(run: pd.Series) -> float:
    """The mean of the ranks that are left, as a part of the budget (the average rank asked for)."""
    return float(changes(run)["numerical_rank"].mean()) / float(run["rank"])


def feed_forward_gain(run: pd.Series) -> float:
    """Mean final rank of the feed-forward matrices less that of attention's, in average ranks."""
    ranks = changes(run)
    upper, lower = (ranks["role"].isin(roles) for roles in (FEED_FORWARD, ATTENTION))
    if not (upper.any() and lower.any()):
        raise Missing("AdaLoRA was not run on attention and feed-forward matrices together")
    return _gain(ranks["numerical_rank"], upper, lower)


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


SPREAD = Quantity("spread of final ranks", "of the mean rank", unevenness)
FEED_FORWARD_GAIN = Quantity("feed-forward - attention", "of the mean rank", feed_forward_gain)
TOP_GAIN = Quantity("upper - lower layers", "of the mean rank", top_gain)
KEPT = CountedQuantity("part used", "of the budget", budget_kept)


def _at_each_budget(of: Quantity, floor: float) -> Form:
    return each("rank", lambda rank: lies({"variant": "adalora", "rank": rank}, above(floor), of))


budgets.claim("adalora/uneven", "section 4.4, figure 3; H19", _at_each_budget(SPREAD, 0.1)).says(
    "The final ranks differ: at each budget, their standard deviation over matrices is over 0.1 of the mean."
)
budgets.claim("adalora/feed-forward", "section 4.4, figure 3", _at_each_budget(FEED_FORWARD_GAIN, 0)).says(
    "Feed-forward matrices end with greater ranks than attention's, at each budget."
)
budgets.claim("adalora/top-layers", "section 4.4, figure 3; H20", _at_each_budget(TOP_GAIN, 0)).says(
    "The upper half of the layers ends with greater ranks than the lower half, at each budget."
)
budgets.claim(
    "adalora/budget-met",
    "section 3.3, equation 14",
    each("rank", lambda rank: lies({"variant": "adalora", "rank": rank}, between(0.98, 1.02), KEPT)),
).says(
    "The ranks that are left make up the budget: their mean is within 2 % of the rank asked for in every run."
)
Source("2303.10512", "bakeoff_budget").claim(
    "adalora/over-lora", "section 4, table 1; H36", better("adalora", "lora")
).says("At equal trainable parameters, each at its own best learning rate, AdaLoRA scores higher than LoRA.")


@budgets.claim("adalora/same-pattern", "section 4.4, figure 3")
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
