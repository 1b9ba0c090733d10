"""One number over several tasks, rliable's way: Agarwal et al. (2021), "Deep Reinforcement Learning at the
Edge of the Statistical Precipice", arXiv:2108.13264.

Scores are frames of runs (rows, one a seed) x tasks (columns), on scales that can be averaged. Intervals
come from the stratified bootstrap: the runs of each task are resampled apart, which is scipy's bootstrap of
several samples. The paper's own library is not used: rliable 1.2 (the latest) passes `random_state` in a way
that today's arch (7.2) refuses, and draws from numpy's global stream whatever state it is given.

Percentile intervals of few runs are too narrow (with five, a nominal 95 % covers about 85 %, as the tests
measure); for a statement over seeds of one task take `statistics.interval`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lora_zoo.analysis.estimates import NAN, Interval

Statistic = Callable[[np.ndarray], np.ndarray]
"""(…, task, run) -> (…)"""
RESAMPLES = 2000


def mean(scores: pd.DataFrame, level: float = 0.95) -> Interval:
    """The mean of the tasks' means."""
    return _interval(lambda X_TK: X_TK.mean(axis=(-2, -1)), scores, level)


def median(scores: pd.DataFrame, level: float = 0.95) -> Interval:
    """The median of the tasks' means."""
    return _interval(lambda X_TK: np.median(X_TK.mean(axis=-1), axis=-1), scores, level)


def iqm(scores: pd.DataFrame, level: float = 0.95) -> Interval:
    """The mean of the middle half of all runs of all tasks."""
    return _interval(_middle_half, scores, level)


def optimality_gap(scores: pd.DataFrame, best: float = 1.0, level: float = 0.95) -> Interval:
    """The mean distance of the runs below `best`; what is above it counts as `best`."""
    return _interval(lambda X_TK: best - np.minimum(X_TK, best).mean(axis=(-2, -1)), scores, level)


def improvement(a: pd.DataFrame, b: pd.DataFrame, level: float = 0.95) -> Interval:
    """The probability that a run of `a` beats one of `b` on a task, ties half, averaged over common tasks."""
    tasks = a.columns.intersection(b.columns)
    if tasks.empty:
        raise ValueError("improvement needs a task that both have; there is none")
    samples = [*_samples(a[tasks]), *_samples(b[tasks])]

    def probability(*resampled: np.ndarray) -> np.ndarray:
        pairs = zip(resampled[: len(tasks)], resampled[len(tasks) :], strict=True)
        return np.mean([_beats(x, y) for x, y in pairs], axis=0)

    return _bootstrapped(probability, samples, level)


def profile(scores: pd.DataFrame, thresholds: Iterable[float], level: float = 0.95) -> pd.DataFrame:
    """The performance profile: the share of runs above each threshold, averaged over tasks.

    Columns threshold, share, low, high; the bounds hold at each threshold by itself.
    """
    found = [(t, _interval(_Above(t), scores, level)) for t in thresholds]
    bounds = [(t, share.estimate, share.low, share.high) for t, share in found]
    return pd.DataFrame(bounds, columns=["threshold", "share", "low", "high"])


@dataclass(frozen=True)
class _Above:
    threshold: float

    def __call__(self, X_TK: np.ndarray) -> np.ndarray:
        return (self.threshold < X_TK).mean(axis=(-2, -1))


def _middle_half(X_TK: np.ndarray) -> np.ndarray:
    return stats.trim_mean(X_TK.reshape(*X_TK.shape[:-2], -1), 0.25, axis=-1)


def _beats(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(x > y) + P(x = y) / 2 over all pairs of the last axes."""
    return (np.sign(x[..., :, None] - y[..., None, :]).mean(axis=(-2, -1)) + 1) / 2


def _interval(statistic: Statistic, scores: pd.DataFrame, level: float) -> Interval:
    samples = _samples(scores)
    if len({len(x) for x in samples}) > 1:
        runs = ", ".join(f"{task}: {len(x)}" for task, x in zip(scores.columns, samples, strict=True))
        raise ValueError(
            f"every task must have the same number of runs, else one counts for more; got {runs}"
        )
    return _bootstrapped(lambda *tasks: statistic(np.stack(tasks, axis=-2)), samples, level)


def _samples(scores: pd.DataFrame) -> list[np.ndarray]:
    samples = [scores[task].dropna().to_numpy(float) for task in scores.columns]
    if not samples or not all(len(x) for x in samples):
        raise ValueError("scores must hold a run of every task; use a frame of runs x tasks")
    return samples


def _bootstrapped(statistic: Callable[..., np.ndarray], samples: list[np.ndarray], level: float) -> Interval:
    estimate, n = float(statistic(*samples)), min(map(len, samples))
    if n < 2:
        return Interval(estimate, NAN, NAN, n, level)
    drawn = stats.bootstrap(
        samples,
        lambda *s, axis: statistic(*(np.moveaxis(x, axis, -1) for x in s)),
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(estimate, float(drawn.low), float(drawn.high), n, level)
