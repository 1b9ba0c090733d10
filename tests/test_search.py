"""Sweeps that search by validation scores: what a job returns, and Hydra's sweepers that read it."""

import json
import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn

from lora_zoo import run
from lora_zoo.report.tables import tables
from lora_zoo.runs import load
from lora_zoo.runs.record import validation_of
from lora_zoo.training import runner
from tests.recorded import recorded


class MadeUp:
    """Stands for the runner: writes records of runs that nobody trains. `returned` is what sweepers read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[dict] = []
        self.returned: list[float | None] = []
        self.monkeypatch, self.usual = monkeypatch, recorded("variant=lora")
        monkeypatch.setattr(runner, "run", self.run)
        read, write = JobReturn.return_value.fget, JobReturn.return_value.fset

        def seen(ended: JobReturn) -> float | None:
            self.returned.append(read(ended))
            return self.returned[-1]

        monkeypatch.setattr(JobReturn, "return_value", property(seen, write))

    def run(self, spec, sweep=None, **_):
        folder = Path(sweep) / f"{spec.name}-{spec.identity}"
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


SEARCH = ("hydra/sweeper=optuna", "variant=lora,dora", "seed=0,1", "lr=tag(log,interval(1e-4,1e2))")


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="needs the extra lora_zoo[optuna]")


def test_each_variant_gets_a_search_of_as_many_configurations(tmp_path, monkeypatch, capsys, optuna):
    monkeypatch.chdir(tmp_path)
    made = MadeUp(monkeypatch)
    words = (*SEARCH, "rank=choice(2,4)", "hydra.sweeper.n_trials=4")
    assert made.typed(*words) == 0
    said = capsys.readouterr().out
    trials = [run for run in made.runs if run["config"]["trial"]]
    assert {run["seed"] for run in trials} == {1000}
    assert {tuple(run["config"]["eval_splits"]) for run in trials} == {("validation",)}
    results = made.runs[len(trials) :]
    assert [(r["config"]["variant"]["name"], r["seed"]) for r in results] == [
        ("lora", 0), ("lora", 1), ("dora", 0), ("dora", 1)
    ]  # fmt: skip
    for name in ("lora", "dora"):
        own = [run for run in trials if run["config"]["variant"]["name"] == name]
        done = [run for run in own if run["state"] == "done"]
        best = max(done, key=lambda run: run["metrics"]["validation"]["exact_match"])
        (chosen,) = {r["config"]["lr"] for r in results if r["config"]["variant"]["name"] == name}
        assert chosen == best["config"]["lr"] and len(own) == 4
    assert "4 runs, and 8 trials" in said and "4 configurations searched" in said and "diverged)" in said
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
