"""PEFT's adapter of the same variant, with the same settings and the same tensors.

PEFT is a dependency of the benchmark alone (`pip install -e ".[bench]"`); without it its column is left out.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.adapters.injection import Injection

TOTAL = 10_000
"""A run's optimiser steps, for AdaLoRA's schedule."""
TENSORS = {
    "A_RI": "lora_A",
    "B_OR": "lora_B",
    "E_R": "lora_E",
    "m_O": "lora_magnitude_vector",
    "b_O": "vera_lambda_b",
    "d_R": "vera_lambda_d",
}
"""Our tensor -> where PEFT's layer keeps the same one."""
INITS = {"kaiming": True} | {name: name for name in ("gaussian", "orthogonal", "pissa", "olora")}
"""Our init -> PEFT's word for it."""


def installed() -> bool:
    return importlib.util.find_spec("peft") is not None


def has(variant: str) -> bool:
    """True if PEFT is installed and has `variant`."""
    return installed() and variant in CONFIGS


def init_word(variant: str, init: str) -> bool | str | None:
    """PEFT's word for the init; None where it has none. AdaLoRA and VeRA have one that is their own."""
    own = variant in ("adalora", "vera")
    return True if own else INITS.get(init, init if init.startswith("pissa_niter_") else None)


def wrap(ours: Injection, model: nn.Module, *, initialised: bool = False) -> Any:
    """PEFT's model around `model`, which is changed in place, with the settings of `ours`.

    `initialised`: with the same init; else with PEFT's default, which costs nothing.
    """
    import peft

    name = ours.variant.name
    word = init_word(name, ours.hyper["init"]) if initialised else True
    init = {} if word is True else {"init_lora_weights": word}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CONFIGS[name](ours.hyper, target_modules=list(ours.places), **init)
        adapted = peft.get_peft_model(model, config)
    if name == "lora_fa":  # as peft.optimizers.create_lorafa_optimizer does
        for key, parameter in adapted.named_parameters():
            if ".lora_A." in key:
                parameter.requires_grad_(False)
    return adapted


@torch.no_grad()
def aligned(ours: Injection, model: nn.Module) -> Any:
    """PEFT's tuner of `model`, with the tensors of `ours`; of a residual init the base is W less the init."""
    tuner = wrap(ours, model).base_model
    for name, adapter in ours.adapters.items():
        layer, state = tuner.model.get_submodule(name), adapter.state_dict()
        for own, theirs in TENSORS.items():
            if own in state and hasattr(layer, theirs):
                held = getattr(layer, theirs)["default"]
                target = held if isinstance(held, Tensor) else held.weight
                target.copy_(state[own].view_as(target))
        if "A0_RI" in state:
            start_OI = adapter.scale * state["B0_OR"] @ state["A0_RI"]
            rest_OI = layer.base_layer.weight - start_OI.to(layer.base_layer.weight.dtype)
            layer.base_layer.weight = nn.Parameter(rest_OI, requires_grad=False)
    return tuner


def groups(ours: Injection, tuner: Any) -> list[dict[str, Any]]:
    """PEFT's parameters in as many optimiser groups as `ours` has: LoRA+ has two, one of them for B."""
    trained = {name: p for name, p in tuner.named_parameters() if p.requires_grad}
    members = [list(trained.values())]
    if len(ours.param_groups(lr=1e-4)) > 1:
        members = [[p for name, p in trained.items() if (".lora_B." in name) is b] for b in (True, False)]
    return [{"params": part, "lr": 1e-4} for part in members]


def _lora(hyper: Mapping[str, Any], **more: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=hyper["rank"], lora_alpha=hyper["alpha"], lora_dropout=hyper["lora_dropout"], **more)


def _vera(hyper: Mapping[str, Any], **more: Any) -> Any:
    from peft import VeraConfig

    same = {key: hyper[key] for key in ("projection_prng_key", "d_initial")}
    return VeraConfig(r=hyper["rank"], vera_dropout=hyper["lora_dropout"], **same, **more)


def _adalora(hyper: Mapping[str, Any], **more: Any) -> Any:
    from peft import AdaLoraConfig

    first = -(-3 * hyper["rank"] // 2) if hyper["init_r"] == "auto" else hyper["init_r"]
    keys = ("tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "lora_dropout")
    same = {key: hyper[key] for key in keys}
    return AdaLoraConfig(
        init_r=first, target_r=hyper["rank"], lora_alpha=hyper["alpha"], total_step=TOTAL, **same, **more
    )


CONFIGS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("lora", "lora_fa", "lora_plus", "milora", "pissa"), _lora),
    "rslora": partial(_lora, use_rslora=True),
    "dora": partial(_lora, use_dora=True),
    "vera": _vera,
    "adalora": _adalora,
}
"""A variant -> PEFT's configuration of it. PEFT has no MiLoRA: its LoRA on the residual, as for PiSSA."""
