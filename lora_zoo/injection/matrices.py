"""Target matrices: every matrix of a model that an adapter can work on, with its role.

A module's matrix is called like the module, a part of a fused projection `….c_attn.q`, a matrix of stacked
experts `….experts.gate_up_proj.3.up`, a slice of torch's attention `….in_proj_weight.k`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lora_zoo.core.host import Host
from lora_zoo.hosts.find import find_host
from lora_zoo.hosts.fused import ExpertLayout, parts_of, stack_of
from lora_zoo.hosts.parameter import ParameterHost
from lora_zoo.injection.base_model import named_base_modules, own_parameters
from lora_zoo.injection.roles import of_head, role_of


@dataclass(frozen=True)
class TargetMatrix:
    """One matrix (O, I). `tensor` is the module or parameter that stores it, `whole` what it is a part of."""

    name: str
    tensor: str
    role: str
    host: Host
    whole: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.host.shape

    def holds(self, parameter: str) -> bool:
        """True if `parameter` is stored in the module or parameter that stores this matrix."""
        return parameter == self.tensor or parameter.startswith(f"{self.tensor}.")

    @property
    def linear(self) -> bool:
        return self.host.linear


def find_matrices(model: nn.Module) -> list[TargetMatrix]:
    """Every matrix of the base model, in the model's order; a fused one before its parts."""
    configs: dict[str, Any] = {}
    found: list[TargetMatrix] = []
    for name, module in named_base_modules(model):
        configs[name] = getattr(module, "config", None) or configs.get(name.rpartition(".")[0])
        found += _of(name, module, configs[name])
    return found


def _of(name: str, module: nn.Module, config: Any) -> Iterator[TargetMatrix]:
    if host := find_host(module):
        parts = parts_of(name, host.shape[0], config) if host.dense else {}
        yield TargetMatrix(name, name, "" if parts else role_of(name), host)
        for role, rows in parts.items():
            yield TargetMatrix(f"{name}.{role}", name, role, type(host)(module, rows), whole=name)
    elif isinstance(module, nn.MultiheadAttention) and not of_head(name):
        yield from _of_attention(name, module)
    else:
        for parameter, tensor in own_parameters(module).items():
            if tensor.ndim == 3:
                E, first, second = tensor.shape
                if stack := stack_of(f"{name}.{parameter}", (E, first, second), module, config):
                    yield from _of_experts(f"{name}.{parameter}", module, parameter, stack)


def _of_attention(name: str, module: nn.MultiheadAttention) -> Iterator[TargetMatrix]:
    """The matrices of torch's own attention, which calls none of its projections as a layer."""
    tensors = own_parameters(module)
    if "in_proj_weight" in tensors:
        whole = f"{name}.in_proj_weight"
        yield TargetMatrix(whole, whole, "", ParameterHost(module, "in_proj_weight"))
        for role, rows in parts_of(whole, 3 * module.embed_dim, None).items():
            yield TargetMatrix(
                f"{whole}.{role}", whole, role, ParameterHost(module, "in_proj_weight", rows), whole
            )
    for role in "qkv":
        if f"{role}_proj_weight" in tensors:
            own = f"{name}.{role}_proj_weight"
            yield TargetMatrix(own, own, role, ParameterHost(module, f"{role}_proj_weight"))
    out = f"{name}.out_proj"
    yield TargetMatrix(out, f"{out}.weight", "o", ParameterHost(module.out_proj, "weight"))


def _of_experts(name: str, module: nn.Module, parameter: str, stack: ExpertLayout) -> Iterator[TargetMatrix]:
    alone = next(iter(stack.parts)) if len(stack.parts) == 1 else ""
    for expert in range(len(own_parameters(module)[parameter])):
        one = f"{name}.{expert}"
        make = partial(ParameterHost, module, parameter, expert=expert, transposed=stack.transposed)
        yield TargetMatrix(one, name, alone, make())
        if not alone:
            for role, rows in stack.parts.items():
                yield TargetMatrix(f"{one}.{role}", name, role, make(rows), whole=one)
