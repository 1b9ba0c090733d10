"""Successive halving over made-up learning curves: the budget, the edges, and runs that diverge."""

import math

import pytest

from lora_zoo.analysis.halving import Trial, grid, halve, rungs

RATES = grid(0.02)


class Curves:
    """Validation scores that peak at a rate of the cell's own; above `limit` a run diverges."""

    def __init__(self, *peaks: float, limit: float = math.inf) -> None:
        self.peaks, self.limit, self.known, self.rounds = peaks, limit, {}, []

    def launch(self, trials: list[Trial]) -> None:
        self.rounds.append(trials)
        for t in trials:
            score = 1 - abs(math.log2(t.rate / self.peaks[t.cell])) / 10 - 1 / t.steps
            self.known[t] = math.nan if t.rate > self.limit else score

    def halve(self, budget: int = 2400, **how):
        return halve(len(self.peaks), RATES, budget, launch=self.launch, read=lambda: self.known, **how)


def test_every_cell_spends_the_same_steps_and_finds_its_own_rate():
    made = Curves(0.02, 0.005, 0.0025 / 4, 0.64)
    found = made.halve()
    assert [one.rate for one in found[:2]] == [0.02, 0.005]
    assert {one.steps for one in found} == {2400}
    assert [len(trials) for trials in made.rounds] == [4 * 8, 4 * 4, 4 * 2]
    assert {t.steps for t in made.rounds[-1]} == {400} == {2400 // 3 // 2}


def test_the_edges_are_extended_on_both_sides_and_the_last_is_said():
    low, high = Curves(min(RATES) / 4, max(RATES) * 2).halve()
    assert low.rate == pytest.approx(min(RATES) / 4) and low.edge == "least"
    assert "the least rate tried: a better may lie beyond" in str(low)
    assert high.rate == pytest.approx(max(RATES) * 2) and high.edge == ""
    assert "from 0.00125 to 0.64; 2,400 steps in 14 runs" in str(high)


def test_divergence_is_the_worst_score():
    (one,) = Curves(10.0, limit=0.03).halve()
    assert one.rate == 0.02 and "diverged" in str(one)
    assert all(math.isnan(score) == (rate > 0.03) for (rate, _), score in one.scores.items())
    (dead,) = Curves(0.02, limit=0).halve()
    assert dead.rate < min(RATES), "where all diverge, smaller ones are tried"


def test_less_is_better_where_that_is_said():
    scores = {}
    found = halve(
        1, RATES, 2400, launch=lambda ts: scores.update({t: (math.log(t.rate / 0.08)) ** 2 for t in ts}),
        read=lambda: scores, better="lower",
    )  # fmt: skip
    assert found[0].rate == 0.08


def test_what_has_ended_is_not_run_again_and_what_never_ends_is_told():
    made = Curves(0.02)
    first = made.halve()
    made.rounds.clear()
    assert made.halve() == first and not made.rounds
    with pytest.raises(RuntimeError, match="8 of 8 runs came to no end"):
        halve(1, RATES, 2400, launch=lambda trials: None, read=dict)


def test_mistakes():
    with pytest.raises(ValueError, match="a budget of 20 steps is too small for 8 rates; give 24"):
        rungs(8, 20)
    with pytest.raises(ValueError, match="at least 3 learning rates; got 2"):
        halve(1, [0.1, 0.2], 100, launch=print, read=dict)
    with pytest.raises(ValueError, match="a grid needs a middle above 0"):
        grid(0.0)
