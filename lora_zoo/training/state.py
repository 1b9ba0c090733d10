"""The state of a run in training: what a checkpoint holds, stated in one place."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from lora_zoo.formats.description import WEIGHTS
from lora_zoo.formats.native import save_adapter
from lora_zoo.injection.base_model import base_buffers
from lora_zoo.injection.inject import Injection
from lora_zoo.training.ranks import RankRecorder
from lora_zoo.training.resumable import flaw_of_content
from lora_zoo.training.timing import StepTimer
from lora_zoo.training.transformers_trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, Trainer

TENSORS = {"adapter": WEIGHTS, "hooks": "method.safetensors", "buffers": "buffers.safetensors"}
PROGRESS = "progress.json"
REQUIRED = (*TENSORS.values(), PROGRESS, OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state.pth", TRAINER_STATE_NAME)
"""Files without which a checkpoint cannot be resumed exactly (trainer.save_only_model leaves some out)."""


class TrainState(TrainerCallback):
    """All that a checkpoint holds: a run resumed from one ends with the bits of a run without a break.

    | file | content | `state_dict` |
    |---|---|---|
    | adapter.safetensors, adapter.json | the adapter's tensors and its description | adapter |
    | method.safetensors | the hooks' buffers; `clock`, each dropout's calls, which key masks | hooks |
    | buffers.safetensors | the base model's buffers | buffers |
    | progress.json | `loss`, summed since the last log | progress |
    | | `total_loss`, summed up to the last log | |
    | | `last_logged`, the step of the last log | |
    | | `seconds` of each optimiser step | |
    | | `skipped`, the steps whose loss or gradients were not finite | |
    | | `owed`: this step's evaluation is pending | |
    | | `ranks` of the matrices, where they changed | |
    | | `dropped`: DropBP's rates | |
    | optimizer.pt, scheduler.pt, scaler.pt | moments, learning rates, float16's loss scale | transformers |
    | rng_state.pth | random streams: Python's, NumPy's, torch's, each device's | transformers |
    | trainer_state.json | step, epoch and log history | transformers |
    | manifest.json | size and SHA-256 of every file | `checkpoints.seal` |

    The order of the data is not stored: transformers draws it again from data_seed and skips what was seen.
    """

    def __init__(self, trainer: Trainer, injection: Injection, ranks: RankRecorder) -> None:
        self.trainer, self.injection, self.timer = trainer, injection, StepTimer()
        self.ranks = ranks
        self.skipped = list[int]()
        self.evaluation_pending = False
        self._loaded: dict[str, dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, dict[str, Any]]:
        trainer, injection = self.trainer, self.injection
        return {
            "adapter": injection.state_dict(),
            "hooks": injection.hooks.state_dict() | {"clock": self._clock()},
            "buffers": base_buffers(injection.model),
            "progress": {
                "loss": trainer._tr_loss.item(),
                "total_loss": trainer._total_loss_scalar,
                "last_logged": trainer._globalstep_last_logged,
                "seconds": self.timer.seconds,
                "skipped": self.skipped,
                "owed": self.evaluation_pending or self._epoch_evaluation_pending(),
                "ranks": self.ranks.changes,
                "dropped": trainer.dropper and trainer.dropper.state(),
            },
        }

    def tensors(self) -> dict[str, Tensor]:
        """All that the model computes with and training changes, by part and name."""
        state = self.state_dict()
        return {f"{part}/{name}": tensor for part in TENSORS for name, tensor in state[part].items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        trainer, progress = self.trainer, state["progress"]
        self._load_tensors(state)
        trainer._tr_loss += progress["loss"]
        trainer._total_loss_scalar = progress["total_loss"]
        trainer._globalstep_last_logged = progress["last_logged"]
        self.timer.seconds, self.skipped = progress["seconds"], progress["skipped"]
        trainer.args.eval_on_start = progress["owed"]
        self.ranks.changes = progress["ranks"]
        if trainer.dropper is not None:
            trainer.dropper.load_state(progress["dropped"])

    def _load_tensors(self, state: dict[str, dict[str, Any]]) -> None:
        """Set what the model computes with."""
        injection = self.injection
        injection.load_state_dict(state["adapter"])
        injection.counter.counts = dict(
            zip(injection.counter.sites, state["hooks"]["clock"].tolist(), strict=True)
        )
        injection.hooks.load_state_dict({n: t for n, t in state["hooks"].items() if n != "clock"})
        for name, buffer in base_buffers(injection.model).items():
            buffer.copy_(state["buffers"][name])

    def save(self, folder: Path, **about: Any) -> None:
        state = self.state_dict()
        save_adapter(self.injection, folder, **about)
        for part in ("hooks", "buffers"):
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in state[part].items()}
            save_file(tensors, folder / TENSORS[part])
        (folder / PROGRESS).write_text(json.dumps(state["progress"]))

    @torch.no_grad()
    def load_best(self, folder: Path) -> None:
        """Set the tensors to those of a checkpoint of this run; what the run has counted stays."""
        self._load_tensors(_tensors(folder))

    def load(self, folder: Path) -> None:
        """Read a checkpoint. It is set when training begins, once transformers has set its sums to zero."""
        self._loaded = _tensors(folder)
        self._loaded["progress"] = json.loads((folder / PROGRESS).read_text())

    def flaw(self, folder: Path) -> str:
        """The first flaw of what a checkpoint holds; "" where this run can go on from it."""
        return flaw_of_content(folder, TENSORS, PROGRESS, self.injection.state_dict())

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if self._loaded is not None:
            self.load_state_dict(self._loaded)
            self._loaded = None

    def _clock(self) -> Tensor:
        return torch.tensor(list(self.injection.counter.counts.values()), dtype=torch.int64)

    def _epoch_evaluation_pending(self) -> bool:
        """True if this step ends an epoch whose evaluation is still to come."""
        state = self.trainer.state
        if self.trainer.args.eval_strategy != "epoch" or state.epoch is None or state.epoch % 1:
            return False
        now = [entry for entry in state.log_history if entry["step"] == state.global_step]
        return not any(name.startswith("eval_") for entry in now for name in entry)


def _tensors(folder: Path) -> dict[str, dict[str, Any]]:
    return {part: load_file(folder / name) for part, name in TENSORS.items()}
