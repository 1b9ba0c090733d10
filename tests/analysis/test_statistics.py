"""Statistics against closed forms of scipy and statsmodels, and against what they promise in simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from lora_zoo.analysis.power import detectable, power_of, seeds_needed
from lora_zoo.analysis.statistics import Difference, holm, interval, mcnemar, paired, paired_items

RNG = np.random.default_rng(0)
A = pd.Series(RNG.normal(0.8, 0.1, 5), index=[3, 1, 4, 0, 2])
B = pd.Series(RNG.normal(0.7, 0.1, 6), index=range(6))


def test_an_interval_is_that_of_student() -> None:
    found = interval(A, level=0.9)
    low, high = stats.t.interval(0.9, 4, loc=A.mean(), scale=stats.sem(A))
    assert (found.estimate, found.low, found.high) == pytest.approx((A.mean(), low, high))
    assert (found.n, found.level) == (5, 0.9)


@pytest.mark.parametrize(("values", "n"), [([], 0), ([0.7], 1), ([0.7, math.nan], 1)])
def test_one_seed_has_no_interval(values: list[float], n: int) -> None:
    found = interval(values)
    assert found.n == n and math.isnan(found.low) and math.isnan(found.high)
    assert found.estimate == pytest.approx(0.7 if n else math.nan, nan_ok=True)


def test_pairs_are_matched_by_seed_and_not_by_place() -> None:
    found, b = paired(A, B), B[A.index]
    known = stats.ttest_rel(A, b)
    assert found.p == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert (found.estimate, found.n, found.items) == (pytest.approx((A - b).mean()), 5, None)
    assert (found.reversed().estimate, found.reversed().low) == (-found.estimate, -found.high)


def test_a_shift_that_seeds_share_costs_no_power() -> None:
    shift = pd.Series(np.random.default_rng(1).normal(0, 10, 5))
    a, b = shift + 0.1 + A.to_numpy() * 0.1, shift + B[:5].to_numpy() * 0.1
    assert paired(a, b).is_resolved()
    assert stats.ttest_ind(a, b).pvalue > 0.9


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (5, 2 / 32)])
def test_differences_that_do_not_vary_are_no_proof(n: int, p: float) -> None:
    """A t test would give p = 0 for two seeds that happen to differ by the same number of items."""
    a = pd.Series(np.linspace(0.3, 0.4, n))
    found = paired(a + 0.02, a)
    assert found.p == pytest.approx(p) and math.isnan(found.low) and not found.is_resolved()
    assert paired(a, a).p == 1


def test_nothing_is_said_of_one_common_seed() -> None:
    found = paired(pd.Series([0.9, 0.8]), pd.Series([0.1, 0.2], index=[1, 2]))
    assert found.n == 1 and found.estimate == pytest.approx(0.7)
    assert math.isnan(found.p) and math.isnan(found.low) and not found.is_resolved()
    assert "no test" in found.how


def test_a_seed_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="seeds stand twice: 3"):
        paired(pd.Series([1.0, 2.0], index=[3, 3]), A)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    a = pd.Series([1] * 60 + [0] * 40)
    b = pd.Series([1] * 50 + [0] * 48 + [1] * 2)
    found = mcnemar(a, b)
    assert found.p == pytest.approx(stats.binomtest(2, 12).pvalue)
    assert found.p == pytest.approx(mcnemar_test([[50, 10], [2, 38]], exact=True).pvalue)
    assert (found.estimate, found.n, found.items) == (pytest.approx(0.08), 1, 100)
    assert found.low > 0 and "nothing about new seeds" in found.how
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar(a * 0.5, b)


def test_mcnemar_matches_items_by_name() -> None:
    a, b = pd.Series([1, 0, 1], index=list("xyz")), pd.Series([1, 0, 1, 0], index=list("zyxw"))
    assert mcnemar(a, b).estimate == 0 and mcnemar(a, b).items == 3


def test_the_interval_of_two_single_runs_covers() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        kinds = rng.choice(4, 150, p=[0.6, 0.1, 0.05, 0.25])  # both right, only a, only b, none
        found = mcnemar(pd.Series((kinds <= 1) * 1), pd.Series(((kinds == 0) | (kinds == 2)) * 1))
        hits += found.low <= 0.05 <= found.high
    assert 0.92 < hits / 400 < 0.98


def _scores(
    rng: np.random.Generator, items: int, seeds: int, of_items: float, of_seeds: float
) -> pd.DataFrame:
    """A true difference of zero, with effects of items, of seeds and of both together."""
    noise = of_items * rng.normal(size=(items, 1)) + of_seeds * rng.normal(size=(1, seeds))
    return pd.DataFrame(noise + 0.3 * rng.normal(size=(items, seeds)))


LAYOUTS = [(0.3, 0.3, 5), (1.0, 0.02, 5), (0.1, 0.5, 3), (0.0, 0.0, 3), (0.0, 0.0, 8)]


@pytest.mark.parametrize(("of_items", "of_seeds", "seeds"), LAYOUTS)
def test_items_and_seeds_cover_new_ones_and_are_no_wider_than_needed(
    of_items: float, of_seeds: float, seeds: int
) -> None:
    """Wider than the normal interval of the known variance by the t quantile of the seeds, at the most."""
    rng, zero, hits, halves = np.random.default_rng(11), 0.0, 0, []
    for _ in range(400):
        scores = _scores(rng, 60, seeds, of_items, of_seeds)
        found = paired_items(scores, scores * 0)
        hits += found.low <= zero <= found.high
        halves.append((found.high - found.low) / 2)
        assert (found.p > 0.05) == (found.low <= zero <= found.high)
    assert 0.93 < hits / 400 <= 1
    needed = math.sqrt(of_items**2 / 60 + of_seeds**2 / seeds + 0.3**2 / (60 * seeds))
    assert np.mean(halves) < 1.15 * needed * stats.t.ppf(0.975, seeds - 1)


def test_items_alone_would_be_far_too_sure() -> None:
    """A table over one seed's items says nothing of new seeds: most of its intervals miss the truth."""
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(200):
        scores = _scores(rng, 60, 1, 0.3, 0.3)
        found = paired_items(scores, scores * 0)
        hits += found.low <= 0 <= found.high
    assert hits / 200 < 0.6
    assert found.n == 1 and "nothing about new seeds" in found.how


