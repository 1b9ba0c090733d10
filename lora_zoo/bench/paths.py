"""The paths that are compared: the frozen baseline, a variant as it is, by its definition, and PEFT's.

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
from torch.optim import Optimizer

from lora_zoo.bench import peft
from lora_zoo.bench.peft import TOTAL
from lora_zoo.bench.shapes import Batch, Shape
from lora_zoo.core import init as inits
from lora_zoo.core.adapter import Adapter
from lora_zoo.core.hooks import MakeOptimizer, Progress
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.injection.targets import Layers

LABELS = {"fused": "fused (as it is)", "plain": "plain (definition)", "peft": "PEFT"}
RANK = 8
FIRST = 11
"""The optimiser step that is measured first: AdaLoRA's budget shrinks from step 10 on."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "adalora": {"tinit": FIRST - 1, "tfinal": 10},
    "vera": {"rank": 256, "projection": "peft"},
}
"""Settings of a variant that are measured, where they are neither its defaults nor `RANK`."""


@dataclass
class StepPath:
    """A model that can be stepped. `loss` includes the regulariser, `hooks` follow the backward pass."""

    model: nn.Module
    loss: Callable[[], Tensor]
    hooks: Callable[[], object] = bool
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    optimizer: Callable[[MakeOptimizer], Optimizer] = lambda make: make([])
    parameters: list[nn.Parameter] = field(default_factory=list)

    def step(self) -> None:
        with self.context():
            self.loss().backward()
            self.hooks()
        for parameter in self.parameters:
            parameter.grad = None

    def prepare(self) -> Callable[[], None]:
        """The step, as a stopwatch takes it: nothing is to be made ready."""
        return self.step


Paths = dict[tuple[str, float], StepPath]
"""Paths by name (frozen, fused, plain, peft) and dropout."""


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
    """The ways to take a step with `variant`; `own`: without the frozen baseline's and PEFT's.

    A definition knows no dropout, and without an effective weight there is none; a baseline has no dropout,
    and a residual init refuses it.
    """
    batch = shape.batch(device)
    found: Paths = {} if own else {("frozen", 0.0): frozen(base, batch)}
    for dropout in filter(lambda p: not p or takes_dropout(variant), dropouts):
        ours = adapted(base, variant, lora_dropout=dropout, **wanted)
        found["fused", dropout] = fused(ours, batch)
        if ours.adapters and ours.variant.pointwise and not dropout:
            found["plain", dropout] = plain(adapted(base, variant, lora_dropout=dropout, **wanted), batch)
        if not own and peft.has(ours):
            found["peft", dropout] = in_peft(ours, shared_copy(base), batch)
    return found


def takes_dropout(variant: str) -> bool:
    known = hyperparameters(VARIANTS.find(variant))
    residual = [name for name, init in inits.INITS.items() if init.residual]
    return "lora_dropout" in known and ("init" not in known or known["init"].default not in residual)


def adapts_matrices(variant: str) -> bool:
    return issubclass(VARIANTS.find(variant), Adapter)


def inject_linear(
    model: nn.Module, variant: str, *, layers: Layers | None = None, name: str = "default", **wanted: Any
) -> Injection:
    """`variant` on all linear layers, with its `SETTINGS`; what it does not know of `wanted` is left out."""
    known = hyperparameters(VARIANTS.find(variant))
    every = {"rank": RANK} | dict(SETTINGS.get(variant, {})) | wanted
    hyper = {key: value for key, value in every.items() if key in known}
    return inject(model, variant, target_modules="all-linear", layers=layers, name=name, **hyper)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` that shares its parameters, with an embedding's output that requires a gradient."""
    copied = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    copied.enable_input_require_grads()  # type: ignore[operator]
    return copied


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
def perturb(injection: Injection, width: float = 0.05) -> None:
    """Move every tensor; one of three or more axes further, as an entry of ΔW may be a product of several."""
    g = torch.Generator().manual_seed(2)
    for tensor in filter(torch.is_floating_point, injection.state_dict().values()):
        own = width if tensor.ndim < 3 else max(width, 0.5 * tensor.shape[-1] ** -0.5)
        tensor.add_(own * torch.randn(tensor.shape, generator=g).to(tensor))


def frozen(base: nn.Module, batch: Batch) -> StepPath:
    """The frozen base alone: forward, and the backward that carries the gradient to the embedding."""
    model = shared_copy(base)
    return StepPath(model, lambda: model(**batch).loss)


def fused(injection: Injection, batch: Batch) -> StepPath:
    """The variant with the forward pass that it has."""
    model, hooks, steps = injection.model, injection.hooks, itertools.count(FIRST)
    hooks.on_train_begin(TOTAL)

    def around_the_step() -> None:
        progress = Progress(next(steps), TOTAL)
        hooks.on_after_backward(progress)
        hooks.on_step_end(progress)

    return StepPath(
        model,
        lambda: model(**batch).loss + hooks.regularizer(),
        around_the_step,
        optimizer=lambda make: injection.optimizer(make, lr=1e-4),
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
    kernels = {adapter: adapter.fused for adapter in injection.adapters.values()}
    for adapter in kernels:
        adapter.fused = None
        adapter.forward = types.MethodType(Adapter.forward, adapter)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for adapter, kernel in kernels.items():
            adapter.fused = kernel
            del adapter.forward


def in_peft(ours: Injection, model: nn.Module, batch: Batch) -> StepPath:
    """PEFT's adapter on `model`, a copy of the base, with the settings and the tensors of `ours`."""
    tuner, steps = peft.aligned(ours, model), itertools.count(FIRST)
    allocate = getattr(tuner, "update_and_allocate", None)  # AdaLoRA's, which PEFT's user calls
    return StepPath(
        tuner,
        lambda: tuner(**batch).loss,
        hooks=(lambda: allocate(next(steps))) if allocate else bool,
        optimizer=lambda make: make(peft.groups(ours, tuner)),
        parameters=[p for p in tuner.parameters() if p.requires_grad],
    )
