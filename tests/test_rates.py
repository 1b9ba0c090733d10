"""`lr=auto`: the trials of a sweep's cells and its tables with made-up runs, and one sweep as typed."""

import json
import math
from pathlib import Path

import pytest

from lora_zoo.analysis.protocol import cells
from lora_zoo.config import auto, command_line, experiments
from lora_zoo.config.schema import Settings
from lora_zoo.report.tables import tables
from lora_zoo.runs import axes, load
from lora_zoo.runs.archives import archive
from lora_zoo.runs.identity import specify
from lora_zoo.runs.loading import RATES
from lora_zoo.sweeps.auto import planned, sweep
from lora_zoo.sweeps.plans import keep_found, kept
from lora_zoo.sweeps.rates import RatePlan, RateSweep, score
from tests.processes import SHORT
from tests.processes import run as typed
from tests.recorded import recorded, settings
from tests.test_mistakes import ended

BEST = {"lora": 0.04, "full": 0.001}
CELLS = [[f"variant={name}", f"seed={seed}"] for name in BEST for seed in (0, 1)]
PLAN = {"key": "lr", "count": 4, "budget": 80, "seed": 1000, "value": "test"}


class MadeUp:
    """A launcher that writes records: scores peak at each variant's best rate, far above it runs diverge."""

    def __init__(self, folder: Path, fails: tuple[str, ...] = ()) -> None:
        self.folder, self.fails, self.made = folder, fails, []

    def launch(self, jobs) -> None:
        for job in jobs:
            given = dict(o.split("=") for o in job)
            off = abs(math.log2(float(given["lr"]) / BEST[given["variant"]]))
            lost = float(given["lr"]) > 3 * BEST[given["variant"]]
            state = "failed" if given["variant"] in self.fails else "diverged" if lost else "done"
            trial, right = given.get("trial") == "true", round(0.9 - off / 10, 1)
            nll = {"validation": {"nll": 1 + off}}
            record = recorded(*job, test=0.0 if trial else right, likelihood=nll, state=state)
            run = self.folder / f"{record['name']}-{record['identity']}"
            run.mkdir(parents=True, exist_ok=True)
            (run / "result.json").write_text(json.dumps(record))
            self.made.append(given)

    def sweep(self, seeds=None, rates=PLAN, given=CELLS) -> None:
        sweep(self.folder, given, {"seeds": seeds or {}, "rates": rates}, self.launch, one)


def one(job):
    return specify(settings(*job))


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    made = MadeUp(tmp_path_factory.mktemp("runs") / "sweep")
    made.sweep()
    trials = [job for job in made.made if job.get("trial")]
    assert made.made[: len(trials)] == trials, "the cells run once their rates are known"
    assert {(job["seed"], job["eval_splits"]) for job in trials} == {("1000", "[validation]")}
    for name in BEST:
        assert sum(int(job["steps"]) for job in trials if job["variant"] == name) == 80
    results = [(job["variant"], float(job["lr"]), job["seed"]) for job in made.made[len(trials) :]]
    assert results == [(name, rate, seed) for name, rate in BEST.items() for seed in "01"]
    return made.folder


def test_a_finished_sweep_does_nothing_and_another_plan_is_refused(swept):
    again = MadeUp(swept)
    found = RateSweep(swept, CELLS, RatePlan(**PLAN)).run(again.launch, one)
    assert not again.made and [cell[-1] for cell in found] == ["lr=0.04"] * 2 + ["lr=0.001"] * 2
    with pytest.raises(ValueError, match=r"rates.budget=900: .* was looked at with rates.budget=80"):
        MadeUp(swept).sweep(rates=PLAN | {"budget": 900})


def test_a_killed_sweep_goes_on(tmp_path):
    made = MadeUp(tmp_path / "sweep")

    def killed(jobs) -> None:
        made.launch(jobs[:3])

    assert RateSweep(made.folder, CELLS, RatePlan(**PLAN)).run(killed, one) is None
    made.sweep()
    jobs = [tuple(job.items()) for job in made.made]
    assert len(jobs) == len(set(jobs)) == 2 * 6 + 4


def test_a_cell_of_which_trials_failed_runs_no_further_and_is_named(tmp_path):
    made = MadeUp(tmp_path / "sweep", fails=("full",))
    made.sweep()
    assert {job["variant"] for job in made.made if not job.get("trial")} == {"lora"}
    assert "variant=full: none: a trial failed" in kept(made.folder, RATES)["found"]


@pytest.mark.parametrize("packed", [False, True])
def test_tables_count_no_trials_and_say_what_was_found_and_spent(swept, tmp_path, packed):
    frame = load(archive(load(swept), tmp_path / "results.jsonl.gz") if packed else swept)
    assert len(frame) == 4 and axes(frame) == ["variant"]
    (table,) = tables(frame)
    assert "lr found for each cell by successive halving on validation; " in table.rule
    assert "lr (found)" in table.columns and "| LoRA | " in table.markdown() and "0.04" in table.markdown()
    (note,) = [note for note in table.notes if note.startswith("lr: ")]
    assert note.startswith("lr: 80 steps of trials for each cell: variant=lora: 0.04 of 5 rates from 0.005 ")
    assert "variant=full: 0.001 of 4 rates" in note and "80 steps in 6 runs, 1 diverged" in note
    assert table.command.endswith("-m variant=full,lora seed=0,1 lr=auto rates.count=4 rates.budget=80")
    found = cells(frame, ["variant"], tune=["task.lr"])
    assert [cell.n for cell in found.cells] == [2, 2] and not found.cells[0].chosen
    assert len(load(swept, trials=True)) == 12


