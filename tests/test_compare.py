"""`lora-zoo compare`: plans from made-up costs, verdicts from made-up runs, and one tiny comparison."""

import copy
import functools
import itertools
import math
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lora_zoo
from lora_zoo import __main__ as words_of
from lora_zoo.analysis.halving import FoundRate
from lora_zoo.analysis.rounds import Plan
from lora_zoo.analysis.sequential import decide
from lora_zoo.compare import page, planning, words
from lora_zoo.compare.carrying import Work
from lora_zoo.compare.comparing import Request, _state
from lora_zoo.compare.contenders import Comparison, Contender, check_contenders, overrides_of, split_names
from lora_zoo.compare.costs import Cost, cost_of
from lora_zoo.compare.judging import Ruling, Standing, cell_runs, more_seeds, rulings
from lora_zoo.compare.planning import (
    FACTORS,
    WISHES,
    Design,
    State,
    fitting,
    needed,
    rates_of,
    state_of,
    wishes,
)
from lora_zoo.core.variants import VARIANTS
from tests.recorded import recorded, written

DESIGN = Design(rates=3, tuning=1, seeds=6)
STEPS = 200


# Names ---------------------------------------------------------------------------------------------------


def test_names_are_split_at_commas_outside_brackets() -> None:
    assert split_names("lora, dora init=eva ,'x") == ["lora", "dora init=eva", "'x"]
    assert split_names("program=relora,lora variant.x=[a,b],dora") == [
        "program=relora", "lora variant.x=[a,b]", "dora",
    ]  # fmt: skip


def test_a_contender_is_a_variant_a_file_or_keys_of_its_own() -> None:
    assert overrides_of("dora") == ["+variant=dora"]
    assert overrides_of("./mine.py:B") == ["+variant=./mine.py:B"]
    assert overrides_of("init=eva") == ["init=eva"]
    assert overrides_of("vera variant.d_initial=0.2") == ["+variant=vera", "variant.d_initial=0.2"]


@pytest.mark.parametrize(
    ("text", "part"),
    [("lora rank=4", "rank=4 is none of a contender's own keys"), ("eva", "write init=eva"), ("", "missing")],
)
def test_a_contender_may_not_take_what_all_share(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        overrides_of(text)


def test_equal_parameters_are_those_of_the_first_reference() -> None:
    by_rank, by_size = check_contenders("dora", ["lora", "ia3"], ["rank=8"], ("rank", "parameters"))
    assert [cell.rank for cell in by_rank.cells] == [8, 8, None]
    assert by_size.references[0] is by_rank.references[0]  # the same runs, once
    assert by_size.candidate.rank == 7
    assert by_size.candidate.adapter <= by_size.references[0].adapter == 16_384
    assert "ia3 has no rank that could meet it" in by_size.absent[0]


def test_two_names_of_one_run_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="one and the same run"):
        check_contenders("lora init=pissa", ["pissa"], [], ("rank",))


# The plan ------------------------------------------------------------------------------------------------


COSTS = [Cost(step=s / 400, rest=s / 2, test=s / 4, load=s / 8, examples=0) for s in (20.0, 25.0, 60.0)]


@pytest.mark.parametrize("hours", [0.05, 0.17, 0.5, 2, 8])
def test_a_plan_fits_its_hours_and_no_seed_more_would(hours: float) -> None:
    design = fitting(3600 * hours, COSTS, STEPS, jobs=2, most=10**6)
    if design is None:
        assert 3600 * hours < needed(wishes()[-1], COSTS, STEPS, 2)
        return
    assert needed(design, COSTS, STEPS, 2) <= 3600 * hours
    assert needed(replace(design, seeds=design.seeds + 1), COSTS, STEPS, 2) > 3600 * hours
    assert design.seeds >= 3


def test_more_hours_never_make_a_worse_plan() -> None:
    found = [fitting(seconds, COSTS[:1], STEPS, jobs=2) for seconds in range(30, 3_000, 30)]
    runs = [design.runs if design else 0 for design in found]
    tuned = [(design.rates, design.tuning) if design else (0, 0) for design in found]
    assert tuned == sorted(tuned)
    assert runs[-1] > runs[0]


