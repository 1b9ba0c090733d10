"""`lora-zoo compare`: plans from made-up costs, verdicts from made-up runs, and one tiny comparison."""

import copy
import itertools
import math
import re
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
from lora_zoo.analysis.sequential import decide
from lora_zoo.compare import page, words
from lora_zoo.compare.carrying import Work, state_of
from lora_zoo.compare.contenders import Contender, check_contenders, overrides_of, split_names
from lora_zoo.compare.costs import Cost, cost_of
from lora_zoo.compare.judging import Family, Ruling, Standing, best_rate, cell_runs, more_seeds, rulings
from lora_zoo.compare.planning import FACTORS, WISHES, Design, beyond, fitting, least, needed, rates_of
from lora_zoo.core.variants import VARIANTS
from tests.recorded import recorded, written

DESIGN = Design(rates=3, spare=1, tuning=1, seeds=6)


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


@pytest.mark.parametrize("hours", [0.05, 0.17, 0.5, 2, 8])
def test_a_plan_fits_its_hours_and_no_seed_more_would(hours: float) -> None:
    runs, loads = [20.0, 25.0, 60.0], [3.0, 3.0, 9.0]
    design = fitting(3600 * hours, runs, loads, jobs=2, most=10**6)
    if design is None:
        assert 3600 * hours < least(runs, loads, 2)
        return
    assert needed(design, runs, loads, 2) <= 3600 * hours
    more = Design(design.rates, design.spare, design.tuning, design.seeds + 1)
    assert needed(more, runs, loads, 2) > 3600 * hours
    assert design.seeds >= 3


def test_more_hours_never_make_a_worse_plan() -> None:
    found = [fitting(seconds, [20.0] * 3, [1.0], jobs=2) for seconds in range(300, 30_000, 300)]
    runs = [design.runs if design else 0 for design in found]
    tuned = [(design.rates, design.tuning) if design else (0, 0) for design in found]
    assert tuned == sorted(tuned)
    assert runs[-1] > runs[0]


def test_few_rates_and_few_seeds_are_kept_to() -> None:
    assert fitting(1e6, [1.0], [0.0], jobs=1, rates=1, most=4) == Design(1, 0, 3, 4)


def test_the_runs_of_a_design_are_those_that_a_cell_makes() -> None:
    assert DESIGN.runs == 3 + 1 + 5
    assert all(wish.seeds >= 3 for wish in WISHES)


def test_the_next_rate_lies_beyond_the_edge() -> None:
    assert beyond(0.04, [0.02, 0.04, 0.01]) == 0.08
    assert beyond(0.01, [0.02, 0.04, 0.01]) == 0.005
    assert beyond(0.02, [0.02, 0.04, 0.01]) is None
    assert beyond(0.02, [0.02]) is None


def test_a_cost_is_the_slowest_trials() -> None:
    trial = {"state": "done", "data": {"train": {"size": 6400}}, "memory": {"peak_rss": 5}}
    times = {"step_median": 0.1, "total": 12.0, "train": 3.0, "load": 4.0}
    slow = trial | {"timings": times | {"step_median": 0.2}}
    cost = cost_of("x", [trial | {"timings": times}, slow])
    assert cost == Cost(step=0.2, rest=5.0, load=4.0, examples=6400, peak=5)
    assert cost.seconds(200) == pytest.approx(45.0)


def test_a_trial_that_fails_is_told() -> None:
    with pytest.raises(ValueError, match="mine: a trial of 20 steps failed: shapes do not fit"):
        cost_of("mine", [{"state": "failed", "error": {"message": "shapes do not fit"}}])


# Verdicts ------------------------------------------------------------------------------------------------

SEEDS = 8
ALONE = Family(1, SEEDS)
CELLS = {
    name: Contender(name, (f"+variant={name}",), f"{name:0>8}", 0.02, 8, 16_384, 16_384, 200)
    for name in ("mine", "lora")
}


