"""`lora-zoo compare`: plans from made-up costs, verdicts from made-up runs, and one tiny comparison."""

import copy
import itertools
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lora_zoo
from lora_zoo import __main__ as words_of
from lora_zoo.compare import page, words
from lora_zoo.compare.carrying import Work, state_of
from lora_zoo.compare.contenders import check_contenders, overrides_of, split_names
from lora_zoo.compare.costs import Cost, cost_of
from lora_zoo.compare.judging import Finding, Ruling
from lora_zoo.compare.planning import FACTORS, WISHES, Design, beyond, fitting, least, needed, rates_of
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs.identity import identified
from tests.recorded import recorded, written

DESIGN = Design(rates=3, spare=1, tuning=1, seeds=6)
Score = Callable[[str, float, int], float | None]
"""The score of a contender at a factor of its rate and a seed; None: the run diverges."""


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


class FakeFront:
    """Writes the records that runs would leave, with made-up scores."""

    def __init__(self, score: Score, **facts: object) -> None:
        self.score, self.facts, self.calls = score, facts, 0
        self.bases: dict[tuple[str, ...], dict] = {}

    def __call__(self, sweep: Sequence[str]) -> int:
        self.calls += 1
        given = dict(word.lstrip("+").split("=", 1) for word in sweep)
        own = tuple(w for w in sweep if not re.match(r"(lr|seed|out|hydra\.sweep\.dir)=", w))
        base = self.bases.setdefault(own, recorded(*own, "eval_before_training=false", "tracking=none"))
        for lr, seed in itertools.product(given["lr"].split(","), given["seed"].split(",")):
            self.write(Path(given["hydra.sweep.dir"]), base, float(lr), int(seed))
        return 0

    def write(self, folder: Path, base: dict, lr: float, seed: int) -> None:
        name = base["config"]["variant"]["name"]
        score = self.score(name, lr / base["config"]["lr"], seed)
        made = copy.deepcopy(base)
        made["config"] |= {"lr": lr, "seed": seed, "data_seed": seed}
        identity, made_of = identified(made["config"], VARIANTS[name])
        made |= {"seed": seed, "data_seed": seed, "name": f"{base['name'][:-1]}{seed}", "command": "made up"}
        made |= {"identity": identity, "made_of": made_of}
        made["history"] = [{"loss": 1 / (s + 1 + seed / 7 + lr), "step": s} for s in range(6)]
        made["adapter"] = made["adapter"] | {"sha256": f"{name} {lr} {seed}"}
        made["timings"] |= {"train_cpu": 50.0, "train_wall": 51.0}
        made["timings"]["step_median"] = 0.25 * (1.5 if name == "dora" else 1) + seed / 1e3
        if score is None:
            made["state"] = "diverged"
            del made["metrics"]
        else:
            made["metrics"] = {"validation": {"exact_match": score}, "test": {"exact_match": score}}
        if not list(folder.glob(f"*-{identity}")):
            written(folder, made | self.facts)


def smooth(better: float = 0.0, noise: float = 0.01) -> Score:
    """dora beats lora by `better`; the centre of the rates is the best."""
    draw = np.random.default_rng(0).normal(size=(2, 100)) * noise

    def score(name: str, factor: float, seed: int) -> float:
        gain = better if name == "dora" else 0.0
        return 0.7 + gain - 0.1 * abs(math.log2(factor)) + draw[int(name == "dora"), seed]

    return score


def worked(folder: Path, front: FakeFront, **given: object) -> tuple[Work, list[Ruling]]:
    comparisons = check_contenders("dora", ["lora"], [], ("rank",))
    cells = [cell.identity for comparison in comparisons for cell in comparison.cells]
    about = {"design": DESIGN, "limit": 3600.0, "jobs": 2} | given
    work = Work(
        comparisons, factors=FACTORS, seconds=dict.fromkeys(cells, 20.0), out=folder, folder=folder,
        front=front, say=lambda text: None, **about,
    )  # fmt: skip
    work.carry_out()
    return work, work.rulings()


