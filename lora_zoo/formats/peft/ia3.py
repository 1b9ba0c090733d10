"""PEFT's (IA)³: one vector a layer, over its outputs (O, 1) or, of feedforward layers, its inputs (1, I)."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lora_zoo.formats.peft.forms import DenseFormat, HyperAndState, PeftFolder, pick
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix


class IA3Format(DenseFormat):
    """PEFT's (IA)³, which names the layers whose inputs are multiplied; ours names their roles."""

    peft_type, method, biases = "IA3", "(IA)³", True
    names, options = ("ia3_l",), ("feedforward_modules",)

    def config(self, injection: Injection) -> dict[str, Any]:
        adapters: dict[str, Any] = injection.adapters
        of_inputs = [name for name, adapter in adapters.items() if adapter.of_inputs]
        # An expression: of a list, PEFT also takes modules whose names end alike.
        return {"feedforward_modules": "|".join(map(re.escape, of_inputs)) or []}

    def tensors(self, adapter: Any) -> dict[str, Tensor]:
        return {"ia3_l": adapter.l[None] if adapter.of_inputs else adapter.l[:, None]}

    def parse(self, folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> HyperAndState:
        state: dict[str, Tensor] = {}
        roles: dict[bool, set[str]] = {True: set(), False: set()}
        for module, tensors in folder.modules.items():
            O, I = known[module].shape
            of_inputs = any(tuple(tensor.shape) == (1, I) != (O, 1) for tensor in tensors.values())
            (l,) = pick(module, tensors, {"ia3_l": (1, I) if of_inputs else (O, 1)})
            state[f"{module}.l"] = l.flatten()
            roles[of_inputs].add(known[module].role)
        if both := roles[True] & {*roles[False], ""}:
            role = f"role {min(both)}" if any(both) else "no role"
            raise ValueError(f"feedforward_modules takes some layers of {role}, which is by role here")
        return {"feedforward": sorted(roles[True])}, state