def frame(gain: float = 0.0, **columns: object) -> pd.DataFrame:
    """Made-up runs at three rates, the middle one the best, on eight seeds; `columns` replace those there."""
    draw = np.random.default_rng(round(abs(gain) * 1000)).normal(size=SEEDS) * 0.01
    rows = []
    for factor, seed in itertools.product((0.5, 1.0, 2.0), range(SEEDS)):
        score = 0.7 + gain + draw[seed] - 0.1 * abs(math.log2(factor))
        rows.append({"lr": 0.02 * factor, "seed": seed, "validation": score, "test": score})
    facts: dict[str, object] = {"state": "done", "degenerate": "", "metric": "exact_match", "cpu_share": 0.99}
    facts |= {"step_seconds": 0.2 + draw[0] / 10, "memory.saved": 4000.0, "data.test.size": 600.0}
    made = pd.DataFrame(rows).assign(**facts)
    made["history"] = [[{"loss": 1 / step} for step in range(1, 6)]] * len(made)
    made = made.assign(**columns)
    made.attrs["lora_zoo: sound"] = True
    return made


def judged(mine: pd.DataFrame, lora: pd.DataFrame, family: Family = ALONE) -> Ruling:
    sides = []
    for cell, runs in zip(CELLS.values(), (mine, lora), strict=True):
        sides.append(cell_runs(cell, runs, sorted(set(runs["lr"])), tuning=2))
    (found,) = rulings("rank", sides[0], sides[1:], family)
    return found


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
    columns = {"metric": "perplexity", "record": [{"metric_facts": facts}] * (3 * SEEDS)}
    lower, higher = (frame(gain, **columns) for gain in (0.0, 0.3))
    assert judged(higher, lower).difference.verdict == "worse"
    assert cell_runs(CELLS["mine"], lower, [0.01, 0.02, 0.04], 2).chosen != 0.02  # the least is the best


def test_the_rate_is_chosen_by_validation_of_the_tuning_seeds_alone() -> None:
    runs = frame(test=0.0)
    runs.loc[(runs["lr"] == 0.04) & (runs["seed"] >= 2), "validation"] = 1.0
    runs.loc[(runs["lr"] == 0.01), "test"] = 1.0
    assert best_rate(runs, 2) == 0.02
    assert best_rate(runs, SEEDS) == 0.04
    runs.loc[(runs["lr"] == 0.02) & (runs["seed"] == 1), "state"] = "diverged"
    assert best_rate(runs, 2) != 0.02
    assert best_rate(runs.assign(state="diverged"), 2) is None


