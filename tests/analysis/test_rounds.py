"""Rounds of seeds with made-up scores: who gets more, what stops each cell, and what a table says of it."""

import math

import pytest

from lora_zoo.analysis.rounds import Plan, Rounds, Seen, families

NOISE = [0.0, 0.3, -0.2, 0.1, -0.1, 0.2, -0.3, 0.15, -0.05, 0.25, -0.15, 0.05]


class Machine:
    """Runs that take a minute each and whose score is the cell's level and the noise of cell and seed."""

    def __init__(self, *levels: float, better: str = "higher", breaks_at: int | None = None) -> None:
        self.levels, self.better, self.breaks_at = levels, better, breaks_at
        self.values: dict[tuple[int, int], float] = {}
        self.rounds: list[list[tuple[int, int]]] = []
        self.now = 0.0

    def launch(self, jobs: list[tuple[int, int]]) -> None:
        self.rounds.append(jobs)
        for cell, seed in jobs if len(self.rounds) != self.breaks_at else jobs[:-1]:
            noise = NOISE[(seed * (cell + 1) + cell) % len(NOISE)]
            self.values[cell, seed] = self.levels[cell] + noise
            self.now += 60

    def read(self) -> Seen:
        return Seen(dict(self.values), dict.fromkeys(self.values, 60.0), self.better)

    def run(self, keys, plan, **how):
        return Rounds(keys, plan).run(self.launch, self.read, clock=lambda: self.now, **how)


def variants(*names: str) -> list[dict[str, str]]:
    return [{"variant": name} for name in names]


def test_seeds_go_where_a_comparison_is_open():
    machine = Machine(5.0, 0.0, 5.0)
    lora, far, near = machine.run(variants("lora", "far", "near"), Plan(most=8, against="variant=lora"))
    assert machine.rounds[0] == [(0, 0), (1, 0), (2, 0)], "one run each shows what they cost"
    assert (far.seeds, near.seeds, lora.seeds) == (far.decision.after, 8, 8) and far.seeds < 8
    assert far.stopped == f"decided after {far.seeds} seeds: worse than variant=lora"
    assert near.stopped == "open at the greatest number of seeds (8)" == lora.stopped
    assert far.reference == near.reference == 0 and lora.reference is None
    assert far.decision.high < 0


def test_each_is_compared_with_the_best_and_the_best_with_all():
    machine = Machine(0.0, 6.0, 3.0)
    one, best, two = machine.run(variants("a", "b", "c"), Plan())
    assert best.stopped == "decided against each of 2 others" and best.reference is None
    assert [one.reference, two.reference] == [1, 1]
    assert one.stopped.endswith("worse than variant=b") and one.decision.high < 0
    assert one.decision.level == pytest.approx(0.05 / 3), "the best is chosen by the scores: all pairs"


def test_less_is_better_where_the_metric_says_so():
    machine = Machine(0.0, 6.0, better="lower")
    best, other = machine.run(variants("a", "b"), Plan())
    assert best.stopped == "decided against the other"
    assert other.stopped.endswith("worse than variant=a") and other.decision.low > 0


def test_a_margin_decides_that_two_are_the_same():
    machine = Machine(1.0, 1.0)
    _, same = machine.run(variants("lora", "same"), Plan(against="variant=lora", margin=1.0))
    assert "the same as variant=lora" in same.stopped and same.seeds < 20


def test_time_ends_the_rounds_before_it_is_over():
    """Two cells at a minute a run: six minutes for the first three seeds, two for each further one."""
    plan = Plan(hours=9 / 60, against="variant=a")
    machine = Machine(1.0, 1.0)
    ends = machine.run(variants("a", "b"), plan)
    assert machine.now == 8 * 60 and [end.stopped for end in ends] == ["open: time (0.15 hours)"] * 2
    assert machine.run(variants("a", "b"), plan, spent=8 * 60.0) == ends and machine.now == 8 * 60
    machine.run(variants("a", "b"), Plan(against="variant=a", most=6, hours=1), spent=0.0)
    assert machine.now == 12 * 60, "more hours go on"


def test_what_was_killed_goes_on_and_what_is_finished_does_nothing():
    plan, keys = Plan(most=6, against="variant=a"), variants("a", "b")
    machine = Machine(1.0, 1.0, breaks_at=3)
    assert [end.stopped for end in machine.run(keys, plan)] == ["open: interrupted"] * 2
    before = machine.now
    ends = machine.run(keys, plan)
    assert machine.now - before == 12 * 60 - before, "only what is missing is run"
    rounds = len(machine.rounds)
    assert machine.run(keys, plan) == ends and len(machine.rounds) == rounds


def test_a_cell_without_a_value_gets_no_more_seeds():
    machine = Machine(1.0, math.nan, 9.0)
    ends = machine.run(variants("a", "dead", "c"), Plan())
    assert ends[1].stopped == "no run has a value" and ends[1].seeds == 3
    assert "worse than variant=c" in ends[0].stopped


def test_several_seeds_at_a_time():
    machine = Machine(1.0, 1.0)
    machine.run(variants("a", "b"), Plan(step=4, most=10))
    assert [len(jobs) for jobs in machine.rounds] == [2, 4, 8, 6]


def test_families_are_of_one_task_and_meet_their_own_reference():
    keys = [{"task": t, "variant": v, "rank": r} for t in "ab" for v in ("lora", "dora") for r in ("2", "8")]
    assert [len(pairs) for pairs in families(keys)] == [6, 6]
    assert families(keys, "variant=lora") == [[(2, 0), (3, 1)], [(6, 4), (7, 5)]]
    assert families([{"lr": 0.01}, {"lr": 0.02}], "lr=1e-2") == [[(1, 0)]]
    assert families([{"target_modules": "q,v"}, {"target_modules": "q"}], "target_modules=[q, v]") == [
        [(1, 0)]
    ]


@pytest.mark.parametrize(
    ("keys", "against", "says"),
    [
        ([{}], "best", "nothing to compare"),
        ([{"task": "a"}, {"task": "b"}], "best", "nothing to compare: no two of the cells"),
        (variants("lora", "dora"), "variant=pissa", "no cell has variant=pissa: variant is lora, dora"),
        (variants("lora", "dora"), "lora", "no cell has lora: the sweep is over variant"),
    ],
)
def test_nothing_to_compare(keys, against, says):
    with pytest.raises(ValueError, match=says):
        families(keys, against)
