"""The handover to a stage of a run: the course of the rate, and an optimiser's moments over a cut.

Moments are an optimiser's tensors for each parameter: AdamW's exp_avg, exp_avg_sq and step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lora_zoo.core.program import Pruning
from lora_zoo.core.seeding import generator
from lora_zoo.injection.inject import Injection

Moments = Mapping[str, Mapping[str, Tensor]]
"""Parameter -> name -> tensor."""
FILE = "moments.safetensors"
"""The file, within a stage's folder, of the moments that it hands on; deleted once the run is done."""
SEPARATOR = "::"


class Handover(NamedTuple):
    """The place of a training in its run and the moments that it takes over: by default none, as it is a run.

    It follows the schedule of a run of `total` steps, `before` of which are done, where `rewarm` is set.
    """

    before: int = 0
    total: int = 0
    rewarm: int | None = None
    moments: Moments = {}  # noqa: RUF012 - it cannot change

    def steps(self, own: int) -> int:
        """The steps of the schedule that a training of `own` steps follows."""
        return own if self.rewarm is None else self.total


def restarted(curve: Callable[[int], float], before: int, rewarm: int, step: int) -> float:
    """The factor on the rate after `step` steps of a stage that follows `before` steps of the run.

    It rises from 0 to that of the run's own `curve` in `rewarm` steps (ReLoRA's jagged schedule).
    """
    reached = curve(before + max(step, rewarm))
    return reached * step / rewarm if step < rewarm else reached


def follow_run(schedule: Any, before: int, rewarm: int) -> None:
    """Make a new schedule of the whole run one of a stage of it, in place.

    ValueError for a schedule that is no function of the step.
    """
    if not hasattr(schedule, "lr_lambdas"):
        kind = type(schedule).__name__
        raise ValueError(f"{kind} gives no rate for each step of a run: choose another lr_scheduler_type")
    schedule.lr_lambdas = [partial(restarted, curve, before, rewarm) for curve in schedule.lr_lambdas]
    for group, first, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = first * factor(0)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


def moments_of(optimizer: Optimizer, injection: Injection) -> dict[str, dict[str, Tensor]]:
    """The moments of an injection's parameters. ValueError for an optimiser that keeps something else."""
    state, found = optimizer.state_dict()["state"], {}
    for number, name in _numbered(optimizer, injection).items():
        own = state.get(number, {})
        if not all(isinstance(value, Tensor) for value in own.values()):
            kind = type(optimizer).__name__
            raise ValueError(f"the state of {kind} is not of tensors alone, so that it cannot be handed on")
        found[name] = {key: value.detach().cpu().clone() for key, value in own.items()}
    return found


def pruned(moments: Moments, injection: Injection, how: Pruning, seed: int) -> dict[str, dict[str, Tensor]]:
    """The moments with the entries of adapters' own pruned; those of what trains in full stay whole."""
    whole, every = set(injection.fully_trained), injection.named_parameters()
    return {
        name: {
            key: value
            if name in whole or value.shape != every[name].shape
            else _pruned(value, how, generator("moments", seed, name, key))
            for key, value in own.items()
        }
        for name, own in moments.items()
    }


def _pruned(value: Tensor, how: Pruning, source: torch.Generator) -> Tensor:
    """ReLoRA's own rule: what exceeds the quantile of the magnitudes stays, or what a draw keeps."""
    if how.by == "random":
        return value * (torch.rand(value.shape, generator=source) > how.share)
    size = value.abs()
    return value * (size > quantile(size.flatten(), how.share))


def quantile(values: Tensor, share: float) -> Tensor:
    """`torch.quantile`, linear between neighbours, of as many values as there are."""
    place = share * (len(values) - 1)
    ordered, low = values.sort().values, int(place)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(values) - 1)], place - low)


def take_over(optimizer: Optimizer, injection: Injection, moments: Moments) -> None:
    """Give a new optimiser the moments of parameters of the same name and shape, in place."""
    state, every = optimizer.state_dict(), injection.named_parameters()
    for number, name in _numbered(optimizer, injection).items():
        own = moments.get(name, {})
        if own and all(t.ndim == 0 or t.shape == every[name].shape for t in own.values()):
            state["state"][number] = {key: tensor.clone() for key, tensor in own.items()}
    optimizer.load_state_dict(state)


def _numbered(optimizer: Optimizer, injection: Injection) -> dict[int, str]:
    """The number of each parameter in the optimiser's state, and its name."""
    names = {id(p): name for name, p in injection.named_parameters().items()}
    every = [p for group in optimizer.param_groups for p in group["params"]]
    return {number: names[id(p)] for number, p in enumerate(every)}


def flat(moments: Moments) -> dict[str, Tensor]:
    """Moments as the tensors of one file."""
    return {f"{name}{SEPARATOR}{key}": t for name, own in moments.items() for key, t in own.items()}


def unflat(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The moments of which `flat` made tensors."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.partition(SEPARATOR)
        found.setdefault(parameter, {})[key] = tensor
    return found
