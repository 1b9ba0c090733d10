"""A variant's part that spans layers or time. Every hook has a neutral default.

The order of a training step: `objective` inside `forward_context`, by default one forward pass -> task loss +
its extra + `regularizer` -> backward ->
`on_after_backward` -> clipping -> optimiser step -> `on_step_end` -> schedule -> gradients to zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lora_zoo.core.dropout import ForwardCounter

WITHIN_STEP = ("forward_context", "objective", "regularizer")
"""Hooks that act between the forward pass and its backward: they could reach other jobs of the same model."""


class Progress(NamedTuple):
    """Optimiser steps: `step` counts from 1 (the step in hand), `total` is the whole run's.

    `rate` is the schedule's factor of this step: every learning rate is so many times its first value.
    """

    step: int
    total: int
    rate: float = 1.0


Pass = tuple[Tensor, Any]
"""The task's loss and the model's outputs."""


class AdapterHooks(nn.Module):
    """Hooks over all adapters of one model; buffers are saved and resumed with checkpoints, not exported.

    Keyword-only arguments of a subclass's constructor are hyperparameters of the variant, beside the
    adapter's own.
    """

    def __init__(self, adapters: Mapping[str, Any]) -> None:
        super().__init__()
        object.__setattr__(self, "adapters", dict(adapters))  # owned by their layers, not by the method

    adapters: dict[str, Any]
    packable: ClassVar[bool] = False
    """True if what this class does within a step (WITHIN_STEP) does not reach other jobs of the same model; a
    class that overrides one of them and does not say so trains by itself."""
    model: nn.Module
    matrices: Mapping[str, Any]
    seed: int
    counter: ForwardCounter
    """The adapted model, its target matrices by name, the seed and what its passes count; set by `attach`."""

    def attach(
        self, model: nn.Module, matrices: Mapping[str, Any], *, seed: int, counter: ForwardCounter
    ) -> None:
        """Show the hooks the adapted model; called once by `inject`, before anything else."""
        self.__dict__.update(model=model, matrices=matrices, seed=seed, counter=counter)  # not submodules

    @classmethod
    def not_packable(cls) -> str:
        """The method within a step that keeps jobs with these hooks from sharing a model, or "".

        The class that overrides it, or one derived from that, may declare `packable = True`.
        """
        for method in WITHIN_STEP:
            lineage = cls.__mro__[: next(n for n, c in enumerate(cls.__mro__) if method in vars(c)) + 1]
            if lineage[-1] is not AdapterHooks and not any(vars(c).get("packable") for c in lineage):
                return method
        return ""

    def emitted(self) -> Tensor | float:
        """The sum of the scalars that the adapters emitted in the last training pass."""
        return sum(self.counter.emitted, 0.0)

    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> nn.Module | None:
        """The module that all adapters share; `shapes` maps each adapted matrix's name to its (O, I).

        Its tensors belong on the device of `like`, trainable ones in its dtype. They train, are counted and
        saved once, and their gradients add over the matrices. `hyper` holds the greatest rank.
        """
        return None

    def on_train_begin(self, total: int) -> None:
        """Training of `total` optimiser steps is about to start; may be called again before it does.

        ValueError where a schedule does not fit.
        """

    def param_groups(
        self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Optimiser groups over the adapters' trainable parameters."""
        return [{"params": list(named.values()), "lr": lr, "weight_decay": weight_decay}]

    def objective(self, once: Callable[[], Pass], progress: Progress) -> tuple[Tensor, Any, Tensor | float]:
        """The loss that is reported, the outputs, and an extra that is differentiated and not reported.

        `once()` is one pass of the batch in hand; more calls are more passes, each with dropout masks of its
        own. The extra is in the loss's units, as another `once()` gives. By default: one pass, no extra.
        """
        loss, outputs = once()
        return loss, outputs, 0.0

    def regularizer(self) -> Tensor | float:
        """Added to the loss that is differentiated, never to the loss that is reported."""
        return 0.0

    def forward_context(self, progress: Progress) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def on_after_backward(self, progress: Progress) -> None:
        """Gradients exist and are not yet clipped; weights are those that the gradients belong to."""

    def on_step_end(self, progress: Progress) -> None:
        """The optimiser has stepped; gradients are still there, or None where the step was skipped."""

    def on_train_end(self) -> None:
        """Training is over."""

    def kept(self) -> Mapping[str, Tensor]:
        """The components that remain, asked once training is over: matrix -> int64 indices, ascending.

        The others are dropped before the adapter is saved: what is kept computes the same function. At least
        one stays in each matrix; a matrix that is not named keeps all.
        """
        return {}

    def law(self) -> None:
        """Assert what makes this method itself (called by the conformance suite)."""