def test_seeds_are_added_to_the_cells_at_their_rates(tmp_path):
    made = MadeUp(tmp_path / "sweep")
    plan = {"most": 3, "against": "variant=lora", "tune": []}
    made.sweep(plan, given=CELLS[::2])
    results = [job for job in made.made if not job.get("trial")]
    assert [(job["variant"], job["seed"]) for job in results[:2]] == [("lora", "0"), ("full", "0")]
    assert len(results) == 6 and {float(job["lr"]) for job in results} == {0.04, 0.001}
    assert "variant=full: 3 seeds" in " ".join(kept(made.folder, ".seeds.json")["stops"])


def test_the_last_rung_is_judged_by_what_tables_compare(tmp_path):
    frame = load(MadeUpOnce(tmp_path).folder)
    assert score(frame, "test", last=False) == (-1.25, 0.5)
    assert score(frame, "test", last=True) == (0.5, -1.25)
    assert score(frame, "test_nll", last=True) == (-1.25,)
    with pytest.raises(ValueError, match="chooses by validation scores"):
        score(frame.assign(validation=math.nan, validation_nll=math.nan), "test", last=True)


class MadeUpOnce:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        record = recorded("variant=lora", likelihood={"validation": {"nll": 1.25}})
        (folder / "run").mkdir()
        (folder / "run" / "result.json").write_text(json.dumps(record))


def test_a_trial_is_a_run_of_its_own_and_other_identities_stay_as_they_are():
    assert one(["variant=lora"]).identity == one(["variant=lora", "trial=false"]).identity
    assert one(["variant=lora"]).identity != one(["variant=lora", "trial=true"]).identity


SMALL = "task.sizes.train=8 task.sizes.validation=2 task.sizes.test=2 batch_size=4 task.max_new_tokens=4"


def test_a_trial_that_diverges_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for trial, code in (("false", 1), ("true", 0)):
        end = ended(f"+variant=lora lr=1e30 steps=3 trial={trial} eval_before_training=false {SMALL}")
        assert end.code == code and "diverged" in end.text, end.text


def test_a_model_that_answers_with_nan_has_diverged(tmp_path, monkeypatch):
    """Its last step broke it: no loss has told."""
    monkeypatch.chdir(tmp_path)
    end = ended(f"lr=1e30 init=olora steps=2 eval_before_training=false {SMALL}")
    assert end.code == 1 and "lora_zoo: diverged: " in end.text, end.text


def overrides(*words: str) -> tuple[list[str], auto.Plans, list[Settings]]:
    left, plans = auto.taken(command_line.rewritten(["-m", *words]))
    return command_line.overrides(left), plans, [settings(*(w for w in left if w[0] != "-" and "," not in w))]


def test_the_budget_is_three_lengths_of_a_run():
    given, plans, jobs = overrides("+variant=lora,full", "task.lr=auto", "rates.count=6")
    (plan,) = planned(plans, given, jobs, multirun=True)[1:]
    assert "budget:600" in plan and "count:6" in plan and "key:'task.lr'" in plan


def test_an_experiment_s_grid_may_hold_auto_and_its_plans(tmp_path):
    file = tmp_path / "mine.yaml"
    grid = "{variant: [lora, dora], seed: auto, task.lr: auto}"
    rest = "seeds: {most: 7}, rates: {count: 4, budget: 90}"
    file.write_text(f"experiment: {{title: a, question: b, rows: [variant], grid: {grid}, {rest}}}\n")
    words = [f"+experiment={file}", "rates.budget=80"]
    left, plans = auto.taken(experiments.expanded(words, multirun=True))
    assert plans == auto.Plans(auto.Seeds(most=7), auto.Rates(count=4, budget=80), "task.lr")
    assert left == ["variant=lora,dora", "seed=0", words[0]]
    left, plans = auto.taken(
        experiments.expanded([words[0], "seed=0,1", "lr=0.1", "task.lr=1"], multirun=True)
    )
    assert plans == auto.Plans() and "seed=0,1" in left


@pytest.mark.cli
def test_as_typed(tmp_path):
    ended = typed("-m", "+variant=lora", "lr=auto", "rates.count=4", "rates.budget=8", *SHORT, at=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "1 runs, and 6 trials of learning rates" in ended.stdout
    assert "lr=auto: successive halving on validation, 8 steps of trials for each cell" in ended.stdout
    assert "steps in 6 runs" in ended.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    (run,) = load(folder).to_dict("records")
    assert f"all runs: {run['lr']:g} of" in ended.stdout and (run["seed"], run["steps"]) == (0, 2)


def test_what_the_sweeps_of_one_folder_found_stands_together(tmp_path: Path) -> None:
    keep_found(tmp_path, RATES, {("variant=lora",): "0.1 of 8"})
    assert kept(tmp_path, RATES)["found"] == "all runs: 0.1 of 8"
    keep_found(tmp_path, RATES, {("variant=sora", "rank=12"): "0.2 of 8"})
    assert kept(tmp_path, RATES)["found"] == "variant=lora: 0.1 of 8; variant=sora rank=12: 0.2 of 8"
    keep_found(tmp_path, RATES, {("variant=lora",): "0.3 of 8"})
    assert kept(tmp_path, RATES)["found"] == "variant=lora: 0.3 of 8; variant=sora rank=12: 0.2 of 8"


def test_trials_have_a_seed_of_their_own(tmp_path: Path) -> None:
    made = MadeUp(tmp_path)
    with pytest.raises(ValueError, match=r"rates.seed=1 is a seed of the results, too"):
        made.sweep(rates=PLAN | {"seed": 1})
    assert not made.made
