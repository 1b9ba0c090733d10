"""PEFT's AdaLoRA: triplets (column of B, λ, row of A), pruned ones included.

Shapes: O out, I in, R the initial triplets.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_zoo.formats.peft.forms import DenseFormat, HyperAndState, PeftFolder, Unfit, number, pick
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix

_SAME = {"lora_alpha": "alpha", "target_r": "rank", "deltaT": "deltaT", "beta1": "beta1", "beta2": "beta2"}
_SAME |= {"orth_reg_weight": "orth_reg_weight", "lora_dropout": "lora_dropout"}
"""PEFT's field -> our hyperparameter."""
_SCHEDULE = {"tinit": 0, "tfinal": 0, "total_step": 1}
"""PEFT loads no AdaLoRA without a schedule; training on needs another one."""


class AdaLoraFormat(DenseFormat):
    """Every triplet is written, with λ = 0 for those that were pruned: PEFT's scale counts them too."""

    peft_type, method = "ADALORA", "AdaLoRA"

    def config(self, injection: Injection) -> dict[str, Any]:
        init_ranks = {len(adapter.state_dict()["E_R"]) for adapter in injection.adapters.values()}
        if len(init_ranks) > 1 or injection.patterns:
            raise Unfit("PEFT's AdaLoRA has one init_r and one alpha for all layers")
        fields = {theirs: number(injection.hyper[ours]) for theirs, ours in _SAME.items()}
        return {"init_r": init_ranks.pop(), "init_lora_weights": True, **fields, **_SCHEDULE}

    def tensors(self, adapter: Any) -> dict[str, Tensor]:
        state = adapter.state_dict()
        return {"lora_A": state["A_RI"], "lora_B": state["B_OR"], "lora_E": state["E_R"][:, None]}

    def parse(self, folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> HyperAndState:
        config, state = folder.config, dict[str, Tensor]()
        R = config.get("init_r", 12)
        for module, tensors in folder.modules.items():
            (O, I), mask_R = known[module].shape, _mask(config, module, R)
            left = int(mask_R.sum())
            A, B, E = pick(module, tensors, {"lora_A": (left, I), "lora_B": (O, left), "lora_E": (left, 1)})
            state[f"{module}.A_RI"] = A.new_zeros(R, I).masked_scatter_(mask_R[:, None], A)
            state[f"{module}.B_OR"] = B.new_zeros(R, O).masked_scatter_(mask_R[:, None], B.T.contiguous()).T
            state[f"{module}.E_R"] = E.new_zeros(R).masked_scatter_(mask_R, E)
        hyper = {ours: config[theirs] for theirs, ours in _SAME.items() if theirs in config}
        alpha = hyper.get("alpha", 8)
        hyper["alpha"] = alpha if alpha > 0 else R  # PEFT's scale is 1 for alpha <= 0
        return hyper | {"init_r": R, "rank": min(R, config.get("target_r", 8))}, state


def _mask(config: Mapping[str, Any], module: str, R: int) -> Tensor:
    """The mask of the R triplets that PEFT kept: all, where the configuration has no pattern."""
    patterns = config.get("rank_pattern") or {}
    pattern = patterns.get(f"{module}.lora_E", patterns.get(f"{module}.lora_E.default", [True] * R))
    if len(pattern) != R or any(type(kept) is not bool for kept in pattern):
        raise ValueError(f"rank_pattern of {module} must be {R} times true or false")
    return torch.tensor(pattern)
