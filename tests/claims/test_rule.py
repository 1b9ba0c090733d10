"""The rule by which claims are judged, against scipy's and statsmodels' own intervals and tests."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lora_zoo.claims.hypotheses import (
    FISHER_Z,
    LOGARITHM,
    Counted,
    OnGrid,
    Range,
    Sampled,
    above,
    below,
    between,
)
from lora_zoo.claims.rule import Status, every, judge, most, verdict

VALUES = pd.Series([0.31, 0.12, 0.45, 0.28, 0.39])
RANGES = [above(0.1), above(0.5), below(0.2), below(0.6), between(0.0, 0.7), between(0.4, 0.9)]


POSITIVE = above(0)


def sampled(claimed=POSITIVE, values=VALUES, **more):
    return Sampled("a", values, claimed, "u", **more)


@pytest.mark.parametrize("level", [0.9, 0.975])
def test_the_interval_is_student_s(level):
    low, high = stats.ttest_1samp(VALUES, 0).confidence_interval(level)
    made = sampled().interval(level)
    assert (made.estimate, made.low, made.high, made.n) == pytest.approx((VALUES.mean(), low, high, 5))


def test_ratios_are_averaged_by_their_logarithms_and_correlations_by_fisher_s_z():
    for scale, forward, back in ((LOGARITHM, np.log, np.exp), (FISHER_Z, np.arctanh, np.tanh)):
        made = sampled(scale=scale).interval(0.95)
        wanted = stats.ttest_1samp(forward(VALUES), 0).confidence_interval(0.95)
        assert (made.low, made.high) == pytest.approx(tuple(map(back, wanted)))
        assert made.estimate == pytest.approx(back(forward(VALUES).mean()))
    assert np.isfinite(sampled(values=pd.Series([1.0, 1.0, 0.9]), scale=FISHER_Z).interval(0.95).low)


def test_the_p_value_against_a_bound_is_the_t_test_s():
    for bound in (0.1, 0.25, 0.5):
        wanted = stats.ttest_1samp(VALUES, bound).pvalue
        assert sampled(above(bound)).p_value() == pytest.approx(wanted)
        assert sampled(below(bound)).p_value() == pytest.approx(wanted)


KINDS = {
    "sampled": sampled,
    "of logarithms": lambda claimed: sampled(Range(max(claimed.low, 1e-9), claimed.high), scale=LOGARITHM),
    "on a grid": lambda claimed: OnGrid("a", VALUES, claimed, "u", step=0.2),
}


@pytest.mark.parametrize("claimed", RANGES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_at_the_level_of_the_p_value_the_interval_touches_the_range(kind, claimed):
    hypothesis = KINDS[kind](claimed)
    p = hypothesis.p_value()
    narrow, wide = (hypothesis.interval(1 - p * x) for x in (1.01, 0.99))
    holds = hypothesis.claimed.holds(narrow.low, narrow.high)
    assert holds is bool(claimed.low < VALUES.mean() < claimed.high)
    assert hypothesis.claimed.holds(wide.low, wide.high) is None


def test_a_quantity_off_a_grid_has_the_rounding_s_variance():
    equal = OnGrid("a", pd.Series([2.0] * 4), above(0), "u", step=1.0).interval(0.95)
    assert equal.high - 2 == pytest.approx(stats.t.ppf(0.975, 3) * np.sqrt(1 / 12 / 4))
    uneven = OnGrid("a", VALUES, above(0), "u", step=0.3).interval(0.95)
    error = np.sqrt((VALUES.var() + 0.3**2 / 12) / 5)
    assert uneven.high - VALUES.mean() == pytest.approx(stats.t.ppf(0.975, 4) * error)


def test_counts_hold_or_fail_as_all_of_their_runs_do():
    for values, holds in (([1, 2, 3], True), ([-1, 0, 0], False), ([0, 1, 2], None)):
        (result,) = judge([Counted("a", pd.Series(values), above(0), "u")])
        assert result.holds is holds
        assert (result.interval.low, result.interval.high) == (min(values), max(values))


def test_a_range_is_open():
    assert between(0, 1).holds(0.1, 0.9) is True
    assert between(0, 1).holds(0, 0.9) is between(0, 1).holds(0.1, 1) is None
    assert between(0, 1).holds(1, 2) is between(0, 1).holds(-1, 0) is False


def test_equal_values_in_all_seeds_stay_open_unless_counted():
    (result,) = judge([sampled(values=pd.Series([1.0] * 5))])
    assert result.holds is None


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05, 0.1])
def test_several_hypotheses_are_judged_by_holm_s_procedure(shift):
    """Statsmodels rejects the same of ten, at 5 % for all of them."""
    source = np.random.default_rng(1)
    all_values = [pd.Series(source.normal(shift * i, 0.1, size=5)) for i in range(10)]
    wanted, *_ = multipletests([stats.ttest_1samp(v, 0).pvalue for v in all_values], 0.05, "holm")
    results = judge([sampled(values=v) for v in all_values])
    decided = {id(result.hypothesis.values): result.holds is not None for result in results}
    assert [decided[id(v)] for v in all_values] == wanted.tolist()
    clearest = results[0]
    assert clearest.interval.level == pytest.approx(1 - 0.05 / 10)


def test_fewer_than_three_seeds_decide_nothing():
    for kind in (sampled, lambda claimed, values: Counted("a", values, claimed, "u")):
        for n in (1, 2):
            found = verdict([kind(above(0), pd.Series([5.0, 5.001][:n]))])
            assert found.status is Status.INCONCLUSIVE and "fewer than 3 seeds" in found.reason
        assert verdict([kind(above(0), pd.Series([5.0, 5.001, 5.002]))]).status is Status.SUPPORTED


def test_what_is_missing_keeps_a_claim_from_being_supported_but_not_from_failing():
    clear, failing = sampled(), sampled(below(0))
    assert verdict([clear]).status is Status.SUPPORTED
    assert verdict([clear], ["no k"]).status is Status.INCONCLUSIVE
    assert "no k" in verdict([clear], ["no k"]).reason
    assert verdict([failing], ["no k"]).status is Status.NOT_SUPPORTED
    assert verdict([], []).status is verdict([], ["no k"]).status is Status.INCONCLUSIVE


def test_the_effect_is_that_of_the_hypothesis_that_decided():
    weak, strong = sampled(values=VALUES + 0.5), sampled(values=VALUES + 5)
    assert verdict([strong, weak]).effect.estimate == pytest.approx(VALUES.mean() + 0.5)
    failing = sampled(below(0), values=VALUES[:4])
    found = verdict([failing, strong])
    assert found.status is Status.NOT_SUPPORTED and found.n == 4
    assert found.effect.estimate == pytest.approx(VALUES[:4].mean())


@pytest.mark.parametrize(
    ("outcomes", "of_every", "of_most"),
    [
        ([True, True, True], Status.SUPPORTED, Status.SUPPORTED),
        ([True, True, None], Status.INCONCLUSIVE, Status.SUPPORTED),
        ([True, True, False], Status.NOT_SUPPORTED, Status.SUPPORTED),
        ([True, False], Status.NOT_SUPPORTED, Status.NOT_SUPPORTED),
        ([True, None], Status.INCONCLUSIVE, Status.INCONCLUSIVE),
        ([False, None, None], Status.NOT_SUPPORTED, Status.INCONCLUSIVE),
        ([], Status.INCONCLUSIVE, Status.INCONCLUSIVE),
    ],
)
def test_every_and_most(outcomes, of_every, of_most):
    assert every(outcomes) is of_every and most(outcomes) is of_most


@pytest.mark.parametrize("status", [Status.UNTUNED, Status.BUSY])
def test_a_doubt_about_a_cell_undoes_a_verdict_and_says_which(status):
    for counted in (verdict([sampled()]), verdict([sampled(below(0))])):
        found = counted.doubted({"the reason": status.value})
        assert found.status is status and found.effect == counted.effect
        assert found.reason.startswith(f"not counted ({counted.status}): the reason; ")
    kept = verdict([sampled()], ["no k"]).doubted({"the reason": status.value})
    assert kept.status is Status.INCONCLUSIVE and kept.reason.startswith("the reason; ")
    assert verdict([sampled()]).doubted({}) == verdict([sampled()])
