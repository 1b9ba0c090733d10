"""The learning rate's schedule is followed before training, over the run's own steps."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import SchedulerType, TrainingArguments, get_scheduler

from lora_zoo.training.arguments import check_schedule
from tests.test_mistakes import ended

WATCHING = ("reduce_lr_on_plateau", "greedy")
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "polynomial": [{}, {"power": -1.0}, {"power": 0.5}, {"lr_end": 0.0}],
    "cosine_with_min_lr": [{"min_lr": 1e-4}, {"min_lr_rate": -0.5}],
    "cosine_warmup_with_min_lr": [{"min_lr": 1e-4}, {"min_lr": 1e-4, "warmup_lr_rate": 0.1}],
    "cosine_with_restarts": [{}, {"num_cycles": 3}],
    "inverse_sqrt": [{}, {"timescale": 0}],
    "warmup_stable_decay": [{"num_decay_steps": n, "decay_type": "1-sqrt"} for n in (0, 2, 50)],
}
schedules = st.one_of(
    *[
        st.tuples(st.just(kind.value), st.sampled_from(OPTIONS.get(kind.value, [{}])))
        for kind in SchedulerType
        if kind.value not in WATCHING
    ]
)


def breaks(arguments: TrainingArguments, steps: int) -> bool:
    """Whether a training of so many steps would meet no rate, as transformers makes it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:
        schedule = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
        for _ in range(steps):
            schedule.step()
            if not 0 <= schedule.get_last_lr()[0] < float("inf"):
                return True
    except Exception:  # whatever it is, it would come in the middle of training
        return True
    return False


@settings(max_examples=150, deadline=None, derandomize=True)
@example(schedule=("polynomial", {}), steps=1, warmup=0.5)
@given(
    schedule=schedules,
    steps=st.integers(1, 40),
    warmup=st.one_of(st.sampled_from([0, 0.1, 0.5, 0.99]), st.integers(1, 45)),
)
def test_a_schedule_is_refused_exactly_where_it_would_break(
    schedule: tuple[str, dict[str, Any]], steps: int, warmup: float
) -> None:
    name, options = schedule
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = TrainingArguments(
            output_dir="unused", use_cpu=True, learning_rate=0.01, lr_scheduler_type=name,
            warmup_steps=warmup, lr_scheduler_kwargs=options,
        )  # fmt: skip
        if breaks(arguments, steps):
            with pytest.raises(ValueError, match=r"^trainer: "):
                check_schedule(arguments, steps)
        else:
            check_schedule(arguments, steps)


def test_a_long_schedule_is_followed_at_once() -> None:
    check_schedule(TrainingArguments(output_dir="unused", use_cpu=True, warmup_steps=0.1), 2**31 - 1)


@pytest.mark.parametrize(
    "words, says",
    [
        ("epochs=0.5 trainer.lr_scheduler_type=polynomial", "after step 1 of 1, of which 1 are warm-up"),
        ("steps=4 trainer.lr_scheduler_type=polynomial trainer.warmup_steps=4", "change steps, warmup_steps"),
        ("steps=2 trainer.lr_scheduler_type=greedy trainer.eval_steps=1", "Choices: exact_match, nll"),
    ],
)
def test_as_typed(words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    end = ended(f"+variant=lora {words} batch_size=64")
    assert (end.code, end.steps) == (2, 0) and says in end.text, end.text