@pytest.mark.parametrize("together", [0.0, 1.0])
def test_items_and_seeds_have_the_variance_of_the_two_way_layout(together: float) -> None:
    """s_I²/I + s_S²/S + s_IS²/(I S): what both make together counts once, and not three times."""
    rng = np.random.default_rng(2)
    effects = rng.normal(size=(80, 1)) + 0.5 * rng.normal(size=(1, 6))
    D = pd.DataFrame(effects + together * rng.normal(size=(80, 6)))
    fit = np.linalg.lstsq  # the components by least squares of an additive model
    design = np.hstack([np.kron(np.eye(80), np.ones((6, 1))), np.kron(np.ones((80, 1)), np.eye(6))])
    rest = D.to_numpy().ravel() - design @ fit(design, D.to_numpy().ravel(), rcond=None)[0]
    of_both = float(rest @ rest) / (79 * 5) / (80 * 6)
    variance = D.mean(axis=1).var() / 80 + D.mean(axis=0).var() / 6 - of_both
    found = paired_items(D, D * 0)
    assert _in_errors(found, D) == pytest.approx(math.sqrt(variance), rel=1e-6)


def _in_errors(found: Difference, D: pd.DataFrame) -> float:
    """The standard error behind an interval whose quantile mixes those of items and of seeds."""
    of_items, of_seeds = D.mean(axis=1).var() / len(D), D.mean(axis=0).var() / D.shape[1]
    by_items, by_seeds = (stats.t.ppf(0.975, n - 1) ** 2 for n in D.shape)
    squared = (of_items * by_items + of_seeds * by_seeds) / (of_items + of_seeds)
    return (found.high - found.low) / 2 / math.sqrt(squared)


def test_a_p_value_of_items_or_of_seeds_alone_is_that_of_student() -> None:
    """If one of the two makes all the noise, its degrees of freedom alone count."""
    rng = np.random.default_rng(8)
    for D, n in (
        (pd.DataFrame(np.tile(rng.normal(0.2, 1, (50, 1)), (1, 4))), 50),
        (pd.DataFrame(np.tile(rng.normal(0.8, 1, (1, 4)), (50, 1))), 4),
    ):
        found = paired_items(D, D * 0)
        error = (found.high - found.low) / 2 / stats.t.ppf(0.975, n - 1)
        assert found.p == pytest.approx(2 * stats.t.sf(abs(found.estimate) / error, n - 1), rel=1e-6)
        assert error == pytest.approx(
            D.to_numpy().ravel()[:: 4 if n == 50 else 1][:n].std(ddof=1) / n**0.5, rel=1e-6
        )


def test_items_and_seeds_are_matched_by_name() -> None:
    a = _scores(np.random.default_rng(0), 30, 4, 1, 1)
    shuffled = a.sample(frac=1, random_state=1)[[2, 0, 3, 1]]
    found = paired_items(a, shuffled)
    assert (found.estimate, found.p, found.n, found.items) == (0, 1, 4, 30)
    assert paired_items(a, a.iloc[:1] + 1).how.endswith("no test")


def test_holm_is_the_step_down_correction() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([0.01, math.nan]) == pytest.approx([0.02, 1.0])  # an unknown p is one of the family
    assert holm([]) == []


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("effect", [0.2, 1.0, 4.0])
def test_seeds_needed_is_the_least_number_with_the_power(effect: float, power: float) -> None:
    n = seeds_needed(effect, 1.0, power)
    assert power_of(effect, 1.0, n) >= power > power_of(effect, 1.0, n - 1)
    if n > 3:
        exact = TTestPower().solve_power(effect_size=effect, alpha=0.05, power=power)
        assert n == math.ceil(exact)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_detectable_inverts_seeds_needed(n: int) -> None:
    smallest = detectable(n, 0.02)
    assert power_of(smallest, 0.02, n) == pytest.approx(0.8, abs=1e-6)
    assert seeds_needed(smallest * 1.0001, 0.02) == n
    assert detectable(n, 0.04) == pytest.approx(2 * smallest)


def test_power_is_what_simulation_finds() -> None:
    rng = np.random.default_rng(4)
    D = rng.normal(0.03, 0.02, size=(4000, 5))
    share = (stats.ttest_1samp(D, 0, axis=1).pvalue < 0.05).mean()
    assert power_of(0.03, 0.02, 5) == pytest.approx(share, abs=0.02)


def test_power_of_one_seed_is_none() -> None:
    assert power_of(9.0, 1.0, 1) == 0 and detectable(1, 1.0) == math.inf


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.0, 1.0), "difference is 0"),
        ((0.1, 0.0), "sd must be above 0"),
        ((0.1, 1.0, 1.5), "power must lie between"),
        ((0.1, 1.0, 0.8, 0), "level must lie between"),
        ((1e-5, 1.0), "more than 10000 seeds"),
    ],
)
def test_questions_without_an_answer_are_refused(arguments: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        seeds_needed(*arguments)