def test_few_rates_and_few_seeds_are_kept_to() -> None:
    assert fitting(1e6, COSTS[:1], STEPS, jobs=1, rates=3, most=4) == Design(3, 3, 4)


@pytest.mark.parametrize("rates", [3, 4, 5, 6, 8, 9])
def test_the_last_runs_of_halving_are_whole_ones(rates: int) -> None:
    design = Design(rates, 2, 5)
    found = design.rungs(STEPS)
    assert found[-1] == (2, STEPS)
    assert sum(rung.runs * rung.steps for rung in found) <= design.budget(STEPS)
    assert design.runs == 2 * sum(rung.runs for rung in found) + 3
    with pytest.raises(ValueError, match="a run of 1 steps is too short to tune"):
        design.rungs(1)


def test_every_plan_can_come_to_a_verdict() -> None:
    assert all(wish.seeds >= max(3, wish.tuning) and wish.rates >= 3 for wish in WISHES)


def test_a_plan_that_is_changed_after_a_look_shares_its_error(tmp_path: Path) -> None:
    request = Request("dora", ("lora",), hours=0.5)

    def state(asked: Request) -> State:
        found = _state(asked, tmp_path, COSTS, STEPS, 2)
        found.save(tmp_path)
        return found

    assert state(request).plans == state(request).plans == 1
    assert state(replace(request, hours=0.501)).plans == 1  # the same design
    assert state(replace(request, hours=8)).plans == 2
    assert state(replace(request, hours=8, seeds=4)).plans == 3
    (tmp_path / "plan.json").write_text('{"design": {"rates": 3}}')
    assert state_of(tmp_path) is None


def test_a_cost_is_the_slowest_trials() -> None:
    data = {"train": {"size": 6400}, "validation": {"size": 10}, "test": {"size": 30}}
    trial: dict = {"state": "done", "data": data}
    times = {"step_median": 0.1, "total": 12.0, "train": 3.0, "load": 4.0, "evaluate": 2.0}
    slow = trial | {"timings": times | {"step_median": 0.2}}
    cost = cost_of(CELLS["mine"], [trial | {"timings": times}, slow])
    assert cost == Cost(step=0.2, rest=5.0, test=1.5, load=4.0, examples=6400)
    assert cost.seconds(200) == pytest.approx(45.0)
    assert cost.seconds(50, test=False) == pytest.approx(13.5)


def test_a_trial_that_fails_is_told() -> None:
    with pytest.raises(
        ValueError, match="mine: a trial of 20 steps failed: shapes do not fit; alone: lora-zoo"
    ):
        cost_of(CELLS["mine"], [{"state": "failed", "error": {"message": "shapes do not fit"}}])
    with pytest.raises(ValueError, match="the task has no split test"):
        cost_of(CELLS["mine"], [{"state": "done", "timings": {}, "data": {"train": {}, "validation": {}}}])


# Verdicts ------------------------------------------------------------------------------------------------

SEEDS = 8
ALONE = Plan(most=SEEDS)
CELLS = {
    name: Contender(name, (f"+variant={name}",), f"{name:0>8}", 0.02, 8, 16_384, 16_384, 200)
    for name in ("mine", "lora", "dora", "pissa")
}


def frame(gain: float = 0.0, **columns: object) -> pd.DataFrame:
    """Made-up runs at the best of three rates on eight seeds; `columns` replace those there."""
    draw = np.random.default_rng(round(abs(gain) * 1000)).normal(size=SEEDS) * 0.01
    rows = [
        {"seed": seed, "validation": 0.7 + gain + x, "test": 0.7 + gain + x} for seed, x in enumerate(draw)
    ]
    facts: dict[str, object] = {"state": "done", "degenerate": "", "metric": "exact_match", "cpu_share": 0.99}
    facts |= {"step_seconds": 0.2 + draw[0] / 10, "memory.saved": 4000.0, "data.test.size": 600.0}
    made = pd.DataFrame(rows).assign(lr=0.02, steps=STEPS, **{"error.message": ""}, **facts)
    made["history"] = [[{"loss": 1 / step} for step in range(1, 6)]] * len(made)
    made = made.assign(**columns)
    made.attrs["lora_zoo: sound"] = True
    return made