@pytest.mark.parametrize(
    ("gain", "finding", "said"),
    [
        (0.1, Finding.BETTER, "dora is better than lora"),
        (-0.1, Finding.WORSE, "dora is worse than lora"),
        (0.0, Finding.OPEN, "dora is not distinguishable from lora"),
    ],
)
def test_a_verdict_says_first_what_is_known(gain: float, finding: Finding, said: str, tmp_path: Path) -> None:
    work, (ruling,) = worked(tmp_path, FakeFront(smooth(gain)))
    assert ruling.finding == finding
    sentences = page.answer(ruling, work).sentences
    assert sentences[0].startswith(f"At equal rank (8), {said}: exact_match 0.")
    low, high = map(float, re.findall(r"[+-]\d\.\d{4}", sentences[0])[-2:])
    assert (low, high) == (round(ruling.difference.low, 4), round(ruling.difference.high, 4))
    assert (low <= 0 <= high) == (finding == Finding.OPEN)
    assert ruling.difference.n == DESIGN.seeds
    assert sentences[1].startswith("dora takes 1.")
    assert "1.00 times the memory" in sentences[1]
    assert any("80 % power" in sentence for sentence in sentences) == (finding == Finding.OPEN)


def test_a_second_call_does_nothing_and_says_the_same(tmp_path: Path) -> None:
    front = FakeFront(smooth(0.1))
    _, (first,) = worked(tmp_path, front)
    calls = front.calls
    work, (second,) = worked(tmp_path, front)
    assert front.calls == calls > 0
    assert words.verdict(first) == words.verdict(second)
    assert state_of(tmp_path) == (work.spent, 3600.0, DESIGN) or work.spent == 0


def test_every_cell_is_tuned_by_validation_with_the_same_tries(tmp_path: Path) -> None:
    work, (ruling,) = worked(tmp_path, FakeFront(smooth()))
    for side in (ruling.candidate, ruling.reference):
        assert side.chosen == side.cell.lr
        assert len(side.tried) == DESIGN.rates
        assert len(side.every) == DESIGN.rates + DESIGN.seeds - 1
    assert "among 3 tries, never by test" in words.sureness([ruling])


def test_rates_go_on_beyond_an_edge_and_a_loser_at_the_edge_has_not_lost(tmp_path: Path) -> None:
    def rising(name: str, factor: float, seed: int) -> float:
        gain = 0.3 if name == "dora" else 0.05 * math.log2(factor)
        return 0.5 + gain - (0.1 * abs(math.log2(factor)) if name == "dora" else 0) + seed % 3 / 100

    _, (ruling,) = worked(tmp_path, FakeFront(rising))
    assert max(ruling.reference.tried) == 4 * ruling.reference.cell.lr
    assert ruling.finding == Finding.NONE
    assert "lora is best at the edge of the rates tried" in words.verdict(ruling)
    assert "no verdict" in words.verdict(ruling)


def test_divergence_at_a_rate_counts_as_tried_and_at_the_chosen_one_allows_no_verdict(tmp_path: Path) -> None:
    gain = smooth(0.1)
    above = FakeFront(lambda name, factor, seed: None if factor > 1 else gain(name, factor, seed))
    _, (ruling,) = worked(tmp_path / "above", above)
    assert ruling.finding == Finding.BETTER
    late = FakeFront(lambda name, factor, seed: None if (name, seed) == ("lora", 4) else gain(name, factor, seed))
    _, (ruling,) = worked(tmp_path / "late", late)
    assert ruling.finding == Finding.NONE
    assert "lora diverged in 1 of 6 runs at its chosen rate" in words.verdict(ruling)
    lost = FakeFront(lambda name, factor, seed: None if name == "dora" else gain(name, factor, seed))
    work, (ruling,) = worked(tmp_path / "lost", lost)
    assert ruling.finding == Finding.NONE
    assert "every one diverged or failed" in words.verdict(ruling)
    assert "nan" not in page.page_of(work, [ruling], "command", "about").html()


