"""PEFT's AdaLoRA: triplets (column of B, λ, row of A), pruned ones included.

Shapes: O out, I in, R the initial triplets.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lora_zoo.formats.peft.forms import (
    DenseFormat,
    HyperAndState,
    PeftContent,
    PeftFolder,
    Unfit,
    number,
    pick,
)
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix

_SAME = {"lora_alpha": "alpha", "target_r": "rank", "deltaT": "deltaT", "beta1": "beta1", "beta2": "beta2"}
_SAME |= {"orth_reg_weight": "orth_reg_weight", "lora_dropout": "lora_dropout"}
"""PEFT's field -> our hyperparameter."""
_SCHEDULE = {"tinit": 0, "tfinal": 0, "total_step": 1}
"""PEFT loads no AdaLoRA without a schedule; training on needs another one."""


class AdaLoraFormat(DenseFormat):
    """Triplets that were pruned are written with λ = 0: PEFT's scale counts as many in every layer."""

    peft_type, method = "ADALORA", "AdaLoRA"
    names = ("lora_A", "lora_B", "lora_E")
    options = ("r", "init_r", "init_lora_weights", "rank_pattern", "alpha_pattern", *_SAME)

    def config(self, injection: Injection) -> dict[str, Any]:
        adapters: list[Any] = list(injection.adapters.values())
        R, scale = max(len(a.E_R) for a in adapters), adapters[0].scale
        if not all(math.isclose(a.scale, scale, rel_tol=1e-9) for a in adapters):
            raise Unfit("PEFT's AdaLoRA has one init_r and one alpha for all layers")
        hyper = injection.hyper | ({"alpha": scale * (R + 1e-5)} if injection.patterns else {})
        fields = {theirs: number(hyper[ours]) for theirs, ours in _SAME.items()}
        return {"init_r": R, "init_lora_weights": True, **fields, **_SCHEDULE}

    def to_peft(self, injection: Injection) -> PeftContent:
        content = super().to_peft(injection)
        R = content.config["init_r"]
        return PeftContent(content.config, {name: _padded(name, t, R) for name, t in content.tensors.items()})

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


def _padded(name: str, tensor: Tensor, R: int) -> Tensor:
    """Zeros for the triplets that a smaller adapter lacks."""
    lacking = R - tensor.shape[name.endswith("lora_B")]
    return pad(tensor, (0, lacking) if name.endswith("lora_B") else (0, 0, 0, lacking))


def _mask(config: Mapping[str, Any], module: str, R: int) -> Tensor:
    """The mask of the R triplets that PEFT kept: all, where the configuration has no pattern."""
    patterns = config.get("rank_pattern") or {}
    pattern = patterns.get(f"{module}.lora_E", patterns.get(f"{module}.lora_E.default", [True] * R))
    if len(pattern) != R or any(type(kept) is not bool for kept in pattern):
        raise ValueError(f"rank_pattern of {module} must be {R} times true or false")
    return torch.tensor(pattern)
