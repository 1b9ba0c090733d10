"""rliable's aggregates: definitions against plain numpy, and intervals against what they promise."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lora_zoo.analysis.aggregates import improvement, iqm, mean, median, optimality_gap, profile

X = pd.DataFrame(np.random.default_rng(0).uniform(size=(6, 3)), columns=["a", "b", "c"])


def test_estimates_are_those_of_the_paper() -> None:
    assert mean(X).estimate == pytest.approx(X.to_numpy().mean())
    assert median(X).estimate == pytest.approx(np.median(X.mean()))
    middle = np.sort(X.to_numpy().ravel())[4:14]  # a quarter of 18 runs is 4.5: four go on each side
    assert iqm(X).estimate == pytest.approx(middle.mean())
    assert optimality_gap(X, best=0.5).estimate == pytest.approx(np.maximum(0.5 - X.to_numpy(), 0).mean())
    assert mean(X).n == 6


def test_improvement_is_mann_whitneys_statistic_over_tasks() -> None:
    Y = X.sample(4, random_state=1).round(1)
    X_rounded = X.round(1)
    known = [stats.mannwhitneyu(X_rounded[t], Y[t]).statistic / (6 * 4) for t in X]
    assert improvement(X_rounded, Y).estimate == pytest.approx(np.mean(known))
    assert improvement(X + 2, X).estimate == 1 and improvement(X, X).estimate == pytest.approx(0.5)
    assert improvement(X, Y).estimate == pytest.approx(1 - improvement(Y, X).estimate)


def test_a_profile_is_the_share_above_each_threshold() -> None:
    found = profile(X, [-1, 0.5, 2])
    assert list(found["share"]) == [1, pytest.approx((X > 0.5).to_numpy().mean()), 0]
    assert ((found["low"] <= found["share"]) & (found["share"] <= found["high"])).all()


def test_tasks_are_resampled_apart() -> None:
    """Two tasks at 0 and 1 without noise: a bootstrap that mixed them would find a spread."""
    still = pd.DataFrame({"easy": np.ones(5), "hard": np.zeros(5)})
    for of in (mean, median, iqm):
        found = of(still)
        assert (found.low, found.estimate, found.high) == (0.5, 0.5, 0.5)


def test_the_interval_of_the_mean_is_that_of_the_whole_bootstrap() -> None:
    """Three runs of one task: all 27 resamples can be listed."""
    one = pd.DataFrame({"a": [0.0, 1.0, 5.0]})
    every = [np.mean(draw) for draw in itertools.product(one["a"], repeat=3)]
    found = mean(one, level=0.8)
    low, high = np.quantile(every, [0.1, 0.9], method="inverted_cdf")
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_intervals_draw_from_no_global_stream() -> None:
    found = []
    for seed in (0, 1):
        np.random.seed(seed)
        found.append((iqm(X), improvement(X, X + 0.1)))
    assert found[0] == found[1]


def test_coverage_is_what_the_docstring_says() -> None:
    """Percentiles of five runs: nominally 95 %, in truth well below; of forty runs close to it."""
    rng = np.random.default_rng(9)
    for runs, low, high in ((5, 0.78, 0.91), (40, 0.9, 0.98)):
        hits = 0
        for _ in range(120):
            found = mean(pd.DataFrame(rng.normal(size=(runs, 1))))
            hits += found.low <= 0 <= found.high
        assert low < hits / 120 < high


def test_one_run_has_no_interval() -> None:
    assert math.isnan(mean(X[:1]).low) and math.isnan(improvement(X[:1], X).high)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (pd.DataFrame(), "a run of every task"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": [math.nan, math.nan]}), "a run of every task"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, math.nan]}), "a: 2, b: 1"),
    ],
)
def test_scores_that_leave_a_task_out_are_refused(scores: pd.DataFrame, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mean(scores)


def test_improvement_needs_a_common_task() -> None:
    with pytest.raises(ValueError, match="there is none"):
        improvement(X[["a"]], X[["b"]])
