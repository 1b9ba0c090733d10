"""PEFT's AdaLoRA: triplets (column of B, λ, row of A), pruned ones included.

Shapes: O out, I in, R the initial triplets.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.formats.peft.forms import (
    PREFIX,
    ParsedAdapter,
    PeftContent,
    PeftFolder,
    PeftFormat,
    Unfit,
    number,
    pick,
    stored,
    whole_dense,
)
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import find_matrices

_SAME = {"lora_alpha": "alpha", "target_r": "rank", "deltaT": "deltaT", "beta1": "beta1", "beta2": "beta2"}
_SAME |= {"orth_reg_weight": "orth_reg_weight", "lora_dropout": "lora_dropout"}
"""PEFT's field -> our hyperparameter."""
_SCHEDULE = {"tinit": 0, "tfinal": 0, "total_step": 1}
"""PEFT loads no AdaLoRA without a schedule; training on needs another one."""


class AdaLoraFormat(PeftFormat):
    """Every triplet is written, with λ = 0 for those that were pruned: PEFT's scale counts them too."""

    peft_type = "ADALORA"

    def accepts(self, config: Mapping[str, Any]) -> bool:
        return bool(config["peft_type"] == self.peft_type)

    def to_peft(self, injection: Injection) -> PeftContent:
        tensors: dict[str, Tensor] = {}
        init_ranks = {len(adapter.state_dict()["E_R"]) for adapter in injection.adapters.values()}
        if len(init_ranks) > 1 or injection.patterns:
            raise Unfit("PEFT's AdaLoRA has one init_r and one alpha for all layers")
        for name, adapter in injection.adapters.items():
            if not whole_dense(injection.matrices[name]):
                raise Unfit(f"PEFT's AdaLoRA adapts whole linear layers, {name} is none")
            state = adapter.state_dict()
            for theirs, ours in {"A": state["A_RI"], "B": state["B_OR"], "E": state["E_R"][:, None]}.items():
                tensors[f"{PREFIX}{name}.lora_{theirs}"] = stored(ours)
        transposed = any(matrix.host.transposed for matrix in injection.matrices.values())
        config = {
            "peft_type": self.peft_type,
            "target_modules": sorted(injection.adapters),
            "init_r": init_ranks.pop(),
            "fan_in_fan_out": transposed,
            "init_lora_weights": True,
            **{theirs: number(injection.hyper[ours]) for theirs, ours in _SAME.items()},
            **_SCHEDULE,
        }
        return PeftContent(config, tensors, [])

    def from_peft(self, folder: PeftFolder, model: nn.Module) -> ParsedAdapter:
        known, config = {matrix.name: matrix for matrix in find_matrices(model)}, folder.config
        R = config.get("init_r", 12)
        state: dict[str, Tensor] = {}
        for module, tensors in folder.modules.items():
            if not whole_dense(known[module]):
                raise ValueError(f"{module}, a {known[module].host.kind}, has no AdaLoRA here")
            (O, I), mask_R = known[module].shape, _mask(config, module, R)
            left = int(mask_R.sum())
            A, B, E = pick(module, tensors, {"lora_A": (left, I), "lora_B": (O, left), "lora_E": (left, 1)})
            state[f"{module}.A_RI"] = A.new_zeros(R, I).masked_scatter_(mask_R[:, None], A)
            state[f"{module}.B_OR"] = B.new_zeros(R, O).masked_scatter_(mask_R[:, None], B.T.contiguous()).T
            state[f"{module}.E_R"] = E.new_zeros(R).masked_scatter_(mask_R, E)
        hyper = {ours: config[theirs] for theirs, ours in _SAME.items() if theirs in config}
        if hyper.get("alpha", 8) <= 0:
            hyper["alpha"] = R  # PEFT's scale is then 1
        hyper |= {"init_r": R, "rank": min(R, config.get("target_r", 8)), "alpha": hyper.get("alpha", 8)}
        return ParsedAdapter(hyper, {}, [known[module] for module in folder.modules], state)


def _mask(config: Mapping[str, Any], module: str, R: int) -> Tensor:
    """The mask of the R triplets that PEFT kept: all, where the configuration has no pattern."""
    patterns = config.get("rank_pattern") or {}
    pattern = patterns.get(f"{module}.lora_E", patterns.get(f"{module}.lora_E.default", [True] * R))
    if len(pattern) != R or any(type(kept) is not bool for kept in pattern):
        raise ValueError(f"rank_pattern of {module} must be {R} times true or false")
    return torch.tensor(pattern)
