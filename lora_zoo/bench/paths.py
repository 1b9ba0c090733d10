"""The paths that are compared: the frozen baseline, a variant as it is, by its definition, and PEFT's.

A step is forward, loss, backward and the hooks that a training step needs; the optimiser's own is measured
apart. The embedding's output requires a gradient everywhere, so that every adapted layer passes one on, as a
layer within a deep stack does.
"""

import contextlib
import copy
import itertools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lora_zoo.adapters import inits
from lora_zoo.adapters.adapter import Adapter
from lora_zoo.adapters.injection import Injection
from lora_zoo.adapters.method import Progress
from lora_zoo.adapters.registry import find_variant, hyperparameters
from lora_zoo.bench import peft
from lora_zoo.bench.shapes import Batch, Shape
from lora_zoo.bench.step_path import FIRST, TOTAL, StepPath, adapts_matrices, inject_linear, shared_copy

Paths = dict[tuple[str, float], StepPath]
"""Paths by name (frozen, fused, plain, peft) and dropout."""
LABELS = {"fused": "fused (as it is)", "plain": "plain (definition)", "peft": "PEFT"}


def paths(
    shape: Shape,
    base: nn.Module,
    variant: str,
    *,
    device: torch.device,
    dropouts: Sequence[float] = (0.0,),
    own: bool = False,
    **wanted: Any,
) -> Paths:
    """The ways to take a step with `variant`; `own`: only its own two, without the frozen baseline and PEFT's.

    A definition knows no dropout.
    """
    batch = shape.batch(device)
    found: Paths = {} if own else {("frozen", 0.0): frozen(base, batch)}
    for dropout in dropouts:
        if dropout and not takes_dropout(base, variant):
            continue
        ours = adapted(base, variant, lora_dropout=dropout, **wanted)
        found["fused", dropout] = fused(ours, batch)
        if ours.adapters and not dropout:
            found["plain", dropout] = plain(adapted(base, variant, **wanted), batch)
        if not own and peft.has(variant):
            found["peft", dropout] = peft.path(ours, shared_copy(base), batch)
    return found


def takes_dropout(base: nn.Module, variant: str) -> bool:
    """False for a baseline, which has none, and for a residual init, which refuses it."""
    if "lora_dropout" not in hyperparameters(find_variant(variant)):
        return False
    try:
        adapted(base, variant, lora_dropout=0.05)
    except ValueError:
        return False
    return True


def adapted(base: nn.Module, variant: str, **wanted: Any) -> Injection:
    """`variant` on all linear layers of a copy of `base`, its tensors away from their initial values.

    Inits cost time that is no step's (an SVD, say) and leave factors at zero; what is drawn here is the same
    for every copy.
    """
    model = shared_copy(base if adapts_matrices(variant) else copy.deepcopy(base))
    with inits.blank():
        injection = inject_linear(model, variant, **wanted)
    if adapts_matrices(variant):
        perturb(injection)
    return injection


@torch.no_grad()
def perturb(injection: Injection, width: float = 0.02) -> None:
    g = torch.Generator().manual_seed(2)
    for tensor in injection.state_dict().values():
        tensor.add_(width * torch.randn(tensor.shape, generator=g).to(tensor))


def frozen(base: nn.Module, batch: Batch) -> StepPath:
    """The frozen base alone: forward, and the backward that carries the gradient to the embedding."""
    model = shared_copy(base)
    return StepPath(model, lambda: model(**batch).loss)


def fused(injection: Injection, batch: Batch) -> StepPath:
    """The variant with the forward pass that it has."""
    model, method, steps = injection.model, injection.method, itertools.count(FIRST)
    method.begin(TOTAL)

    def hooks() -> None:
        progress = Progress(next(steps), TOTAL)
        method.on_backward_end(progress)
        method.on_step_end(progress)

    return StepPath(
        model,
        lambda: model(**batch).loss + method.regularizer(),
        hooks,
        groups=lambda: injection.param_groups(lr=1e-4),
        parameters=injection.parameters(),
    )


def plain(injection: Injection, batch: Batch) -> StepPath:
    """The same through the effective matrix, W' = weight(W), which is what a variant is by definition."""
    path = fused(injection, batch)
    path.context = lambda: reference_forward(injection)
    return path


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
