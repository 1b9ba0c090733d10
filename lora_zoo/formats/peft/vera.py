"""PEFT's VeRA: two vectors a layer, and the frozen projections that all layers share."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from lora_zoo.formats.peft.forms import DenseFormat, HyperAndState, PeftContent, PeftFolder, pick, stored
from lora_zoo.inits.shared_projections import SharedProjections, gain_of
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix


class VeraFormat(DenseFormat):
    """PEFT's VeRA with its projections; those of `nested` have each layer's gain inside d."""

    peft_type, method = "VERA", "VeRA"
    shared = ("vera_A", "vera_B")
    names = ("vera_lambda_b", "vera_lambda_d")
    options = ("r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial")

    def to_peft(self, injection: Injection) -> PeftContent:
        config, tensors = super().to_peft(injection)
        pair = _pair(injection)
        projections = {"base_model.vera_A": stored(pair.A_RI), "base_model.vera_B": stored(pair.B_OR)}
        return PeftContent(config, tensors | projections)

    def config(self, injection: Injection) -> dict[str, Any]:
        hyper = injection.hyper
        return {
            "save_projection": True,
            "r": len(_pair(injection).A_RI),
            "projection_prng_key": hyper["projection_prng_key"],
            "d_initial": hyper["d_initial"],
            "vera_dropout": hyper["lora_dropout"],
        }

    def tensors(self, adapter: Any) -> dict[str, Tensor]:
        d_R = adapter.gain * adapter.d_R.detach().double()
        padded = functional.pad(d_R, (0, len(adapter.pair.A_RI) - len(d_R)))
        return {"vera_lambda_d": padded, "vera_lambda_b": adapter.b_O}

    def parse(self, folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> HyperAndState:
        R, key = folder.config.get("r", 256), folder.config.get("projection_prng_key", 0)
        O, I = (max(side) for side in zip(*(matrix.shape for matrix in known.values()), strict=True))
        projection, state = find_projection(folder, O, I, R, key), dict[str, Tensor]()
        for module, tensors in folder.modules.items():
            O, I = known[module].shape
            shapes = {"vera_lambda_b": (O,), "vera_lambda_d": (R,)}
            state[f"{module}.b_O"], d_R = pick(module, tensors, shapes)
            state[f"{module}.d_R"] = divided(
                gain_of(projection, I, R), d_R, known[module].host.matrix().dtype
            )
        hyper = {"rank": R, "projection": projection, "projection_prng_key": key}
        hyper |= {"d_initial": float(folder.config.get("d_initial", 0.1))}
        return hyper | {"lora_dropout": float(folder.config.get("vera_dropout", 0.0))}, state


def _pair(injection: Injection) -> SharedProjections:
    adapter: Any = next(iter(injection.adapters.values()))
    return cast(SharedProjections, adapter.pair)


def find_projection(folder: PeftFolder, O: int, I: int, rank: int, seed: int) -> str:
    """The name of our projection that gives PEFT's tensors. ValueError where its seed gives others."""
    if not folder.config.get("save_projection", True):
        return "peft"
    shapes = {"vera_A": (rank, I), "vera_B": (O, rank)}
    A_RI, B_OR = pick("base_model", folder.shared, shapes)
    for projection in ("peft", "nested"):
        pair = SharedProjections(O, I, rank, seed=seed, projection=projection, device=torch.device("cpu"))
        # PEFT rounds the pair where the base is of half precision.
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            ours = (pair.A_RI.to(dtype).float(), pair.B_OR.to(dtype).float())
            if torch.equal(ours[0], A_RI.float()) and torch.equal(ours[1], B_OR.float()):
                return projection
    raise ValueError(f"base_model.vera_A and vera_B are not those that projection_prng_key={seed} gives here")


def divided(gain: float, d_R: Tensor, base: torch.dtype) -> Tensor:
    """d / gain in the adapter's dtype on this base, so rounded that times `gain` it is `d_R` again.

    Float32, in which there may be no such number for a file that a float64 adapter wrote: then the nearest.
    """
    if base == torch.float64:
        return d_R.double() / gain
    near_R = (d_R.double() / gain).float()
    tries_NR = torch.stack(
        [near_R, *(near_R.nextafter(near_R.new_tensor(to)) for to in (-math.inf, math.inf))]
    )
    misses_NR = ((tries_NR.double() * gain).float() - d_R.float()).abs()
    return tries_NR.gather(0, misses_NR.argmin(0, keepdim=True))[0]
