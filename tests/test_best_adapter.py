"""Early stopping and the best adapter: what is kept, what is refused, and going on from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_zoo.injection.inject import inject
from lora_zoo.training import checkpoints
from lora_zoo.training.arguments import choose_best_by, training_arguments
from lora_zoo.training.callbacks import EarlyStopping
from lora_zoo.training.interrupt import StopOnSignal
from lora_zoo.training.trainer import ZooTrainer
from tests.recorded import settings
from tests.test_training import Seen, model, trainer

VALUES = [0.1, 0.3, 0.2, 0.3, 0.1, 0.9]
"""Of evaluations at steps 2, 4, …: the second is the best that a patience of two lets a run see."""


class Scripted(Seen):
    """An evaluator that answers by the step, and keeps the adapters that it saw."""

    run: ZooTrainer

    def __init__(self) -> None:
        super().__init__()
        self.adapters: dict[int, dict[str, torch.Tensor]] = {}

    def evaluate_split(self, split: str) -> tuple[dict[str, float], dict[str, float]]:
        step = self.run.state.global_step
        self.adapters[step] = {k: t.clone() for k, t in self.run.injection.state_dict().items()}
        return {"score": VALUES[step // 2 - 1]}, {}


class Signal:
    """A signal that comes in the middle of a step."""

    def __init__(self, run: ZooTrainer, step: int) -> None:
        self.run, self.step = run, step

    @property
    def stopping(self) -> bool:
        return self.run.state.global_step == self.step


def scripted(folder: Path, killed: int = 0, **more: Any) -> Scripted:
    seen = Scripted()
    best: dict[str, Any] = {"load_best_model_at_end": True, "save_strategy": "best", "save_total_limit": 2}
    best |= {"metric_for_best_model": "score", "greater_is_better": True, "max_steps": 12} | more
    injection = inject(model(), "lora", rank=2, lora_dropout=0.2)
    seen.run = trainer(folder, injection, seen, eval_strategy="steps", eval_steps=2, **best)
    seen.run.add_callback(EarlyStopping(2))
    if killed:
        signal: Any = Signal(seen.run, killed)
        seen.run.add_callback(StopOnSignal(seen.run.train_state, signal))
    return seen


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_training_stops_where_nothing_improves_and_leaves_the_best_adapter(tmp_path: Path) -> None:
    seen = scripted(tmp_path)
    seen.run.train()
    assert seen.run.state.global_step == 8, "those of 6 and 8 were not better than that of step 4"
    assert seen.run.stopped_early and seen.run.kept_step == 4
    kept = seen.run.injection.state_dict()
    assert equal(kept, seen.adapters[4]) and not equal(kept, seen.adapters[8])


@pytest.mark.parametrize("at", [3, 4, 6, 8])
def test_a_run_that_was_stopped_ends_where_it_would_have(at: int, tmp_path: Path) -> None:
    """At 3 between two evaluations; else the evaluation is still owed: the best one, and the last."""
    whole, first = scripted(tmp_path / "whole"), scripted(tmp_path / "part", killed=at)
    whole.run.train()
    first.run.train()
    assert first.run.state.global_step == at and at not in first.adapters
    second = scripted(tmp_path / "part")
    second.run.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{at}"))
    assert second.run.state.global_step == 8 and second.run.kept_step == 4
    assert equal(second.run.injection.state_dict(), whole.run.injection.state_dict())
    if at < 8:
        assert equal(second.adapters[8], whole.adapters[8])


def test_a_run_that_was_killed_once_it_had_stopped_early_trains_no_more(tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 2}
    first = scripted(tmp_path, **saved)
    first.run.train()
    second = scripted(tmp_path, **saved)
    second.run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert second.run.state.global_step == 8 and second.run.kept_step == 4
    assert equal(second.run.injection.state_dict(), first.run.injection.state_dict())


def test_a_best_checkpoint_that_is_damaged_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(tmp_path)
    monkeypatch.setattr(checkpoints, "flaw", lambda folder: "a bad sector")
    seen.run.train()
    assert seen.run.kept_step is None
    assert equal(seen.run.injection.state_dict(), seen.adapters[8])


FACTS = {
    "exact_match": {"higher_is_better": True},
    "loss_of_mine": {"higher_is_better": False},
    "x": {"higher_is_better": None},
}


def test_evaluations_are_compared_by_the_tasks_first_metric_in_its_direction(tmp_path: Path) -> None:
    def chosen(*words: str, first: str = "exact_match") -> tuple[str | None, bool | None]:
        run = settings("early_stopping_patience=2", "trainer.eval_steps=5", *words)
        arguments = training_arguments(run, tmp_path)
        assert arguments.load_best_model_at_end and arguments.save_strategy == "best"
        choose_best_by(arguments, run, FACTS, first, nll=True)
        return arguments.metric_for_best_model, arguments.greater_is_better

    assert chosen() == ("exact_match", True)
    assert chosen(first="loss_of_mine") == ("loss_of_mine", False)
    assert chosen("trainer.metric_for_best_model=nll") == ("nll", False)
    assert chosen("trainer.greater_is_better=false", first="x") == ("x", False)
    with pytest.raises(ValueError, match="metric x does not say which way is better"):
        chosen(first="x")
    with pytest.raises(ValueError, match=r"unknown trainer\.metric_for_best_model 'bleu'"):
        chosen("trainer.metric_for_best_model=bleu")


@pytest.mark.parametrize(
    "words, text",
    [
        (
            ("early_stopping_patience=2",),
            "early_stopping_patience=2 compares evaluations .* give trainer.eval_",
        ),
        (("trainer.load_best_model_at_end=true",), "load_best_model_at_end=true compares evaluations"),
        (
            ("early_stopping_patience=2", "trainer.eval_steps=2", "trainer.load_best_model_at_end=false"),
            "keeps the best adapter: drop trainer",
        ),
        (
            ("early_stopping_patience=2", "trainer.eval_steps=2", "program=relora"),
            "program=relora has stages",
        ),
        (
            ("trainer.load_best_model_at_end=true", "trainer.eval_steps=2", "trainer.save_steps=3"),
            "round multiple",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(words: tuple[str, ...], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        training_arguments(settings(*words), tmp_path)