def test_divergence_at_the_chosen_rate_allows_no_verdict() -> None:
    lora = frame()
    lora.loc[(lora["lr"] == 0.02) & (lora["seed"] == 5), "state"] = "diverged"
    ruling = judged(frame(0.1), lora)
    assert ruling.finding == Standing.NONE
    assert "there is no verdict on mine against lora: lora diverged in 1 of 8 runs" in words.verdict(ruling)
    lost = judged(frame(0.1).assign(state="diverged"), frame())
    assert lost.finding == Standing.NONE
    assert "mine has no rate whose runs all ended well" in words.verdict(lost)
    assert "nan" not in words.verdict(lost) + words.cost(lost) + words.to_know(lost, 1.0)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (
            frame(degenerate="one answer for all 9 items of test"),
            "degenerate result in 8 of 8 runs (one answer",
        ),
        (frame()[lambda runs: runs["lr"] == 0.02], "lora is untuned: one rate was tried"),
        (frame()[lambda runs: runs["seed"] < 2], "2 seeds in common; a verdict takes 3"),
        (
            frame().assign(history=[[{"loss": float(step)} for step in range(5)]] * 3 * SEEDS),
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
    edge = frame()[lambda runs: runs["lr"] <= 0.02]
    assert judged(frame(0.1), edge).finding == Standing.NONE
    assert "lora is best at the edge of the rates tried (0.02)" in words.verdict(judged(frame(0.1), edge))
    assert judged(frame(0.1)[lambda runs: runs["lr"] <= 0.02], frame()).finding == Standing.BETTER


def test_several_verdicts_widen_the_intervals() -> None:
    alone, of_four = judged(frame(0.003), frame()), judged(frame(0.003), frame(), Family(2, SEEDS, plans=2))
    assert of_four.difference.level == pytest.approx(0.05 / 4)
    assert of_four.difference.low < alone.difference.low < alone.difference.high < of_four.difference.high
    said = words.sureness([of_four] * 2, Family(2, SEEDS, plans=2))
    assert "98.75 %, so that all 2 verdicts" in said
    assert "2 plans share the error" in said


def test_a_verdict_is_that_of_the_sequential_rule() -> None:
    ruling = judged(frame(0.01), frame(), Family(3, 20))
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
    assert "it is not known" in words.cost(judged(frame(cpu_share=math.nan), frame()))


def test_what_it_would_take_is_in_seeds_and_hours() -> None:
    ruling = judged(frame(0.003), frame())
    wanted, least_seen = more_seeds(ruling)
    assert wanted is not None
    assert wanted > SEEDS
    said = words.to_know(ruling, 3600.0)
    assert f"about {wanted} seeds would show it, some {words.duration(3600 * (wanted - SEEDS))} more" in said
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
    """Writes the records that runs would leave: dora at its best at the centre, lora beyond the greatest."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.bases: dict[str, dict] = {}

    def __call__(self, sweep: Sequence[str]) -> int:
        self.calls.append([*sweep])
        given = dict(word.lstrip("+").split("=", 1) for word in sweep)
        name = given["variant"]
        base = self.bases.setdefault(name, recorded(f"+variant={name}"))
        for lr, seed in itertools.product(given["lr"].split(","), given["seed"].split(",")):
            self.write(Path(given["hydra.sweep.dir"]), base, float(lr), int(seed))
        return 0

    def write(self, folder: Path, base: dict, lr: float, seed: int) -> None:
        name, best = base["config"]["variant"]["name"], {"dora": 0.02, "lora": 0.08}
        if list(folder.glob(f"*-s{seed}-{lr:g}-{seed}")):
            return
        score = 0.5 - 0.1 * abs(math.log2(lr / best[name])) + seed % 3 / 100
        made = copy.deepcopy(base) | {"seed": seed, "data_seed": seed, "command": "made up"}
        made["config"] |= {"lr": lr, "seed": seed, "data_seed": seed}
        made |= {"name": f"{base['name'][:-1]}{seed}", "identity": f"{lr:g}-{seed}", "made_of": None}
        made["metrics"] = {split: {"exact_match": score} for split in ("validation", "test")}
        made["history"] = [{"loss": 1 / (step + 1 + seed / 7 + lr), "step": step} for step in range(6)]
        made["adapter"] |= {"sha256": f"{name} {lr} {seed}"}
        written(
            folder, {key: value for key, value in made.items() if value is not None} | {"moved": "made up"}
        )


def work_of(folder: Path, front: FakeFront, limit: float = 3600.0) -> Work:
    comparisons = check_contenders("dora", ["lora"], [], ("rank",))
    seconds = {cell.identity: 20.0 for comparison in comparisons for cell in comparison.cells}
    return Work(
        comparisons, DESIGN, FACTORS, seconds, limit, 2, folder, folder, front, say=lambda text: None
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Work:
    work = work_of(tmp_path_factory.mktemp("work"), FakeFront())
    work.carry_out()
    return work


def test_rates_go_on_beyond_an_edge_within_the_allowance(done: Work) -> None:
    dora, lora = (done.measured(cell) for cell in done.cells)
    assert (sorted(dora.tried), dora.chosen, dora.edge) == ([0.01, 0.02, 0.04], 0.02, False)
    assert (sorted(lora.tried), lora.chosen, lora.edge) == ([0.01, 0.02, 0.04, 0.08], 0.08, True)
    assert [len(side.every) for side in (dora, lora)] == [3 + 5, 4 + 5]
    assert list(lora.runs.index) == list(range(DESIGN.seeds))


def test_a_second_call_does_nothing_and_says_the_same(done: Work) -> None:
    front = FakeFront()
    again = work_of(done.folder, front)
    again.carry_out()
    assert front.calls == []
    assert [*map(words.verdict, again.rulings())] == [*map(words.verdict, done.rulings())]
    assert state_of(done.folder) == (pytest.approx(done.spent), 3600.0, 1, DESIGN)


def test_hours_that_are_over_end_the_seeds_and_are_told(tmp_path: Path) -> None:
    work = work_of(tmp_path, FakeFront(), limit=30.0)
    work.carry_out()
    assert [len(work.measured(cell).runs) for cell in work.cells] == [3, 3]
    assert "the hours were over" in work.stopped


def test_the_page_says_first_what_is_known_and_asks_for_nothing(done: Work) -> None:
    html = page.page_of(done, done.rulings(), "lora-zoo compare dora", "<about>").html()
    assert "default-src 'none'" in unescape(html)
    assert "&lt;about&gt;" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert html.count("made up") == 2 * DESIGN.seeds
    assert html.index("At equal rank (8), ") < html.index("<table")
    assert html.count("<figure>") == 2


def test_rates_are_multiples_of_a_contenders_own() -> None:
    assert rates_of(0.08, (1, 2, 0.5)) == [0.08, 0.16, 0.04]


# The command ---------------------------------------------------------------------------------------------


def test_the_first_word_chooses_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []

    def imported(name: str) -> object:
        module = type(sys)("pretended")
        module.main = lambda: ran.append((name, sys.argv[1:]))  # type: ignore[attr-defined]
        return module

    monkeypatch.setattr(words_of, "import_module", imported)
    for argv in (["x", "compare", "a"], ["x", "+variant=dora"], ["x"], ["x", "merge", "run", "out"]):
        monkeypatch.setattr(sys, "argv", argv)
        words_of.main()
    assert ran == [
        ("lora_zoo.compare.__main__", ["a"]), ("lora_zoo.run", ["+variant=dora"]), ("lora_zoo.run", []),
        ("lora_zoo.merge", ["run", "out"]),
    ]  # fmt: skip


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
    request.addfinalizer(lambda: VARIANTS._members.pop("mixer", None))  # other tests list what is registered
    Path("mixer.py").write_text(MIXER)
    sizes = "task.sizes={train: 32, validation: 4, test: 4}"
    short = ("steps=2", "task.max_new_tokens=2", "forgetting_text=null")
    given = ("./mixer.py", ["lora"], sizes, *short, "rank=2")
    settings = {"jobs": 1, "seeds": 3, "sizes": ("rank",), "factors": (1.0,)}
    with pytest.raises(ValueError, match=r"is too short: the least plan, 2 cells of"):
        lora_zoo.compare(*given, hours=1e-6, **settings)
    (ruling,) = lora_zoo.compare(*given, hours=1, **settings)
    assert ruling.candidate.cell.label == "mixer"
    assert ruling.candidate.cell.trainable == ruling.reference.cell.trainable + 8 * 4
    assert ruling.finding == Standing.NONE  # of one rate
    assert len(ruling.candidate.every) == len(ruling.reference.every) == 3
    (made,) = Path("runs").glob("compare-mixer-*/compare.html")
    assert "mixer against lora" in made.read_text()
    before = sorted((path, path.stat().st_mtime_ns) for path in Path("runs").rglob("result.json"))
    assert len(before) == 2 * len(ruling.candidate.every)
    lora_zoo.compare(*given, hours=1, **settings)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in Path("runs").rglob("result.json"))