def judged(
    mine: pd.DataFrame, lora: pd.DataFrame, plan: Plan = ALONE, edge: str = "", others: int = 0
) -> Ruling:
    """The first of the verdicts on mine; `edge` is that of lora's rate."""
    tried = {(rate, STEPS): 0.5 for rate in (0.01, 0.02, 0.04)}
    cells = list(CELLS.values())[: 2 + others]
    sides = [
        cell_runs(cell, runs, FoundRate(0.02, edge if cell.label == "lora" else "", tried), STEPS)
        for cell, runs in zip(cells, [mine, lora, lora, lora], strict=False)
    ]
    found = rulings([Comparison("rank", cells[0], tuple(cells[1:]))], sides, plan)
    assert len(found) == 1 + others
    return found[0]


@pytest.mark.parametrize(
    ("gain", "finding", "said"),
    [
        (0.1, Standing.BETTER, "mine is better than lora"),
        (-0.1, Standing.WORSE, "mine is worse than lora"),
        (0.001, Standing.OPEN, "mine is not distinguishable from lora"),
    ],
)
def test_a_verdict_says_first_what_is_known(gain: float, finding: Standing, said: str) -> None:
    ruling = judged(frame(gain), frame())
    assert ruling.finding == finding
    sentence = words.verdict(ruling)
    assert sentence.startswith(f"At equal rank (8), {said}: exact_match 0.")
    estimate, low, high = (float(x) for x in re.findall(r"[+-]\d\.\d{4}", sentence))
    difference = ruling.difference
    found = [round(x, 4) for x in (difference.estimate, difference.low, difference.high)]
    assert [estimate, low, high] == found
    assert (low <= 0 <= high) == (finding == Standing.OPEN)
    assert difference.n == SEEDS
    assert ("80 % power" in words.to_know(ruling, 60.0)) == (finding == Standing.OPEN)


def test_lower_is_better_where_the_metric_says_so() -> None:
    facts = {"perplexity": {"higher_is_better": False, "range": [1.0, 9.0]}}
    columns = {"metric": "perplexity", "record": [{"metric_facts": facts}] * SEEDS}
    lower, higher = (frame(gain, **columns) for gain in (0.0, 0.3))
    assert judged(higher, lower).difference.verdict == "worse"


def test_divergence_at_the_chosen_rate_allows_no_verdict() -> None:
    lora = frame()
    lora.loc[lora["seed"] == 5, "state"] = "diverged"
    ruling = judged(frame(0.1), lora)
    assert ruling.finding == Standing.NONE
    assert "there is no verdict on mine against lora: lora diverged in 1 of 8 runs" in words.verdict(ruling)
    lost = judged(frame(0.1).assign(state="diverged"), frame())
    assert lost.finding == Standing.NONE
    assert "mine diverged in 8 of 8 runs" in words.verdict(lost)
    assert "nan" not in words.verdict(lost) + words.cost(lost) + words.to_know(lost, 1.0)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (
            frame(degenerate="one answer for all 9 items of test"),
            "degenerate result in 8 of 8 runs (one answer",
        ),
        (
            frame().assign(state=["done"] * 7 + ["failed"], **{"error.message": "no memory"}),
            "lora failed in 1 of 8 runs at its chosen rate (no memory)",
        ),
        (frame()[lambda runs: runs["seed"] < 2], "2 seeds in common; a verdict takes 3"),
        (
            frame().assign(history=[[{"loss": float(step)} for step in range(5)]] * SEEDS),
            "the training loss of lora ends above its first value",
        ),
    ],
)
def test_a_doubtful_cell_allows_no_verdict(wrong: pd.DataFrame, part: str) -> None:
    for mine, lora in ((frame(0.1), wrong), (wrong, frame(0.1))):
        ruling = judged(mine, lora)
        assert ruling.finding == Standing.NONE
        assert part.replace("lora", "mine" if mine is wrong else "lora") in words.verdict(ruling)


