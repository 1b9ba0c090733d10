"""Losses and gradients that are NaN or infinite: find them, and the adapted layers they come from."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.core.train_eval import in_mode
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.wrappers import AdapterWrapper

_log = logging.getLogger("lora_zoo")
SHOWN = 5  # layers that a message names
MAX_SKIPPED = 10
"""After this many skipped steps in a row the run counts as diverged."""


class Diverged(RuntimeError):
    """Loss or gradients became NaN or inf. The run's outcome, not a bug."""

    def __init__(self, message: str, *, step: int, layers: list[str]) -> None:
        super().__init__(message)
        self.step = step
        self.about: dict[str, Any] = {"step": step, "layers": layers}


class Diagnosis(NamedTuple):
    """The cause of a non-finite step: a sentence, and the layers that it is about."""

    text: str
    layers: list[str]


class StepCheck(NamedTuple):
    """Refuses a step that is not finite: with Diverged or, given the list of steps `skipped`, for a while."""

    injection: Injection
    step: int
    lr: float
    skipped: list[int] | None

    def passes(self, loss: Tensor, inputs: Callable[[], Mapping[str, Any]], *, scaled: bool) -> bool:
        """True for a finite loss and finite gradients, those of a float16 scaler (`scaled`) not looked at.

        False for a step that is skipped: it has been added to `skipped`, and its gradients dropped.
        """
        parameters = self.injection.parameters()
        gradients = [] if scaled else [p.grad for p in parameters if p.grad is not None]
        if finite(loss, gradients):
            return True
        diagnosis = locate_nonfinite(self.injection, inputs(), loss)
        row = list(range(self.step - MAX_SKIPPED + 1, self.step))
        if self.skipped is None or self.skipped[1 - MAX_SKIPPED :] == row:
            more = "" if self.skipped is None else f", {MAX_SKIPPED} steps in a row"
            text = f"at step {self.step} {diagnosis.text} (lr={self.lr:g}{more})"
            raise Diverged(text, step=self.step, layers=diagnosis.layers)
        _log.warning("step %d is skipped: %s", self.step, diagnosis.text)
        self.skipped.append(self.step)
        for p in parameters:
            p.grad = None
        return False


def finite(loss: Tensor, gradients: list[Tensor]) -> bool:
    """True if the loss and every entry of the gradients are finite. Waits for the device once."""
    norms = [*torch._foreach_norm(gradients), loss.detach().norm()] if gradients else [loss.detach().norm()]
    device = loss.device
    return bool(torch.stack([norm.to(device, torch.float32) for norm in norms]).isfinite().all())


def locate_nonfinite(injection: Injection, inputs: Mapping[str, Any], loss: Tensor) -> Diagnosis:
    """Find the layers that are not finite: in their weights, else their outputs, else their gradients."""
    named = injection.named_parameters()
    if broken := _layers(name for name, p in named.items() if not p.isfinite().all()):
        return Diagnosis(f"the weights of {_join_layers(broken)} are NaN or inf", broken)
    if not loss.isfinite():
        if layer := _first_output(injection.model, inputs):
            text = f"the loss is {loss.item()}; the first output with NaN or inf is {layer}'s"
            return Diagnosis(text, [layer])
        return Diagnosis(f"the loss is {loss.item()}, while each adapted layer's output is finite", [])
    gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
    broken = _layers(name for name, g in gradients.items() if not g.norm().isfinite())
    return Diagnosis(f"the gradients of {_join_layers(broken)} are NaN or inf, or overflow", broken)


@torch.no_grad()
def _first_output(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """The adapted layer whose output is the first that is not finite, in a pass without dropout."""
    seen: list[str] = []
    with contextlib.ExitStack() as hooks, in_mode(model, training=False):
        for wrapper in (module for module in model.modules() if isinstance(module, AdapterWrapper)):
            hook = wrapper.register_forward_hook(lambda s, _, y: seen.append(s.name) if _broken(y) else None)
            hooks.callback(hook.remove)
        model(**inputs)
    return seen[0] if seen else ""


def _broken(y: Any) -> bool:
    return isinstance(y, Tensor) and not bool(y.isfinite().all())


def _layers(names: Iterator[str]) -> list[str]:
    """The layers of parameters, each once."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _join_layers(layers: list[str]) -> str:
    more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    return ", ".join(layers[:SHOWN]) + more
