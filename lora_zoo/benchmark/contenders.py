"""What is compared: the frozen limit, a variant as it is, by its reference definition, and PEFT's.

A step is forward, loss, backward and the hooks that a training step needs; the optimiser's own is measured
apart. The embedding's output requires a gradient everywhere, so that every adapted layer passes one on, as a
layer within a deep stack does.
"""

import contextlib
import copy
import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.benchmark.shapes import Batch, Shape
from lora_zoo.core import init
from lora_zoo.core.adapter import Adapter, Variant
from lora_zoo.core.hooks import Progress
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.inject.injection import Injection, inject
from lora_zoo.inject.targets import Layers

TARGETS = "all-linear"
RANK = 8
TOTAL, FIRST = 10_000, 11
"""A run's optimiser steps, and the one that is measured first: AdaLoRA's budget shrinks from step 10 on."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "adalora": {"tinit": FIRST - 1, "tfinal": 10},
    "vera": {"rank": 256, "projection": "peft"},
}
"""What a variant is measured with, where that is neither its default nor `RANK`."""


@dataclass
class Contender:
    """A model that can be stepped. `loss` includes the regulariser, `hooks` follow the backward pass."""

    model: nn.Module
    loss: Callable[[], Tensor]
    hooks: Callable[[], object] = bool
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    groups: Callable[[], list[dict[str, Any]]] = list
    parameters: list[nn.Parameter] = field(default_factory=list)

    def step(self) -> None:
        with self.around():
            self.loss().backward()
            self.hooks()
        for parameter in self.parameters:
            parameter.grad = None


def sharing(model: nn.Module) -> nn.Module:
    """A copy of `model` that shares its parameters, which nothing here writes to."""
    copied = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    return differentiable(copied)


def differentiable(model: nn.Module) -> nn.Module:
    """`model`, with an embedding's output that requires a gradient."""
    model.get_input_embeddings().register_forward_hook(_require)  # type: ignore[operator]
    return model


def _require(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output.requires_grad_()


def limit(base: nn.Module, batch: Batch) -> Contender:
    """The frozen base alone: forward, and the backward that carries the gradient to the embedding."""
    model = sharing(base)
    return Contender(model, lambda: model(**batch).loss)


def hyper_of(variant: str, **wanted: Any) -> dict[str, Any]:
    """The hyperparameters that `variant` is measured with; what it does not know is left out."""
    known = hyperparameters(VARIANTS.find(variant))
    return {
        k: v for k, v in ({"rank": RANK} | dict(SETTINGS.get(variant, {})) | wanted).items() if k in known
    }


def adapts_matrices(variant: type[Variant]) -> bool:
    return issubclass(variant, Adapter)


def adapted(base: nn.Module, variant: str, *, layers: Layers | None = None, **hyper: Any) -> Injection:
    """`variant` on all linear layers of a copy of `base`, its tensors away from their start.

    Starts cost time that is no step's (an SVD, say) and leave factors at zero; what is drawn here is the same
    for every copy.
    """
    own = adapts_matrices(VARIANTS.find(variant))
    model = sharing(base) if own else differentiable(copy.deepcopy(base))
    with init.blank():
        injection = inject(
            model, variant, target_modules=TARGETS, layers=layers, **hyper_of(variant, **hyper)
        )
    if own:
        stir(injection)
    return injection


@torch.no_grad()
def stir(injection: Injection, width: float = 0.02) -> None:
    g = torch.Generator().manual_seed(2)
    for tensor in injection.state_dict().values():
        tensor.add_(width * torch.randn(tensor.shape, generator=g).to(tensor))


def as_it_is(injection: Injection, batch: Batch) -> Contender:
    """The variant with the forward pass that it has."""
    model, method, steps = injection.model, injection.hooks, itertools.count(FIRST)
    method.on_train_begin(TOTAL)

    def hooks() -> None:
        progress = Progress(next(steps), TOTAL)
        method.on_after_backward(progress)
        method.on_step_end(progress)

    return Contender(
        model,
        lambda: model(**batch).loss + method.regularizer(),
        hooks,
        groups=lambda: injection.param_groups(lr=1e-4),
        parameters=injection.parameters(),
    )


def by_definition(injection: Injection, batch: Batch) -> Contender:
    """The same through the effective matrix, W' = weight(W), which is what a variant is by definition."""
    contender = as_it_is(injection, batch)
    contender.around = lambda: reference_forward(injection)
    return contender


@contextlib.contextmanager
def reference_forward(injection: Injection) -> Iterator[None]:
    """Inside, each adapter's forward is the interface's own: `host.apply(x, weight(W))`, without dropout."""
    adapters = list(injection.adapters.values())
    for adapter in adapters:
        adapter.forward = types.MethodType(Adapter.forward, adapter)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for adapter in adapters:
            del adapter.forward


Paths = dict[tuple[str, float], Contender]
"""Contenders by path (limit, fused, plain, peft) and dropout."""


def contenders(
    shape: Shape,
    base: nn.Module,
    variant: str,
    *,
    device: torch.device,
    dropouts: Sequence[float] = (0.0,),
    layers: Layers | None = None,
    rivals: bool = True,
    **hyper: Any,
) -> Paths:
    """The ways to take a step with `variant`: by itself and, but for dropout, which it does not know, by its
    definition; with `rivals` also the frozen limit and PEFT's."""
    from lora_zoo.benchmark import peft_side

    batch = shape.batch(device)
    found = {("limit", 0.0): limit(base, batch)} if rivals else {}
    for dropout in dropouts:
        if dropout and not takes_dropout(base, variant):
            continue
        ours = adapted(base, variant, layers=layers, lora_dropout=dropout, **hyper)
        found["fused", dropout] = as_it_is(ours, batch)
        if ours.adapters and not dropout:
            found["plain", dropout] = by_definition(adapted(base, variant, layers=layers, **hyper), batch)
        if rivals and peft_side.has(variant):
            found["peft", dropout] = peft_side.contender(ours, sharing(base), batch)
    return found


def takes_dropout(base: nn.Module, variant: str) -> bool:
    """Whether `variant` takes dropout at all: a baseline has none, a residual start refuses it."""
    if "lora_dropout" not in hyperparameters(VARIANTS.find(variant)):
        return False
    try:
        adapted(base, variant, lora_dropout=0.05)
    except ValueError:
        return False
    return True