def test_a_loser_at_the_edge_of_its_rates_has_not_lost_and_a_winner_has_won() -> None:
    lost = judged(frame(0.1), frame(), edge="greatest")
    assert lost.finding == Standing.NONE
    assert "lora is best at the greatest rate tried (0.02)" in words.verdict(lost)
    assert judged(frame(-0.1), frame(), edge="greatest").finding == Standing.WORSE


def test_several_verdicts_widen_the_intervals() -> None:
    alone = judged(frame(0.003), frame())
    of_four = judged(frame(0.003), frame(), Plan(most=SEEDS, level=0.05 / 2), others=1)
    assert of_four.difference.level == pytest.approx(0.05 / 4)
    assert of_four.difference.low < alone.difference.low < alone.difference.high < of_four.difference.high
    said = words.sureness([of_four] * 2, plans=2)
    assert "98.75 %, so that all 2 verdicts" in said
    assert "2 plans share the error" in said


def test_a_verdict_is_that_of_the_sequential_rule() -> None:
    ruling = judged(frame(0.01), frame(), Plan(most=20), others=2)
    common = ruling.candidate.scores - ruling.reference.scores
    expected = decide(list(common), level=0.05 / 3, most=20)
    assert (ruling.difference.verdict, ruling.difference.n) == (expected.verdict, expected.n)
    assert ruling.difference.low == pytest.approx(expected.low)
    assert ruling.difference.high == pytest.approx(expected.high)


def test_the_likelihood_is_said_beside_the_verdict() -> None:
    mine, lora = frame(0.001), frame()
    assert words.likelihood(judged(mine, lora)) == ""
    mine, lora = (runs.assign(test_nll=1 + sign * runs["test"]) for runs, sign in ((mine, 0.1), (lora, 1)))
    ruling = judged(mine, lora)
    assert ruling.finding == Standing.OPEN
    assert "mine is better: -0.6" in words.likelihood(ruling)
    assert "nats a reference (less is better)" in words.likelihood(ruling)


def test_costs_are_ratios_and_those_of_a_busy_machine_are_not_to_be_trusted() -> None:
    mine = frame(step_seconds=0.3, **{"memory.saved": 6000.0})
    said = words.cost(judged(mine, frame(step_seconds=0.2)))
    assert said == (
        "Cost of mine against lora: a step takes 1.50 [1.50, 1.50] times as long, and training keeps 1.50 "
        "times the memory."
    )
    assert "had 70% of a core" in words.cost(judged(frame(cpu_share=0.7), frame()))
    assert "not known to be idle" in words.cost(judged(frame(cpu_share=math.nan), frame()))


def test_what_it_would_take_is_in_seeds_and_hours() -> None:
    ruling = judged(frame(0.003), frame())
    wanted, least_seen = more_seeds(ruling)
    assert wanted is not None
    assert wanted > SEEDS
    said = words.to_know(ruling, 3600.0)
    assert f"about {wanted} seeds would show it, about {words.duration(3600 * (wanted - SEEDS))} more" in said
    assert f"a difference of {least_seen:.4f}" in said


def test_sizes_that_are_not_equal_are_said() -> None:
    ruling = judged(frame(), frame())
    small = replace(ruling.candidate, cell=replace(CELLS["mine"], rank=7, adapter=15_360))
    by_rank = replace(ruling, candidate=small)
    assert words.size(by_rank) == "At their own ranks (mine 7, lora 8)"
    by_size = replace(by_rank, at="parameters")
    assert words.size(by_size).endswith("(mine 15,360, lora 16,384: -6.2%)")


# The work ------------------------------------------------------------------------------------------------


