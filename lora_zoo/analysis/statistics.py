"""Statistics over runs: intervals over seeds, paired differences, and the correction for many of them.

    paired(dora, lora)              new seeds, the primary statement: the paired t test over common seeds
    paired_items(dora, lora)        new seeds and new items, where outcomes per example are at hand
    mcnemar(one_run, other_run)     new items for these two runs alone: nothing about new seeds

Series are indexed by seed (or item), frames are items x seeds; what both sides lack is left out. A quantity
that the data cannot give is nan, never a guess: one seed has a mean and no interval.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, special, stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test

from lora_zoo.analysis.estimates import NAN, Difference, Interval


def interval(values: Any, level: float = 0.95) -> Interval:
    """Student's t interval for the mean over seeds."""
    x = _finite(np.asarray(values, dtype=float))
    if len(x) < 2:
        return Interval(x.mean() if len(x) else NAN, NAN, NAN, len(x), level)
    half = special.stdtrit(len(x) - 1, (1 + level) / 2) * _error(x)
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x), level)


def paired(a: pd.Series, b: pd.Series, level: float = 0.95) -> Difference:
    """The mean of a - b over the seeds that both have, by the paired t test.

    Differences that do not vary at all have no t: their p is the exact sign test's, 2^(1-n), and there is no
    interval. ValueError where a seed stands twice in one of them.
    """
    d = _finite(_matched(a, b))
    n = len(d)
    if n < 2:
        how = f"{n} seed{'' if n == 1 else 's'} in common: no test"
        return Difference(float(d.mean()) if n else NAN, NAN, NAN, NAN, n, None, how, level)
    if np.ptp(d) <= 1e-12 * max(1.0, float(np.abs(d).max())):
        p = 1.0 if abs(d[0]) <= 1e-12 else 2.0 ** (1 - n)
        low = high = 0.0 if p == 1 else NAN
        how = f"sign test over {n} seeds, whose differences are all equal"
        return Difference(float(d.mean()), low, high, p, n, None, how, level)
    mean = interval(d, level)
    p = float(2 * special.stdtr(n - 1, -abs(mean.estimate) / _error(d)))
    return Difference(mean.estimate, mean.low, mean.high, p, n, None, f"paired t over {n} seeds", level)


def paired_items(scores_a: pd.DataFrame, scores_b: pd.DataFrame, level: float = 0.95) -> Difference:
    """The mean of a - b for new items and new seeds: both are random effects, crossed.

    Scores are items x seeds. With the mean squares of items, of seeds and of both together, (MS_I + MS_S -
    MS_IS) / (I S) is the analysis of variance's unbiased estimate of the mean's variance; it is not taken
    below MS_I or MS_S alone. (A crossed bootstrap, Owen 2007, counts what both make together three times, and
    is up to sqrt(3) too wide.) The standard error takes the t quantiles of seeds and of items, each by its
    share of the variance. One seed: items alone vary, and `how` says so.
    """
    seeds, items = (
        scores_a.columns.intersection(scores_b.columns),
        scores_a.index.intersection(scores_b.index),
    )
    D_IS = (scores_a.loc[items, seeds] - scores_b.loc[items, seeds]).dropna().to_numpy(float)
    I, S = D_IS.shape
    if I < 2 or S < 1:
        return Difference(NAN, NAN, NAN, NAN, S, I, f"{I} items and {S} seeds in common: no test", level)
    estimate = float(D_IS.mean())
    of_items, of_seeds, together = _mean_squares(D_IS)
    error = math.sqrt(max(of_items + of_seeds - together, of_items, of_seeds) / (I * S))
    scope = f"{I} items x {S} seeds" if S > 1 else f"{I} items of one seed: nothing about new seeds"
    how = f"crossed random effects over {scope}"
    if error == 0:
        p = 1.0 if estimate == 0 else NAN
        return Difference(estimate, estimate, estimate, p, S, I, how, level)
    share = of_seeds / (of_items + of_seeds)
    half = _quantile(1 - level, share, S, I) * error
    p = _p_value(abs(estimate) / error, share, S, I)
    return Difference(estimate, estimate - half, estimate + half, p, S, I, how, level)