def test_a_degenerate_or_an_untuned_cell_allows_no_verdict(tmp_path: Path) -> None:
    facts = {"answers": {"test": {"items": 9, "distinct": 1, "references": 4, "common": None}}}
    _, (ruling,) = worked(tmp_path / "degenerate", FakeFront(smooth(0.1), **facts))
    assert ruling.finding == Finding.NONE
    assert "one answer for all 9 items of test" in words.verdict(ruling)
    _, (ruling,) = worked(tmp_path / "untuned", FakeFront(smooth(0.1)), design=Design(1, 0, 1, 4))
    assert ruling.finding == Finding.NONE
    assert "untuned: one rate was tried" in words.verdict(ruling)


def test_hours_that_are_over_end_the_seeds_and_are_told(tmp_path: Path) -> None:
    work, (ruling,) = worked(tmp_path, FakeFront(smooth(0.1)), limit=30.0)
    assert ruling.difference.n == 3
    assert "Stopped early" in page.page_of(work, [ruling], "command", "about").html()


def test_several_references_widen_the_intervals(tmp_path: Path) -> None:
    _, (alone,) = worked(tmp_path, FakeFront(smooth(0.01)))
    from lora_zoo.compare.judging import rulings

    (one_of_four,) = rulings("rank", alone.candidate, [alone.reference], 4)
    assert one_of_four.difference.level == pytest.approx(1 - 0.05 / 4)
    assert one_of_four.difference.low < alone.difference.low
    assert one_of_four.difference.high > alone.difference.high


def test_times_of_a_busy_machine_are_said_not_to_be_trusted(tmp_path: Path) -> None:
    _, (ruling,) = worked(tmp_path, FakeFront(smooth(), timings={"step_median": 0.2, "train": 9.0, "total": 9.5}))
    assert "not to be trusted" in words.cost(ruling)


def test_the_page_asks_for_nothing_and_names_every_run(tmp_path: Path) -> None:
    work, found = worked(tmp_path, FakeFront(smooth()))
    html = page.page_of(work, found, "lora-zoo compare dora", "<about>").html()
    assert "default-src 'none'" in html
    assert "&lt;about&gt;" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert html.count("made up") == 2 * DESIGN.seeds
    assert html.index("At equal rank (8)") < html.index("<table")


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


MIXER = '''
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
'''


@pytest.mark.cli
def test_a_tiny_comparison_from_file_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mixer.py").write_text(MIXER)
    sizes = "task.sizes={train: 32, validation: 4, test: 4}"
    given = ("./mixer.py", ["lora"], sizes, "steps=2", "task.max_new_tokens=2", "rank=2")
    settings = {"jobs": 1, "seeds": 3, "sizes": ("rank",), "factors": (1.0, 2.0)}
    with pytest.raises(ValueError, match=r"is too short: the least plan, 2 cells of"):
        lora_zoo.compare(*given, hours=1e-6, **settings)
    (ruling,) = lora_zoo.compare(*given, hours=1, **settings)
    assert ruling.candidate.cell.label == "mixer"
    assert ruling.candidate.cell.trainable == ruling.reference.cell.trainable + 8 * 4
    assert len(ruling.candidate.every) == len(ruling.reference.every) >= 4
    (made,) = Path("runs").glob("compare-mixer-*/compare.html")
    assert "mixer against lora" in made.read_text()
    before = sorted((path, path.stat().st_mtime_ns) for path in Path("runs").rglob("result.json"))
    assert len(before) == 2 * len(ruling.candidate.every)
    lora_zoo.compare(*given, hours=1, **settings)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in Path("runs").rglob("result.json"))