class FakeFront:
    """Writes the records that runs would leave: dora at its best at the centre, lora beyond the greatest.

    A rate of `diverging` or `failing` has no score; `stop` is the call at which somebody presses Ctrl-C.
    """

    def __init__(self, diverging: float = 0.0, failing: float = 0.0, stop: int = 0) -> None:
        self.calls: list[str] = []
        self.bases: dict[str, dict] = {}
        self.diverging, self.failing, self.stop = diverging, failing, stop

    def __call__(self, sweep: Sequence[str]) -> int:
        given = dict(word.lstrip("+").split("=", 1) for word in sweep)
        name, steps = given["variant"], given.get("steps")
        self.calls.append(f"{name} {steps or 'all'} {given['lr']} {given['seed']}")
        assert ("trial" in given) == ("eval_splits" in given) == ("steps" in given)
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        base = self.bases.setdefault(name, recorded(f"+variant={name}"))
        for lr, seed in itertools.product(given["lr"].split(","), given["seed"].split(",")):
            self.write(Path(given["hydra.sweep.dir"]), base, float(lr), int(seed), steps and int(steps))
        return 0

    def write(self, folder: Path, base: dict, lr: float, seed: int, steps: int | None) -> None:
        name, best = base["config"]["variant"]["name"], {"dora": 0.02, "lora": 0.08}
        identity = f"{lr:g}-{seed}-{steps}"
        if found := list(folder.glob(f"*-s{seed}-{identity}")):
            if "failed" not in (found[0] / "result.json").read_text():
                return
            shutil.rmtree(found[0])
        score = 0.5 - 0.1 * abs(math.log2(lr / best[name])) + seed % 3 / 100
        made = copy.deepcopy(base) | {"seed": seed, "data_seed": seed, "command": "made up"}
        made["config"] |= {"lr": lr, "seed": seed, "data_seed": seed, "steps": steps}
        made["config"] |= {"trial": bool(steps)}
        made |= {"name": f"{base['name'][:-1]}{seed}", "identity": identity, "made_of": None}
        made["metrics"] = {split: {"exact_match": score} for split in ("validation", "test")}
        made["history"] = [{"loss": 1 / (step + 1 + seed / 7 + lr), "step": step} for step in range(6)]
        made["adapter"] |= {"sha256": f"{name} {identity}"}
        if lr in (self.diverging, self.failing):
            made |= {"state": "diverged" if lr == self.diverging else "failed", "metrics": {}}
            made["error"] = {"message": "no memory"}
        written(
            folder, {key: value for key, value in made.items() if value is not None} | {"moved": "made up"}
        )


@functools.cache
def contenders() -> list[Comparison]:
    return check_contenders("dora", ["lora"], [], ("rank",))


def work_of(folder: Path, front: FakeFront, limit: float = 3600.0) -> Work:
    comparisons = contenders()
    known = {cell.identity: COSTS[0] for comparison in comparisons for cell in comparison.cells}
    state = State(DESIGN, limit, 30)
    return Work(comparisons, state, FACTORS, known, STEPS, 2, folder, folder, front, say=lambda text: None)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Work:
    work = work_of(tmp_path_factory.mktemp("work"), FakeFront())
    work.carry_out()
    return work


def test_rates_are_halved_at_one_budget_and_go_on_beyond_an_edge(done: Work) -> None:
    assert done.front.calls == [  # type: ignore[attr-defined]
        "dora 133 0.01,0.02,0.04 0", "dora all 0.02,0.01 0",
        "lora 133 0.01,0.02,0.04 0", "lora all 0.04,0.08 0",
        *(f"{name} all {lr} {seeds}" for seeds in ("1,2", "3,4", "5") for name, lr in BEST),
    ]  # fmt: skip
    dora, lora = (done.measured(cell) for cell in done.cells)
    assert (dora.found.rate, dora.found.edge) == (0.02, "")
    assert (lora.found.rate, lora.found.edge) == (0.08, "greatest")
    assert dora.found.steps == lora.found.steps <= DESIGN.budget(STEPS)
    assert [len(side.every) for side in (dora, lora)] == [3 + 2 + 5] * 2
    assert list(lora.runs.index) == list(range(DESIGN.seeds))


