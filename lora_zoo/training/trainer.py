"""transformers' Trainer with what a variant may ask for: groups, a regulariser, hooks around the step."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from transformers.trainer import TRAINER_STATE_NAME

from lora_zoo.core.hooks import Progress
from lora_zoo.formats.native import WEIGHTS, save_adapter
from lora_zoo.inject.base_model import base_buffers
from lora_zoo.inject.injection import Injection
from lora_zoo.models import activations
from lora_zoo.models.train_eval import evaluating
from lora_zoo.training import checkpoints, divergence
from lora_zoo.training.callbacks import HookCallback, StepTimer

_log = logging.getLogger("lora_zoo")


METHOD_STATE, BUFFERS, PROGRESS = "method.safetensors", "buffers.safetensors", "progress.json"


NEEDED = (WEIGHTS, METHOD_STATE, PROGRESS, "optimizer.pt", "scheduler.pt", TRAINER_STATE_NAME)
"""Without these a run would go on as another one (trainer.save_only_model leaves some of them out)."""


ENDURED = 10
"""So many steps in a row may be skipped; a run in which no step is any good has diverged."""


class ZooTrainer(Trainer):
    """Trains an injection's parameters. The loss that is logged is the task's; a regulariser only steers.

    A step whose loss or gradients are no numbers raises watch.Diverged, or with `skip` changes nothing.
    `about` is kept with the adapter in every checkpoint.
    """

    def __init__(
        self,
        injection: Injection,
        *,
        evaluator: Any,
        skip: bool = False,
        about: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        # `evaluate` asks the bench; the Trainer wants to see a data set before it evaluates at all.
        super().__init__(model=injection.model, eval_dataset=[], **arguments)
        self.injection, self.evaluator, self.about = injection, evaluator, about or {}
        self.skip, self.skipped = skip, list[int]()
        self.clock = StepTimer()
        self.owed = False
        self._penalty: Tensor | float = 0.0
        self._restored: dict[str, Any] = {}
        self.remove_callback(PrinterCallback)
        self.add_callback(HookCallback(injection))
        self.add_callback(self.clock)
        self.add_callback(Restore(self))

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

    def rehearse(self) -> None:
        """Let the method check its schedule. ValueError where it does not fit the length of the run."""
        self.injection.hooks.on_train_begin(
            self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        )

    def saved_bytes(self) -> dict[str, int] | None:
        """Bytes that autograd saves for the backward pass of the first batch, adapters on and off.

        In evaluation mode, so that nothing random is drawn. None for a model whose inputs are not embedded.
        """
        model, counter = self.injection.model, self.injection.counter
        data, size = self.train_dataset, self.args.per_device_train_batch_size
        batch = self._prepare_inputs(self.data_collator([data[i] for i in range(min(size, len(data)))]))
        count, cast = counter.count, self.compute_loss_context_manager()
        try:
            with evaluating(model), cast, activations.embedded_inputs_learn(model):
                saved = activations.saved_bytes(model, lambda: model(**batch).loss)
                with self.injection.disabled():
                    frozen = activations.saved_bytes(model, lambda: model(**batch).loss)
        except NotImplementedError:
            return None
        finally:
            counter.count = count
        return {"saved": saved, "saved_frozen": frozen}

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
            penalty = self.injection.hooks.regularizer()
            steps = self.current_gradient_accumulation_steps
            # A loss over all items of the accumulated batch is summed as it is; others are divided later.
            summed = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            loss = loss + (penalty / steps if summed else penalty)
            self._penalty = penalty.detach() / steps if isinstance(penalty, Tensor) else penalty / steps
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **more: Any) -> Tensor:
        hooks, progress = self.injection.hooks, self.progress
        with hooks.forward_context(progress):
            loss = super().training_step(model, inputs, *rest, **more)
        if self.accelerator.sync_gradients:
            if progress.step == 1:
                _assert_gradients(self.injection)
            if self._sound(loss, inputs, progress.step):
                hooks.on_after_backward(progress)
        return loss - self._penalty

    def _sound(self, loss: Tensor, inputs: dict[str, Any], step: int) -> bool:
        """Whether the step is one of numbers; gradients that are none are dropped where steps are skipped."""
        parameters = self.injection.parameters()
        scaled = (
            self.accelerator.scaler is not None
        )  # float16: overflowing gradients are the scaler's business
        gradients = [] if scaled else [p.grad for p in parameters if p.grad is not None]
        if divergence.finite(loss, gradients):
            return True
        finding = divergence.locate_nonfinite(self.injection, self._prepare_inputs(inputs), loss)
        endless = self.skipped[1 - ENDURED :] == list(range(step - ENDURED + 1, step))
        if not self.skip or endless:
            rate = f"lr={self.args.learning_rate:g}" + (f", {ENDURED} steps in a row" if self.skip else "")
            raise divergence.Diverged(
                f"at step {step} {finding.said} ({rate})", step=step, layers=finding.layers
            )
        _log.warning("step %d is skipped: %s", step, finding.said)
        self.skipped.append(step)
        for p in parameters:
            p.grad = None
        return False

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        if "train_loss" in logs:  # of the whole run, also where an earlier process has trained a part of it
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, *rest, **more)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The task's metrics on the validation split, in the middle of training."""
        found = {f"eval_{name}": value for name, value in self.evaluator.evaluate_split("validation").items()}
        self.log(found)
        control = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, found)
        return found

    def _run_epoch(self, *arguments: Any, **more: Any) -> None:
        """An epoch; none where the checkpoint that a run goes on from is that of its last step."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **more)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._folder if self._folder is not None else super()._get_output_dir(trial))

    _folder: Path | None = None
    """Where a checkpoint is being written."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint of transformers', whole or not at all; a disk that refuses costs a warning."""
        root = Path(self.args.output_dir or ".")
        try:
            with checkpoints.staged(root, self.state.global_step) as folder:
                self._folder = folder.parent
                super()._save_checkpoint(model, trial)
                if self.state.best_global_step:
                    self.state.best_model_checkpoint = str(root / f"checkpoint-{self.state.best_global_step}")
                    self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        except checkpoints.Unsaved as refusal:
            _log.warning("%s; training goes on", refusal)
        else:
            checkpoints.rotate(root, self.args.save_total_limit, self.state.best_model_checkpoint)
        finally:
            self._folder = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """A checkpoint is the adapter, and beside it what the method, dropout and loops keep over time."""
        folder = Path(output_dir or self.args.output_dir or ".")
        save_adapter(self.injection, folder, **self.about)
        kept = {name: t.detach().cpu().clone() for name, t in self.injection.hooks.state_dict().items()}
        save_file(kept | {"clock": torch.tensor(self.injection.counter.count)}, folder / METHOD_STATE)
        buffers = {n: t.detach().cpu().clone() for n, t in base_buffers(self.injection.model).items()}
        save_file(buffers, folder / BUFFERS)
        progress = {
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "seconds": self.clock.seconds,
            "skipped": self.skipped,
            "owed": self.owed or self._epoch_is_unjudged(),
        }
        (folder / PROGRESS).write_text(json.dumps(progress))

    def _epoch_is_unjudged(self) -> bool:
        """Whether this step ends an epoch whose evaluation is still to come."""
        if self.args.eval_strategy != "epoch" or self.state.epoch is None or self.state.epoch % 1:
            return False
        now = [entry for entry in self.state.log_history if entry["step"] == self.state.global_step]
        return not any(name.startswith("eval_") for entry in now for name in entry)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.injection.load_state_dict(load_file(folder / WEIGHTS))
        kept = load_file(folder / METHOD_STATE)
        self.injection.counter.count = int(kept.pop("clock"))
        self.injection.hooks.load_state_dict(kept)
        stored = load_file(folder / BUFFERS)
        for name, buffer in base_buffers(self.injection.model).items():
            buffer.copy_(stored[name])
        self._restored = json.loads((folder / PROGRESS).read_text())
        self.args.eval_on_start = self._restored["owed"]

    def restore(self) -> None:
        """Go on with the sums and counts of the checkpoint, once transformers has set its own to zero."""
        if kept := self._restored:
            self._tr_loss += kept["loss"]
            self._total_loss_scalar, self._globalstep_last_logged = kept["total_loss"], kept["last_logged"]
            self.clock.seconds, self.skipped = kept["seconds"], kept["skipped"]


def _assert_each_once(groups: list[dict[str, Any]], injection: Injection) -> None:
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)), "a parameter is in two optimiser groups"
    assert set(grouped) == {id(p) for p in injection.parameters()}, "a trainable parameter is in no group"


def _assert_gradients(injection: Injection) -> None:
    full = set(injection.fully_trained)  # full fine-tuning may cover parts that a task leaves unused
    without = [n for n, p in injection.named_parameters().items() if p.grad is None and n not in full]
    if without:
        raise ValueError(
            f"{without[0]} (and {len(without) - 1} more) gets no gradient: the model does not use it; "
            "take it out of target_modules"
        )


class Restore(TrainerCallback):
    def __init__(self, trainer: "ZooTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.restore()
