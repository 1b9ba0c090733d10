"""Sweeps that search by validation scores: what a job returns, and Hydra's sweepers that read it."""

import json
import math
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn

from lora_zoo import run
from lora_zoo.config import space
from lora_zoo.report.tables import tables
from lora_zoo.runs import load
from lora_zoo.runs.record import validation_of
from lora_zoo.sweeps import study
from lora_zoo.training import pruning, runner, session
from tests.recorded import recorded
from tests.test_mistakes import ended
from tests.test_rates import SMALL


class MadeUp:
    """Stands for the runner: writes records of runs that nobody trains. `returned` is what sweepers read,
    `expected` the number of jobs that the sweep told of when each began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[dict] = []
        self.returned: list[float | None] = []
        self.expected: list[int] = []
        self.monkeypatch, self.usual = monkeypatch, recorded("variant=lora")
        monkeypatch.setattr(runner, "run", self.run)
        read, write = JobReturn.return_value.fget, JobReturn.return_value.fset

        def seen(ended: JobReturn) -> float | None:
            self.returned.append(read(ended))
            return self.returned[-1]

        monkeypatch.setattr(JobReturn, "return_value", property(seen, write))

    def run(self, spec, sweep=None, **_):
        folder = Path(sweep) / f"{spec.name}-{spec.identity}"
        self.expected.append(int((folder.parent / ".jobs").read_text()))
        if (folder / "result.json").is_file():
            return 0
        about = {"name": spec.name, "identity": spec.identity, "made_of": spec.made_of}
        about |= {"config": asdict(spec.settings), "seed": spec.settings.seed}
        about |= {"data_seed": spec.settings.data_seed, "adapter": {"sha256": spec.identity}}
        variant = {"name": spec.variant.name, "hyperparameters": spec.hyperparameters}
        about |= {"variant": self.usual["variant"] | variant}
        about |= {"command": shlex.join(["python", "-m", "lora_zoo.run", *spec.overrides])}
        self.runs.append(self.usual | about | self.ends(spec))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(self.runs[-1]))
        return 0

    @staticmethod
    def score(settings) -> float:
        """Validation peaks at lr=0.01, and test elsewhere."""
        return 1 - abs(math.log10(settings.lr) + 2) / 4

    def ends(self, spec) -> dict:
        if spec.settings.lr > 1:
            return {"state": "diverged"}
        right = self.score(spec.settings)
        scores = {"validation": {"exact_match": right}, "test": {"exact_match": 1 - right}}
        return {"metrics": {name: scores[name] for name in spec.settings.eval_splits}}

    def typed(self, *words: str) -> int:
        self.monkeypatch.setattr(sys, "argv", ["lora_zoo.run"])
        with pytest.raises(SystemExit) as end:
            run.main(["-m", *words, "tracking=none"])
        return int(end.value.code or 0)


def test_sweepers_are_told_the_validation_score(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = MadeUp(monkeypatch)
    assert made.typed("variant=lora", "lr=0.01,0.1,10", "seed=0") == 0
    assert made.returned[:2] == [1.0, 0.75] and math.isnan(made.returned[2])
    assert made.typed("variant=lora", "lr=0.01,0.1", "seed=0", "dry_run=true") == 0
    assert made.returned[3:] == [None, None]
    assert math.isnan(validation_of(recorded(metrics={"test": {"exact_match": 1.0}})))


SEARCH = ("hydra/sweeper=optuna", "variant=lora,dora", "seed=0", "lr=tag(log,interval(1e-4,1e2))")


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="needs the extra lora_zoo[optuna]")


def test_each_variant_gets_a_search_of_as_many_configurations(tmp_path, monkeypatch, capsys, optuna):
    monkeypatch.chdir(tmp_path)
    made = MadeUp(monkeypatch)
    words = (*SEARCH, "rank=choice(2,4)", "hydra.sweeper.n_trials=4")
    assert made.typed(*words) == 0
    assert made.expected == [10] * 10, "all trials and the runs at their best are counted from the first on"
    said = capsys.readouterr().out
    trials = [run for run in made.runs if run["config"]["trial"]]
    assert {run["seed"] for run in trials} == {1000}
    assert {tuple(run["config"]["eval_splits"]) for run in trials} == {("validation",)}
    results = made.runs[len(trials) :]
    assert [(r["config"]["variant"]["name"], r["seed"]) for r in results] == [("lora", 0), ("dora", 0)]
    for name in ("lora", "dora"):
        own = [run for run in trials if run["config"]["variant"]["name"] == name]
        done = [run for run in own if run["state"] == "done"]
        best = max(done, key=lambda run: run["metrics"]["validation"]["exact_match"])
        (chosen,) = {r["config"]["lr"] for r in results if r["config"]["variant"]["name"] == name}
        assert chosen == best["config"]["lr"] and len(own) == 4
    assert "2 runs, and 8 trials" in said and "4 configurations searched" in said and "diverged)" in said
    (folder,) = (tmp_path / "runs").iterdir()
    (table,) = tables(load(folder))
    assert "lr, rank found for each cell by a search on validation; " in table.rule
    assert "lr (found)" in table.columns and "rank (found)" in table.columns
    (note,) = [note for note in table.notes if note.startswith("lr, rank: ")]
    assert note.startswith("lr, rank: 4 trials for each cell: variant=lora: ") and "2 of rank=2" in note
    again = MadeUp(monkeypatch)
    assert again.typed(*words) == 0 and not again.runs
    assert again.typed(*words[:-1], "hydra.sweeper.n_trials=5") == 2 and not again.runs
    assert "hydra.sweeper.n_trials=5" in capsys.readouterr().err
    assert "hydra.sweeper.n_trials=4" in table.command and "tag(log,interval(1e-4,1e2))" in table.command


def test_what_a_search_cannot_be_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: True)))
    made = MadeUp(monkeypatch)
    for words, said in {
        ("variant=lora,dora",): "has nothing to search",
        ("lr=tag(log,interval(0,1))",): "a logarithm needs numbers above 0",
        ("lr=interval(1,1)",): "lr=interval(1,1) holds fewer than two values",
        ("lr=tag(logg,interval(1e-3,1))",): "unknown tag 'logg'; the only one is log",
        ("rank=tag(log,choice(2,4))",): "words have no logarithm",
        ("rank=tag(log,range(2,17,2))",): "no steps of 2; give an interval",
        ("lr=1e-3", "task.lr=interval(1e-4,1)"): "has no effect: it is a default, and lr=0.001 takes its",
        ("seed=range(3)",): "seed is not searched",
        ("eval_splits=choice([test],[validation])",): "eval_splits is not searched: no training",
        ("out=choice(a,b)",): "out is not searched",
        ("task=choice(pocket-sql,pocket-nli)",): "scores of different tasks do not compare",
        ("lr=interval(1e-3,1)", "dry_run=true"): "dry_run=true gives none",
        ("variant=choice(lora,dorra)",): "unknown variant 'dorra'",
        ("lr=interval(1e-3,1)", "hydra.sweeper.sampler=tpi"): "unknown hydra.sweeper.sampler 'tpi'",
        ("lr=interval(1e-3,1)", "hydra.sweeper.n_trials=0"): "n_trials must be at least 1; got 0",
        ("lr=interval(1e-3,1)", "hydra.sweeper.direction=minimize"): "exact_match is better higher",
        ("lr=interval(1e-3,1)", "hydra.sweeper.pruner=median"): "give trainer.eval_steps",
        ("lr=interval(1e-3,1)", "hydra.sweeper.pruner=median", "hydra/launcher=joblib"): "leave one of them",
    }.items():
        assert made.typed("hydra/sweeper=optuna", *words) == 2
        text = capsys.readouterr().err.strip().splitlines()[-1]
        assert text.startswith("lora_zoo: ") and said in text
    assert made.typed("lr=interval(1e-3,1)") == 2 and "names no values one by one" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ValueError, match=r"needs Optuna: pip install 'lora_zoo\[optuna\]'"):
        study.check_names("tpe", "none")
    assert not made.runs


def dimensions(*words: str) -> list:
    return [space.dimension(o) for o in OverridesParser.create().parse_overrides(list(words))]


def test_the_space_is_what_the_overrides_say():
    assert dimensions(
        "lr=tag(log,interval(1e-4,1e-1))", "rank=int(interval(2,64))", "rank=range(2,9,2)",
        "variant=choice(lora,dora)", "++variant.b=interval(0,1)", "alpha=range(0.5,2,0.5)",
        "rank=tag(log,range(1,5))",
    ) == [
        space.Real("lr", 1e-4, 1e-1, True), space.Whole("rank", 2, 64), space.Whole("rank", 2, 8, step=2),
        space.Choice("variant", ("lora", "dora")), space.Real("++variant.b", 0, 1, False),
        space.Real("alpha", 0.5, 1.5, step=0.5), space.Whole("rank", 1, 4, log=True),
    ]  # fmt: skip
    (searched, compared) = OverridesParser.create().parse_overrides(["rank=choice(2,4)", "rank=2,4"])
    assert space.is_searched(searched) and not space.is_searched(compared)


def test_a_killed_search_suggests_what_it_would_have(tmp_path, optuna):
    how = {"higher": True, "sampler": "tpe", "pruner": "none", "seed": 3}
    wanted = dimensions("lr=tag(log,interval(1e-4,1e-1))", "rank=choice(2,4)")

    def score(values: dict) -> float:
        return -abs(math.log10(values["lr"]) + 2)

    def search(folder: Path, *, killed: bool) -> list[dict]:
        folder.mkdir()
        own, found = study.Study(folder, "all", **how), []
        for number in range(14):
            trial = own.ask(wanted)
            if killed and number % 3 == 0:
                own = study.Study(folder, "all", **how)
                again = own.ask(wanted)
                assert (again.trial.number, again.values) == (trial.trial.number, trial.values)
                trial = again
            found.append(trial.values)
            trial.tell("diverged" if number == 1 else "done", None if number == 1 else score(trial.values))
        assert own.best() == max((f for n, f in enumerate(found) if n != 1), key=score)
        assert "14 configurations searched" in own.searched([]) and "1 diverged" in own.searched([])
        assert own.study.get_trials()[1].state.name == "PRUNED", "worse than any score, to samplers"
        return found

    assert search(tmp_path / "a", killed=False) == search(tmp_path / "b", killed=True)


@pytest.mark.parametrize("torn", [1, 20])
def test_a_torn_last_line_of_the_journal_is_cut_and_another_one_is_named(tmp_path, optuna, capsys, torn):
    file, wanted = tmp_path / study.FILE, dimensions("rank=int(interval(1,1000))")

    def opened() -> study.Study:
        return study.Study(tmp_path, "all", higher=True, sampler="random", pruner="none", seed=0)

    first = opened().ask(wanted)
    first.tell("done", 0.5)
    os.truncate(file, file.stat().st_size - torn)
    again = opened().ask(wanted)
    assert f"{file}: its last line was torn and is cut off" in capsys.readouterr().err
    assert (again.trial.number, again.values) == (0, first.values), "the trial whose end was lost"
    again.tell("done", 0.5)
    assert opened().ended == 1
    assert capsys.readouterr().err == ""
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], lines[1][:9] + "\n", *lines[2:]]))
    with pytest.raises(ValueError, match=rf"{file}: line 2 is damaged .*; take the file away"):
        opened()


def test_of_equal_scores_the_better_likelihood_is_chosen(tmp_path, optuna):
    own = study.Study(tmp_path, "all", higher=False, sampler="random", pruner="none", seed=0)
    trials = [own.ask(dimensions("rank=int(interval(1,1000))")) for _ in range(3)]
    for trial, nll in zip(trials, (2.0, 1.0, 3.0), strict=True):
        trial.tell("done", 0.5, nll)
    assert own.best() == trials[1].values


def test_a_trial_is_given_up_by_what_others_had_reached(tmp_path, optuna):
    own = study.Study(tmp_path, "all", higher=True, sampler="random", pruner="median", seed=0)
    ends = []
    for score in (0.5, 0.6, 0.7, 0.8, 0.9, 0.1):
        trial = own.ask(dimensions("lr=interval(0,1)"))
        ends.append(trial.watch("exact_match")(4, {"exact_match": score, "nll": 1.0}))
        trial.tell("pruned" if trial.pruned else "done", None if trial.pruned else score)
    assert ends == [False] * 5 + [True] and "1 pruned" in own.searched([])


def test_a_run_that_is_given_up_is_unfinished_and_no_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def given_up(step: int, values: dict) -> bool:
        seen.append((step, set(values) >= {"exact_match", "nll"}))
        return step == 2

    monkeypatch.setattr(session, "WATCHED", SimpleNamespace(get=lambda _: given_up))
    end = ended(f"+variant=lora steps=4 trainer.eval_steps=1 trial=true eval_before_training=false {SMALL}")
    assert end.code == 0 and end.steps == 2 and seen == [(1, True), (2, True)]
    assert "interrupted: given up at step 2 by its search" in end.text
    (result,) = (tmp_path / "runs").rglob("result.json")
    assert json.loads(result.read_text())["state"] == "interrupted"
    callback = pruning.PruneCallback(lambda step, _: seen.append((step, False)) is not None, before=5)
    callback.on_evaluate(None, SimpleNamespace(global_step=2), metrics={})
    assert seen[-1] == (7, False), "a stage's steps come after those of the stages before it"