BEST = (("dora", 0.02), ("lora", 0.08))


def test_a_second_call_does_nothing_and_says_the_same(done: Work) -> None:
    front = FakeFront()
    again = work_of(done.folder, front)
    again.carry_out()
    assert front.calls == []
    assert [*map(words.verdict, again.rulings())] == [*map(words.verdict, done.rulings())]
    assert state_of(done.folder) == replace(done.state, spent=pytest.approx(done.state.spent))


@pytest.mark.parametrize("stop", [2, 6])
def test_a_call_that_is_stopped_goes_on(stop: int, tmp_path: Path, done: Work) -> None:
    first, second = FakeFront(stop=stop), FakeFront()
    with pytest.raises(KeyboardInterrupt):
        work_of(tmp_path, first).carry_out()
    work = work_of(tmp_path, second)
    work.carry_out()
    assert first.calls[:-1] + second.calls == done.front.calls  # type: ignore[attr-defined]
    assert [*map(words.verdict, work.rulings())] == [*map(words.verdict, done.rulings())]


def test_divergence_is_a_score_and_a_failure_is_tried_again_by_the_next_call(tmp_path: Path) -> None:
    work = work_of(tmp_path, FakeFront(diverging=0.04, failing=0.02))
    work.carry_out()
    dora = work.measured(work.cells[0])
    assert dora.found.rate == 0.01
    assert "2 diverged" in str(dora.found)
    front = FakeFront(diverging=0.04)
    again = work_of(tmp_path, front)
    again.carry_out()
    assert front.calls[0] == "dora 133 0.02 0"
    assert again.measured(again.cells[0]).found.rate == 0.02


def test_equal_scores_are_told_apart_by_likelihood() -> None:
    work = work_of(Path("nowhere"), FakeFront())
    cell = work.cells[0]
    rows = [{"lr": lr, "steps": 133, "seed": 0, "validation": 0.0} for lr in (0.01, 0.02, 0.04)]
    nll = pd.Series([9.0, 8.0, 7.0])
    work._frames[cell.identity] = pd.DataFrame(rows).assign(
        state="done", validation_nll=nll, metric="exact_match", record=[recorded("+variant=dora")] * 3
    )
    found = work._trials(cell)
    assert max(found, key=lambda trial: found[trial]).rate == 0.04


def test_hours_that_are_over_end_the_seeds_and_are_told(tmp_path: Path) -> None:
    work = work_of(tmp_path, FakeFront(), limit=30.0)
    work.carry_out()
    assert [len(work.measured(cell).runs) for cell in work.cells] == [3, 3]
    assert work.stopped == "the hours were over"


def test_the_page_says_first_what_is_known_and_asks_for_nothing(done: Work) -> None:
    html = page.html(page.content_of(done, done.rulings(), "lora-zoo compare dora", "<about>"))
    assert "default-src 'none'" in unescape(html)
    assert "&lt;about&gt;" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert html.count("made up") == 2 * DESIGN.seeds
    assert html.index("At equal rank (8), ") < html.index("<table")
    assert html.count("<figure>") == 2
    assert "800 steps to choose the rate by halving (3 x 133 steps, 2 x 200 steps)" in html
    assert "0.08 of 4 rates from 0.01 to 0.08, 799 steps in 5 runs, the greatest rate tried" in html


def test_the_command_of_the_page_is_the_whole_of_it() -> None:
    request = Request("dora init=eva", ("lora",), ("rank=4",), 0.5, ("rank",), 2, Path("x"), (1, 2, 4), 9)
    assert shlex.split(request.command) == [
        "lora-zoo", "compare", "dora init=eva", "rank=4", "--against", "lora", "--hours", "0.5",
        "--at", "rank", "--rates", "1,2,4", "--seeds", "9", "--jobs", "2", "--out", "x",
    ]  # fmt: skip
    assert (
        Request("dora", ("lora", "pissa")).command == "lora-zoo compare dora --against lora,pissa --hours 1"
    )


