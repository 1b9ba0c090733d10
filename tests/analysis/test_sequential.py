"""Decisions under a look after every seed: their error by simulation, their verdicts by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lora_zoo.analysis.boundaries import FIRST, critical, spent
from lora_zoo.analysis.sequential import decide, decide_all

MOST = 20
RISING = [0.9, 1.0, 1.1, 1.0, 0.95, 1.05, 1.0, 1.02]


def t_of(X_PN: np.ndarray) -> np.ndarray:
    """|t| of paths x looks, by scipy."""
    return np.stack([np.abs(stats.ttest_1samp(X_PN[:, :n], 0, axis=1).statistic) for n in LOOKS], axis=1)


LOOKS = range(FIRST, MOST + 1)
NOISE = np.random.default_rng(7).standard_normal((40_000, MOST))


def off(share: float, expected: float, paths: int) -> float:
    """How many standard deviations of the binomial a share is off."""
    return abs(share - expected) / math.sqrt(expected * (1 - expected) / paths)


@pytest.mark.parametrize("level", [0.05, 0.005])
def test_the_error_is_spent_as_planned_at_every_look(level):
    crossed = t_of(NOISE) >= critical(level, MOST)
    for n in (6, 10, 15, MOST):
        by_n = crossed[:, : n - FIRST + 1].any(axis=1).mean()
        assert off(by_n, level * spent(n, MOST), len(NOISE)) < 4, n


@pytest.mark.parametrize(("law", "most"), [("uniform", 0.07), ("ties", 0.07), ("binomial", 0.06)])
def test_bounded_and_tied_differences_hold_the_error_nearly(law, most):
    source, shape = np.random.default_rng(1), (1500, MOST)
    X_PN = {
        "uniform": lambda: source.uniform(-1, 1, shape),
        "ties": lambda: source.integers(-1, 2, shape),
        "binomial": lambda: source.binomial(10, 0.9, shape) - source.binomial(10, 0.9, shape),
    }[law]()
    wrong = np.mean([not decide(x, most=MOST).is_open for x in X_PN])
    assert wrong < most + 3 * math.sqrt(most / len(X_PN))


def test_a_family_keeps_its_error():
    scores = np.random.default_rng(3).standard_normal((3, 1500, MOST))
    wrong = 0
    for path in range(1500):
        pairs = {(i, j): scores[i, path] - scores[j, path] for i, j in itertools.combinations(range(3), 2)}
        wrong += any(not d.is_open for d in decide_all(pairs, most=MOST).values())
    assert wrong / 1500 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


def test_the_intervals_hold_together():
    """Over all looks at once, and with a margin: a false verdict of any kind is as rare."""
    margin, truth = 0.5, 0.5  # on the edge: neither better nor same
    verdicts = [decide(x + truth, margin=margin, most=MOST).verdict for x in 0.2 * NOISE[:2000]]
    wrong = sum(verdict != "open" for verdict in verdicts) / len(verdicts)
    assert off(wrong, 0.05, len(verdicts)) < 4


def test_it_sees_more_than_the_anytime_valid_mixture():
    """At one standard deviation; the mixture's e-process of spread 1 in its closed form."""
    t, n = t_of(NOISE[:4000] + 1), np.array(LOOKS)
    e = (1 + n) ** -0.5 * ((1 + t**2 / (n - 1)) / (1 + t**2 / ((n - 1) * (1 + n)))) ** (n / 2)
    mixture, boundary = (e >= 20).any(axis=1).mean(), (t >= critical(0.05, MOST)).any(axis=1).mean()
    assert boundary > 0.96 and mixture < 0.9


def test_one_look_is_the_t_test():
    assert critical(0.05, FIRST) == pytest.approx([stats.t.ppf(0.975, FIRST - 1)])
    d = decide([1.0, 1.2, 1.1], most=FIRST)
    assert (d.low, d.high) == pytest.approx(stats.ttest_1samp([1.0, 1.2, 1.1], 0).confidence_interval(0.95))


@pytest.mark.parametrize(
    ("shift", "margin", "better", "verdict"),
    [
        (0.0, 0.0, "higher", "better"),
        (0.0, 0.0, "lower", "worse"),
        (-2.0, 0.0, "higher", "worse"),
        (-2.0, 0.0, "lower", "better"),
        (-1.0, 0.5, "higher", "same"),
        (-1.0, 0.0, "higher", "open"),
        (0.0, 1.0, "higher", "open"),
    ],
)
def test_verdicts(shift, margin, better, verdict):
    found = decide([x + shift for x in RISING], margin=margin, better=better)
    assert found.verdict == verdict
    assert (found.after is None) == (verdict == "open") == found.is_open
    assert found.low < found.estimate < found.high
    assert found.estimate == pytest.approx(np.mean(RISING) + shift)


def test_what_is_decided_stays_decided():
    found = decide(RISING)
    assert found.after < len(RISING) and decide(RISING[: found.after - 1]).is_open
    later = decide([*RISING, -9.0, -9.0])
    assert (later.verdict, later.after) == ("better", found.after)
    assert str(found) == f"better after {found.after} seeds"
    widths = [decide(RISING[:n]) for n in range(2, len(RISING))]
    assert math.isinf(widths[0].high)
    assert all(a.high - a.low >= b.high - b.low for a, b in itertools.pairwise(widths))


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=12), st.floats(-30, 30))
def test_the_interval_of_what_is_open_holds_its_estimate(differences: list[float], outlier: float) -> None:
    found = decide([*differences, outlier])
    assert not found.is_open or found.low <= found.estimate <= found.high


def test_equal_differences_go_by_the_sign_test():
    """Seven of one sign are as rare as 2^-6, and 0.025 is half of the level."""
    assert decide([0.01] * 6).is_open
    assert (decide([0.01] * 7).verdict, decide([0.01] * 7).after) == ("better", 7)
    assert decide([0.01] * 7, margin=0.02).verdict == "same"
    assert decide([0.0] * 20).is_spent
    assert decide([0.01] * 7, level=0.005).is_open


def test_seeds_without_a_value_and_beyond_the_most_do_not_count():
    assert decide([math.nan, *RISING]) == decide(RISING)
    assert decide([0.1, -0.1, 0.1, *[5.0] * 9], most=3).is_spent
    assert decide([]).n == 0 and decide([]).is_open


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"margin": -0.1}, "margin must be 0 or more"),
        ({"margin": math.nan}, "margin must be 0 or more"),
        ({"level": 0}, "level must lie between 0 and 1"),
        ({"most": 2}, "most must be 3 seeds or more"),
        ({"better": "up"}, "better must be higher or lower"),
    ],
)
def test_mistakes(how, says):
    with pytest.raises(ValueError, match=says):
        decide(RISING, **how)
