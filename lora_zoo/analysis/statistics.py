"""How sure: intervals over seeds, paired differences, and the correction for many of them.

    paired(dora, lora)              new seeds, the primary statement: the paired t test over common seeds
    paired_items(dora, lora)        new seeds and new items, where outcomes per example are at hand
    mcnemar(one_run, other_run)     new items for these two runs alone: nothing about new seeds

Series are indexed by seed (or item), frames are items x seeds; what both sides lack is left out. A quantity
that the data cannot give is nan, never a guess: one seed has a mean and no interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import pandas as pd
from scipy import special, stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test

NAN = float("nan")


@final
@dataclass(frozen=True)
class Interval:
    """An estimate from `n` runs with its confidence interval; nan bounds where n is too small for one."""

    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95


@final
@dataclass(frozen=True)
class Difference:
    """The first minus the second, over `n` seeds and, where items were resampled too, `items` of them."""

    estimate: float
    low: float
    high: float
    p: float
    n: int
    items: int | None
    how: str
    level: float = 0.95

    def is_resolved(self, level: float = 0.05) -> bool:
        """Whether p, as corrected, is below `level`; a p that is not known resolves nothing."""
        return bool(self.p < level)

    def reversed(self) -> "Difference":
        """The second minus the first."""
        return replace(self, estimate=-self.estimate, low=-self.high, high=-self.low)

    def corrected(self, p: float, how: str) -> "Difference":
        return replace(self, p=p, how=f"{self.how}, {how}")


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


def paired_items(
    scores_a: pd.DataFrame,
    scores_b: pd.DataFrame,
    level: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The mean of a - b for new items and new seeds: items and seeds are resampled, crossed.

    Owen (2007), "The pigeonhole bootstrap". Its standard error takes a t quantile by Satterthwaite's degrees
    of freedom, n - 1 where seeds make the noise, and the spread over seeds is enlarged by sqrt(n / (n - 1)),
    for with five seeds plain percentiles are too narrow. One seed: items alone are resampled, and `how` says
    so. Scores are items x seeds.
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
    rng = np.random.default_rng(seed)
    W_BI = rng.multinomial(I, np.full(I, 1 / I), size=resamples) / I
    W_BS = np.ones((resamples, 1))
    if S > 1:
        drawn_BS = rng.multinomial(S, np.full(S, 1 / S), size=resamples) / S
        W_BS = 1 / S + (drawn_BS - 1 / S) * math.sqrt(S / (S - 1))
    error = float(((W_BI @ D_IS) * W_BS).sum(axis=1).std(ddof=1))
    scope = f"{I} items x {S} seeds" if S > 1 else f"{I} items of one seed: nothing about new seeds"
    how = f"crossed bootstrap over {scope}"
    if error == 0:
        p = 1.0 if estimate == 0 else NAN
        return Difference(estimate, estimate, estimate, p, S, I, how, level)
    df = _degrees(D_IS)
    half = stats.t.ppf((1 + level) / 2, df) * error
    p = float(2 * stats.t.sf(abs(estimate) / error, df))
    return Difference(estimate, estimate - half, estimate + half, p, S, I, how, level)


def _degrees(D_IS: np.ndarray) -> float:
    """Satterthwaite's degrees of freedom of a mean over items and seeds."""
    I, S = D_IS.shape
    of_items = D_IS.mean(axis=1).var(ddof=1) / I
    of_seeds = D_IS.mean(axis=0).var(ddof=1) / S if S > 1 else 0.0
    below = of_items**2 / (I - 1) + (of_seeds**2 / (S - 1) if S > 1 else 0.0)
    return float((of_items + of_seeds) ** 2 / below) if below else float(I - 1)


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
    if not a.index.equals(b.index):
        common = a.index.intersection(b.index)
        a, b = a.loc[common], b.loc[common]
    return a.to_numpy(float) - b.to_numpy(float)


def _error(x: np.ndarray) -> float:
    """The standard error of a mean."""
    return float(x.std(ddof=1) / math.sqrt(len(x)))


def _finite(x: np.ndarray) -> np.ndarray:
    return x[np.isfinite(x)]
