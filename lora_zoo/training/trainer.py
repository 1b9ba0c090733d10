"""transformers' Trainer with what a variant may ask for: groups, a regulariser, hooks around the step."""

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lora_zoo.adapters.checkpoint import WEIGHTS, save_adapter
from lora_zoo.adapters.injection import Injection
from lora_zoo.adapters.method import Progress

METHOD_STATE = "method.safetensors"


class ZooTrainer(Trainer):
    """Trains an injection's parameters. The loss that is logged is the task's; a regulariser only steers."""

    def __init__(self, injection: Injection, *, bench: Any, **arguments: Any) -> None:
        # `evaluate` asks the bench; the Trainer wants to see a data set before it evaluates at all.
        super().__init__(model=injection.model, eval_dataset=[], **arguments)
        self.injection, self.bench = injection, bench
        self.clock = StepClock()
        self._penalty: Tensor | float = 0.0
        self.remove_callback(PrinterCallback)
        self.add_callback(MethodHooks(injection))
        self.add_callback(self.clock)

    @property
    def progress(self) -> Progress:
        return Progress(self.state.global_step + 1, self.state.max_steps)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:  # type: ignore[has-type]
            groups = self.injection.param_groups(
                lr=self.args.learning_rate, weight_decay=self.args.weight_decay
            )
            _assert_each_once(groups, self.injection)
            cls, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(groups, **arguments)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._penalty = 0.0
        if model.training:
            penalty = self.injection.method.regularizer()
            steps = self.current_gradient_accumulation_steps
            # A loss over all items of the accumulated batch is summed as it is; others are divided later.
            summed = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            loss = loss + (penalty / steps if summed else penalty)
            self._penalty = penalty.detach() / steps if isinstance(penalty, Tensor) else penalty / steps
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **more: Any) -> Tensor:
        method, progress = self.injection.method, self.progress
        with method.forward_context(progress):
            loss = super().training_step(model, inputs, *rest, **more)
        if self.accelerator.sync_gradients:
            if progress.step == 1:
                _assert_gradients(self.injection)
            method.on_backward_end(progress)
        return loss - self._penalty

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The task's metrics on the validation split, in the middle of training."""
        found = {f"eval_{name}": value for name, value in self.bench.judge_split("validation").items()}
        self.log(found)
        control = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, found)
        return found

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """A checkpoint is the adapter, and beside it what the method and the dropout keep over time."""
        folder = Path(output_dir or self.args.output_dir or ".")
        save_adapter(self.injection, folder)
        kept = {name: t.detach().cpu().clone() for name, t in self.injection.method.state_dict().items()}
        save_file(kept | {"clock": torch.tensor(self.injection.clock.tick)}, folder / METHOD_STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.injection.load_state_dict(load_file(folder / WEIGHTS))
        kept = load_file(folder / METHOD_STATE)
        self.injection.clock.tick = int(kept.pop("clock"))
        self.injection.method.load_state_dict(kept)


class MethodHooks(TrainerCallback):
    """Calls the method where the Trainer has reached its moment."""

    def __init__(self, injection: Injection) -> None:
        self.injection = injection

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.injection.method.to(args.device)
        self.injection.method.begin(state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.injection.method.on_step_end(Progress(state.global_step + 1, state.max_steps))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.injection.method.finalize()


class StepClock(TrainerCallback):
    """Seconds of each optimiser step: no data preparation, evaluation, saving or generation among them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._began)

    def summary(self) -> dict[str, float]:
        if not self.seconds:
            return {"steps": 0}
        ordered = sorted(self.seconds)
        total = sum(ordered)
        middle = ordered[len(ordered) // 2]
        return {
            "steps": len(ordered),
            "train": total,
            "step_median": middle,
            "step_mean": total / len(ordered),
        }


def _assert_each_once(groups: list[dict[str, Any]], injection: Injection) -> None:
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)), "a parameter is in two optimiser groups"
    assert set(grouped) == {id(p) for p in injection.parameters()}, "a trainable parameter is in no group"


def _assert_gradients(injection: Injection) -> None:
    full = set(injection.in_full)  # full fine-tuning may cover parts that a task leaves unused
    without = [n for n, p in injection.named_parameters().items() if p.grad is None and n not in full]
    if without:
        raise ValueError(
            f"{without[0]} (and {len(without) - 1} more) gets no gradient: the model does not use it; "
            "take it out of target_modules"
        )