def test_rates_are_multiples_of_a_contenders_own() -> None:
    assert rates_of(0.08, (1, 2, 0.5)) == [0.08, 0.16, 0.04]


# The command ---------------------------------------------------------------------------------------------


def test_the_first_word_chooses_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, list[str]]] = []

    def imported(name: str) -> object:
        module = type(sys)("pretended")
        module.main = lambda: ran.append((name, sys.argv[1:]))  # type: ignore[attr-defined]
        return module

    monkeypatch.setattr(words_of, "import_module", imported)
    for argv in (
        ["x", "compare", "a"],
        ["x", "+variant=dora"],
        ["x", "sweep", "rank=2"],
        ["x", "merge", "run", "out"],
    ):
        monkeypatch.setattr(sys, "argv", argv)
        words_of.main()
    assert ran == [
        ("lora_zoo.compare.__main__", ["a"]), ("lora_zoo.run", ["+variant=dora"]),
        ("lora_zoo.run", ["-m", "rank=2"]), ("lora_zoo.merge", ["run", "out"]),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["x"])
    words_of.main()
    assert len(ran) == 4, "without a word nothing runs"
    listed = capsys.readouterr().out
    assert all(f"\n  {word} " in listed for word in words_of.COMMANDS)


def test_the_library_function_and_the_module_are_one_name() -> None:
    from lora_zoo import compare

    assert callable(compare)
    assert callable(lora_zoo.compare)
    with pytest.raises(ValueError, match="give a number above 0"):
        lora_zoo.compare("dora", ["lora"], hours=-1)


MIXER = """
import torch
from torch import nn

from lora_zoo import Additive, register
from lora_zoo.kernels.shared import FactorPair


@register("mixer")
class Mixer(Additive):
    paper = "here"
    equation = "W' = W + (α/r) B M A"
    count = "R * (O + I) + R * R"

    def __init__(self, context, **hyper):
        super().__init__(context, **hyper)
        self.M_RR = nn.Parameter(torch.eye(self.rank))

    def pairs(self):
        return FactorPair(self.scale * self.B_OR @ self.M_RR, self.A_RI), None
"""


@pytest.mark.cli
def test_a_tiny_comparison_from_file_to_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "WISHES", WISHES[2:3])  # one seed of tuning
    request.addfinalizer(lambda: VARIANTS._members.pop("mixer", None))  # other tests list what is registered
    Path("mixer.py").write_text(MIXER)
    sizes = "task.sizes={train: 8, validation: 4, test: 4}"
    short = ("steps=3", "batch_size=2", "task.max_new_tokens=2", "forgetting_text=null")
    given = ("./mixer.py", ["lora"], sizes, *short, "rank=2")
    settings = {"jobs": 1, "seeds": 3, "sizes": ("rank",), "factors": (1.0, 2.0, 0.5)}
    with pytest.raises(ValueError, match=r"are too short: the least plan, 2 cells of"):
        lora_zoo.compare(*given, hours=1e-6, **settings)
    (ruling,) = lora_zoo.compare(*given, hours=1, **settings)
    assert ruling.candidate.cell.label == "mixer"
    assert ruling.candidate.cell.trainable == ruling.reference.cell.trainable + 8 * 4
    assert len(ruling.candidate.every) == len(ruling.reference.every) == 3 + 2 + 2
    assert ruling.difference.n == 3
    (made,) = Path("runs").glob("compare-mixer-*/compare.html")
    assert "mixer against lora" in made.read_text()
    before = sorted((path, path.stat().st_mtime_ns) for path in Path("runs").rglob("result.json"))
    assert len(before) == 2 * len(ruling.candidate.every)
    lora_zoo.compare(*given, hours=1, **settings)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in Path("runs").rglob("result.json"))
