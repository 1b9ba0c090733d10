"""`seed=auto`: a sweep's folder, its tables and claims with made-up runs, and one sweep as typed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_zoo.analysis.boundaries import critical
from lora_zoo.analysis.protocol import cells
from lora_zoo.analysis.rounds import Plan
from lora_zoo.claims.evidence import Evidence
from lora_zoo.claims.forms import difference
from lora_zoo.claims.hypotheses import Sampled, above
from lora_zoo.claims.registry import Measured
from lora_zoo.config import auto
from lora_zoo.config.spec import RunSpec
from lora_zoo.report.tables import tables
from lora_zoo.runs import load
from lora_zoo.runs.archives import archive
from lora_zoo.runs.identity import specify as specified
from lora_zoo.runs.loading import SEEDS
from lora_zoo.sweeps.plans import kept
from lora_zoo.sweeps.seeds import SeedSweep
from lora_zoo.sweeps.until_claim import check_claim
from tests.processes import SHORT
from tests.processes import run as typed
from tests.recorded import recorded, settings

LEVELS = {"lora": 0.5, "dora": 0.9, "pissa": 0.52}
CELLS = [[f"variant={name}", "seed=0"] for name in LEVELS]
PLAN = Plan(most=5, against="variant=lora")


def specify(job) -> RunSpec:
    return specified(settings(*job))


class MadeUp:
    """A launcher that writes records and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, []

    def launch(self, jobs) -> None:
        for job in jobs:
            given = dict(o.split("=") for o in job)
            noise = np.random.default_rng([int(given["seed"]), *given["variant"].encode()]).normal(0, 0.02)
            worse = 0.3 if given.get("task.lr") == "0.01" else 0.0
            record = recorded(*job, test=LEVELS[given["variant"]] + noise - worse)
            run = self.folder / f"{record['name']}-{record['identity']}"
            run.mkdir(parents=True)
            (run / "result.json").write_text(json.dumps(record))
            self.made.append(job)


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    made = MadeUp(folder)
    ends = SeedSweep(folder, CELLS, PLAN).run(made.launch, specify)
    assert ends[1].stopped == f"decided after {ends[1].seeds} seeds: better than variant=lora"
    assert ends[2].stopped == "open at the greatest number of seeds (5)"
    assert len(made.made) == sum(end.seeds for end in ends) < 15
    return folder


def test_a_finished_sweep_does_nothing_and_another_plan_is_refused(swept):
    made = MadeUp(swept)
    ends = SeedSweep(swept, CELLS, PLAN).run(made.launch, specify)
    assert not made.made and kept(swept, SEEDS)["stops"][0].startswith("variant=lora: 5 seeds, open at")
    assert [end.seeds for end in ends] == [5, ends[1].seeds, 5]
    with pytest.raises(ValueError, match=r"seeds.most=9: .* was looked at with seeds.most=5"):
        SeedSweep(swept, CELLS, Plan(most=9, against="variant=lora")).run(made.launch, specify)


@pytest.mark.parametrize("packed", [False, True])
def test_its_table_has_sequential_intervals_and_says_what_stopped_each_cell(swept, tmp_path, packed):
    frame = load(archive(load(swept), tmp_path / "results.jsonl.gz") if packed else swept)
    (table,) = tables(frame)
    assert "± is the sequential 95 % interval" in table.rule and "t interval" not in table.rule
    stops = [note for note in table.notes if note.startswith("seeds: ")]
    open_, better = (
        "variant=pissa: 5 seeds, open at the greatest number of seeds (5)",
        "better than variant=lora, +",
    )
    assert len(stops) == 3 and any(open_ in s for s in stops) and any(better in s for s in stops)
    assert not any("no run for seed" in note for note in table.notes)
    found = cells(frame, ["variant"])
    for cell in found.cells:
        half = critical(0.05, 5)[cell.n - 3] * cell.values.std() / math.sqrt(cell.n)
        assert cell.interval.high - cell.mean == pytest.approx(half)
    assert found.best().key["variant"] == "dora"
    how = {difference.how for difference in found.against_best().values()}
    assert how == {"t boundary over 3 to 5 seeds, level 0.0167; holds at any stop"}
    assert not any("unequal numbers of seeds" in warning for warning in found.warnings)


def test_its_claims_are_judged_by_sequential_intervals(swept):
    (runs,) = Evidence(load(swept)).of("")
    assert runs.most == 5
    (hypothesis,) = difference(["pissa", "lora"], above(0))(runs)
    assert hypothesis.most is None, "the registry gives it"
    values = hypothesis.values
    once, at_stop = (Sampled("", values, above(0), "", most=most).interval(0.95) for most in (None, 5))
    ratio = (at_stop.high - at_stop.low) / (once.high - once.low)
    assert ratio == pytest.approx(critical(0.05, 5)[len(values) - 3] / 2.776, rel=1e-3)


def a_claim(monkeypatch, cells, claimed, **more) -> Plan:
    """The plan for a claim that one variant of `cells` differs from the other by what is claimed."""
    usual = {"tests": (difference(cells, claimed),), "sweep": "+variant=lora"}
    claim = Measured("a/b", "none", **usual | more)
    monkeypatch.setattr("lora_zoo.sweeps.until_claim.claims", lambda: {claim.id: claim})
    return Plan(most=6, against="claim:a/b")


