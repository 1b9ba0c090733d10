"""Successive halving over made-up learning curves: the budget, the edges, and runs that diverge."""

import math

import pytest

from lora_zoo.analysis.halving import Trial, Unended, grid, halve, rungs

RATES = grid(0.02)


class Curves:
    """Validation scores that peak at a rate of the cell's own; above `limit` a run diverges."""

    def __init__(self, *peaks: float, limit: float = math.inf) -> None:
        self.peaks, self.limit, self.known, self.rounds = peaks, limit, {}, []

    def launch(self, trials: list[Trial]) -> None:
        self.rounds.append(trials)
        for t in trials:
            score = 1 - abs(math.log2(t.rate / self.peaks[t.cell])) / 10 - 1 / t.steps
            self.known[t] = () if t.rate > self.limit else (score,)

    def halve(self, budget: int = 2400):
        return halve([RATES] * len(self.peaks), budget, launch=self.launch, read=lambda trials: self.known)


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
    assert "from 0.00125 to 0.64, 2,400 steps in 14 runs" in str(high)


def test_divergence_is_the_worst_score():
    (one,) = Curves(10.0, limit=0.03).halve()
    assert one.rate == 0.02 and "diverged" in str(one)
    assert all((score == ()) == (rate > 0.03) for (rate, _), score in one.scores.items())
    (dead,) = Curves(0.02, limit=0).halve()
    assert dead.rate < min(RATES), "where all diverge, smaller ones are tried"


def test_cells_have_grids_of_their_own_and_equals_are_told_apart_by_the_next_number():
    made = Curves(0.02, 0.002)

    def read(trials):
        return {t: (0.0, *score) for t, score in made.known.items()}

    found = halve([RATES, grid(0.002)], 2400, launch=made.launch, read=read)
    assert [one.rate for one in found] == [0.02, 0.002]


def test_a_cell_of_which_a_trial_failed_has_no_rate_and_the_others_go_on():
    made = Curves(0.02, 0.02)

    def read(trials):
        return {t: None if t.cell == 1 and t.rate == 0.08 else score for t, score in made.known.items()}

    one, lost = halve([RATES, RATES], 2400, launch=made.launch, read=read)
    assert one.rate == 0.02 and math.isnan(lost.rate) and str(lost) == "none: a trial failed"
    assert [len(trials) for trials in made.rounds] == [16, 4, 2]


def test_what_has_ended_is_not_run_again_and_what_never_ends_is_told():
    made = Curves(0.02)
    first = made.halve()
    made.rounds.clear()
    assert made.halve() == first and not made.rounds
    with pytest.raises(Unended, match="8 of 8 runs came to no end"):
        halve([RATES], 2400, launch=lambda trials: None, read=lambda trials: {})


def test_mistakes():
    with pytest.raises(ValueError, match="a budget of 20 steps is too small for 8 rates; give 24"):
        rungs(8, 20)
    with pytest.raises(ValueError, match=r"at least 3; got \{2\}"):
        halve([[0.1, 0.2]], 100, launch=print, read=print)
    with pytest.raises(ValueError, match="a grid needs a middle above 0"):
        grid(0.0)