def _mean_squares(D_IS: np.ndarray) -> tuple[float, float, float]:
    """The mean squares of items, of seeds and of both together; 0 for what a single seed cannot tell."""
    I, S = D_IS.shape
    item_I1, seed_1S = D_IS.mean(axis=1, keepdims=True), D_IS.mean(axis=0, keepdims=True)
    of_items = S * float(item_I1.var(ddof=1))
    if S < 2:
        return of_items, 0.0, 0.0
    rest_IS = D_IS - item_I1 - seed_1S + D_IS.mean()
    return of_items, I * float(seed_1S.var(ddof=1)), float((rest_IS**2).sum() / ((I - 1) * (S - 1)))


def _quantile(alpha: float, share: float, S: int, I: int) -> float:
    """The number of standard errors that a mean is off with the chance `alpha`, on either side."""
    of_seeds = special.stdtrit(max(S - 1, 1), 1 - alpha / 2)
    return float(np.sqrt(share * of_seeds**2 + (1 - share) * special.stdtrit(I - 1, 1 - alpha / 2) ** 2))


def _p_value(errors: float, share: float, S: int, I: int) -> float:
    """The chance at which `_quantile` is `errors`; what is below 1e-12 is 1e-12."""
    if errors >= _quantile(_LEAST, share, S, I):
        return _LEAST
    found = optimize.brentq(lambda x: _quantile(math.exp(x), share, S, I) - errors, math.log(_LEAST), 0.0)
    return math.exp(found)


_LEAST = 1e-12


def mcnemar(a: pd.Series, b: pd.Series, level: float = 0.95) -> Difference:
    """McNemar's exact test for two single runs on the same items, and Agresti and Min's (2005) interval.

    It says whether these two models differ on new items; n is 1, since new seeds may differ otherwise.
    ValueError for scores that are not right or wrong (1 or 0).
    """
    both = pd.concat([a, b], axis=1, join="inner").dropna()
    x, y = both.to_numpy(float).T
    if not np.isin(both, (0, 1)).all():
        raise ValueError("mcnemar compares right and wrong: each score must be 0 or 1; use paired_items")
    N, only_a, only_b = len(both), int((x > y).sum()), int((x < y).sum())
    how = f"McNemar's exact test on {N} items of two single runs: nothing about new seeds"
    if not N:
        return Difference(NAN, NAN, NAN, NAN, 1, 0, how, level)
    table = [[int((x * y).sum()), only_a], [only_b, int(((1 - x) * (1 - y)).sum())]]
    p = float(mcnemar_test(table, exact=True).pvalue)
    centre, total = (only_a - only_b) / (N + 2), only_a + only_b + 1
    spread = math.sqrt(max(total - (only_a - only_b) ** 2 / (N + 2), 0.0)) / (N + 2)
    half = float(stats.norm.ppf((1 + level) / 2)) * spread
    return Difference((only_a - only_b) / N, centre - half, centre + half, p, 1, N, how, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; a p that is not known counts as 1 and is one of the family.

    Four lines, since statsmodels' multipletests collects garbage at each call: 0.3 s beside torch.
    """
    p = np.nan_to_num(np.asarray(p_values, dtype=float), nan=1.0)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(stepped, 1.0)[np.argsort(order)].tolist()


def _matched(a: pd.Series, b: pd.Series) -> np.ndarray:
    for one in (a, b):
        if not one.index.is_unique:
            twice = sorted(map(str, one.index[one.index.duplicated()].unique()))
            raise ValueError(f"seeds stand twice: {', '.join(twice)}; a paired test needs one run a seed")
    x, y = a.to_numpy(float), b.to_numpy(float)
    if a.index.equals(b.index):
        return x - y
    at = {seed: place for place, seed in enumerate(b.index)}
    common = [(place, at[seed]) for place, seed in enumerate(a.index) if seed in at]
    here, there = np.array(common, dtype=int).reshape(-1, 2).T
    return x[here] - y[there]


def _error(x: np.ndarray) -> float:
    """The standard error of a mean."""
    return float(x.std(ddof=1) / math.sqrt(len(x)))


def _finite(x: np.ndarray) -> np.ndarray:
    return x[np.isfinite(x)]


__all__ = ["Difference", "Interval", "holm", "interval", "mcnemar", "paired", "paired_items"]