@pytest.mark.parametrize(
    ("cells_", "claimed", "end", "seeds"),
    [
        (["dora", "lora"], above(0.1), "a/b is supported", [3, 3, 3]),
        (["lora", "dora"], above(0), "a/b is not supported", [3, 3, 3]),
        (["pissa", "lora"], above(0.02), "open at the greatest number of seeds (6)", [6, 3, 6]),
        (["pissa", "vera"], above(0), "no runs with variant=vera", [3, 3, 3]),
    ],
    ids=["supported", "not supported", "open", "missing"],
)
def test_seeds_are_added_to_the_cells_of_a_claim_until_it_is_decided(
    tmp_path, monkeypatch, cells_, claimed, end, seeds
):
    plan = a_claim(monkeypatch, cells_, claimed)
    made = MadeUp(tmp_path / "sweep")
    ends = SeedSweep(made.folder, CELLS, plan).run(made.launch, specify)
    assert [e.seeds for e in ends] == seeds and len(made.made) == sum(seeds)
    assert any(end in e.stopped for e in ends), [e.stopped for e in ends]
    others = {name for name, n in zip(LEVELS, seeds, strict=True) if n < max(seeds)}
    told = {name for name, e in zip(LEVELS, ends, strict=True) if e.stopped == "not asked for by claim:a/b"}
    assert told >= others
    (table,) = tables(load(made.folder))
    assert any("of claim:a/b got seeds until it was decided, up to 6" in note for note in table.notes)


def test_an_open_claim_that_lacks_a_cell_gets_no_more_seeds(tmp_path, monkeypatch):
    """More seeds cannot support what another cell is needed for."""
    forms = difference(["pissa", "lora"], above(0.02)), difference(["pissa", "vera"], above(0))
    plan = a_claim(monkeypatch, ["pissa", "lora"], above(0.02), tests=forms)
    made = MadeUp(tmp_path / "sweep")
    ends = SeedSweep(made.folder, CELLS, plan).run(made.launch, specify)
    assert len(made.made) == 9
    assert any("a/b is inconclusive" in e.stopped and "variant=vera" in e.stopped for e in ends)


def test_a_claim_is_about_runs_that_the_sweep_makes_and_has_its_own_margin(monkeypatch):
    plan = a_claim(monkeypatch, ["dora", "lora"], above(0), sweep="", experiment="bakeoff_rank")
    check_claim(plan, "bakeoff_rank")
    with pytest.raises(ValueError, match=r"the runs of \+experiment=bakeoff_rank; the sweep has no exp"):
        check_claim(plan, "")
    with pytest.raises(ValueError, match=r"seeds.margin=0.1: claim:a/b has a margin of its own"):
        check_claim(replace(plan, margin=0.1), "bakeoff_rank")


def test_tuned_axes_are_chosen_on_the_first_seeds_and_only_then_are_seeds_added(tmp_path):
    rates = [
        [f"variant={name}", f"task.lr={lr}", "seed=0"] for name in ("lora", "pissa") for lr in (0.01, 0.02)
    ]
    made = MadeUp(tmp_path / "sweep")
    plan = Plan(most=4, tune=("task.lr",))
    ends = SeedSweep(made.folder, rates, plan).run(made.launch, specify)
    assert [end.seeds for end in ends] == [4, 4]
    tries = [dict(o.split("=") for o in job)["task.lr"] for job in made.made]
    assert (tries.count("0.01"), tries.count("0.02")) == (6, 8)
    found = cells(load(made.folder), ["variant"], tune=["task.lr"])
    assert [cell.chosen["task.lr"] for cell in found.cells] == [0.02, 0.02]


def test_rates_are_chosen_by_the_likelihood_where_it_is_compared(tmp_path):
    """The rate of the worse scores has the better likelihood."""

    class Likely(MadeUp):
        def launch(self, jobs) -> None:
            super().launch(jobs)
            for path in self.folder.glob("*/result.json"):
                record = json.loads(path.read_text())
                nll = {"nll": record["config"]["task"]["lr"] + record["seed"] / 1000}
                likelihood = {"validation": nll, "test": nll}
                path.write_text(json.dumps(record | {"likelihood": likelihood}))

    rates = [[f"variant={n}", f"task.lr={lr}", "seed=0"] for n in ("lora", "pissa") for lr in (0.01, 0.02)]
    made = Likely(tmp_path / "sweep")
    plan = Plan(most=3, tune=("task.lr",), value="test_nll")
    sweep = SeedSweep(made.folder, rates, plan)
    sweep.run(made.launch, specify)
    assert [cell[1] for cell in sweep.cells] == ["task.lr=0.01"] * 2


def test_the_plan_is_taken_from_the_command_line():
    words = ["-m", "+variant=lora,dora", "seed=auto", "seeds.most=7", "seeds.hours=0.5", "seeds.margin=0.01"]
    left, plan = auto.taken([*words, "seeds.against=variant=lora"])
    assert left == ["-m", "+variant=lora,dora", "seed=0"]
    assert plan == auto.Plans(auto.Seeds(most=7, hours=0.5, margin=0.01, against="variant=lora"))
    assert auto.taken(["seed=0,1"]) == (["seed=0,1"], auto.Plans())


@pytest.mark.cli
def test_as_typed(tmp_path):
    words = ("-m", "+variant=lora,full", "seed=auto", "seeds.most=3", *SHORT)
    ended = typed(*words, at=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "variant=full: 3 seeds, open at the greatest number of seeds (3)" in ended.stdout
    (sweep,) = (tmp_path / "runs").iterdir()
    assert len(list(sweep.glob("*/result.json"))) == 6
    again = typed(*words, at=tmp_path)
    assert again.returncode == 0 and "already" not in again.stdout and "done:" not in again.stdout
