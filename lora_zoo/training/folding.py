"""Folding: what was learned is written into W for the rest of a run, where no factors could hold it.

The base's own values come back at the end of the run, whose adapter then trains every parameter in full.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.base_model import base_buffers, base_parameters
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.plan import InjectionPlan, complete_hyperparameters

Values = Mapping[str, Tensor]
"""The values of every parameter and buffer of a base model, by name."""


@torch.no_grad()
def effective(model: nn.Module) -> dict[str, Tensor]:
    """The values with which the model by itself computes what it does with its active adapters."""
    adapters = adapters_of(model)
    adapters.merge()
    found = {n: t.detach().clone() for n, t in (base_parameters(model) | base_buffers(model)).items()}
    adapters.unmerge()
    return found


@torch.no_grad()
def fold(model: nn.Module, values: Values) -> dict[str, Tensor]:
    """Remove all adapters, write `values` into the base in place, and return those that it had.

    ValueError, before anything is written, where tied weights would have to differ.
    """
    adapters_of(model).remove()
    every: dict[str, Tensor] = base_parameters(model) | base_buffers(model)
    first: dict[int, str] = {}
    for name, tensor in every.items():
        other = first.setdefault(id(tensor), name)
        if not torch.equal(values[other], values[name]):
            raise ValueError(f"{name} is tied to {other}, and would have to be another one: adapt neither")
    before = {name: tensor.detach().clone() for name, tensor in every.items()}
    for name, tensor in every.items():
        tensor.copy_(values[name])
    return before


def in_full(model: nn.Module, values: Values, name: str, seed: int) -> Injection:
    """The adapter of a plain model that holds these values as trained in full."""
    cls = VARIANTS.find("full")
    plan = InjectionPlan(cls, complete_hyperparameters(cls, {}), [], [*base_parameters(model)])
    injection = Injection(model, plan, seed=seed, name=name)
    injection.load_state_dict({key: values[key] for key in injection.state_dict()})
    return injection
