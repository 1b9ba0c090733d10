"""PEFT's adapter of the same variant, with the same settings and the same tensors.

PEFT is a dependency of the benchmark alone (`pip install -e ".[bench]"`); without it its column is left out.
"""

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.benchmark.contenders import FIRST, TOTAL, Contender
from lora_zoo.benchmark.shapes import Batch
from lora_zoo.inject.injection import Injection

Hyper = Mapping[str, Any]
TENSORS = {
    "A_RI": "lora_A",
    "B_OR": "lora_B",
    "E_R": "lora_E",
    "m_O": "lora_magnitude_vector",
    "b_O": "vera_lambda_b",
    "d_R": "vera_lambda_d",
}
"""Our tensor -> where PEFT's layer keeps the same one."""


def installed() -> bool:
    return importlib.util.find_spec("peft") is not None


def has(variant: str) -> bool:
    """Whether PEFT has `variant`, and is there."""
    return installed() and variant in CONFIGS


def contender(ours: Injection, model: nn.Module, batch: Batch) -> Contender:
    """PEFT's adapter on `model`, a copy of the base, with the settings and the tensors of `ours`."""
    tuner = wrapped(ours.variant.name, ours.hyper, list(ours.matrices), model).base_model
    align(ours, tuner)
    trained = [p for p in tuner.parameters() if p.requires_grad]
    steps = itertools.count(FIRST)
    allocate = getattr(tuner, "update_and_allocate", None)  # AdaLoRA's, which PEFT's user calls
    return Contender(
        tuner,
        lambda: tuner(**batch).loss,
        hooks=(lambda: allocate(next(steps))) if allocate else bool,
        groups=lambda: groups(ours, tuner),
        parameters=trained,
    )


STARTS: Mapping[str, bool | str] = {
    "kaiming": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "pissa": "pissa",
    "olora": "olora",
}
"""Our start -> PEFT's word for it."""


def starts_as(variant: str, init: str) -> bool | str | None:
    """PEFT's word for the start; None where it has none. AdaLoRA and VeRA have one that is their own."""
    own = variant in ("adalora", "vera")
    return True if own else STARTS.get(init, init if init.startswith("pissa_niter_") else None)


def wrapped(
    variant: str, hyper: Hyper, modules: list[str], model: nn.Module, *, started: bool = False
) -> Any:
    """PEFT's model around `model`, which is changed in place; `started`: with the variant's own start."""
    import peft

    start = starts_as(variant, hyper["init"]) if started else True
    more = {} if start is True else {"init_lora_weights": start}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CONFIGS[variant](hyper, target_modules=modules, **more)
        adapted = peft.get_peft_model(model, config)
    if variant == "lora_fa":  # as peft.optimizers.create_lorafa_optimizer does
        for name, parameter in adapted.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
    return adapted


@torch.no_grad()
def align(ours: Injection, tuner: Any) -> None:
    """Copy the tensors of `ours`; where a start is residual, PEFT's base is W less the start, as in PEFT."""
    for name, adapter in ours.adapters.items():
        layer, state = tuner.model.get_submodule(name), adapter.state_dict()
        for own, theirs in TENSORS.items():
            if own in state and hasattr(layer, theirs):
                _held(layer, theirs).copy_(state[own].view_as(_held(layer, theirs)))
        if "A0_RI" in state:
            start_OI = adapter.scale * state["B0_OR"] @ state["A0_RI"]
            rest_OI = layer.base_layer.weight - start_OI.to(layer.base_layer.weight.dtype)
            layer.base_layer.weight = nn.Parameter(rest_OI, requires_grad=False)


def _held(layer: Any, store: str) -> Tensor:
    held = getattr(layer, store)["default"]
    return held if isinstance(held, Tensor) else held.weight


def groups(ours: Injection, tuner: Any) -> list[dict[str, Any]]:
    """PEFT's parameters in the optimiser groups that the variant has: LoRA+ has two."""
    trained = {n: p for n, p in tuner.named_parameters() if p.requires_grad}
    parts = [
        [p for n, p in trained.items() if ".lora_B." in n],
        [p for n, p in trained.items() if ".lora_B." not in n],
    ]
    members = parts if len(ours.param_groups(lr=1e-4)) > 1 else [list(trained.values())]
    return [{"params": part, "lr": 1e-4} for part in members]


def _lora(hyper: Hyper, **more: Any) -> Any:
    import peft

    return peft.LoraConfig(
        r=hyper["rank"], lora_alpha=hyper["alpha"], lora_dropout=hyper["lora_dropout"], **more
    )


def _rslora(hyper: Hyper, **more: Any) -> Any:
    return _lora(hyper, use_rslora=True, **more)


def _dora(hyper: Hyper, **more: Any) -> Any:
    return _lora(hyper, use_dora=True, **more)


def _vera(hyper: Hyper, **more: Any) -> Any:
    import peft

    return peft.VeraConfig(
        r=hyper["rank"],
        projection_prng_key=hyper["projection_prng_key"],
        d_initial=hyper["d_initial"],
        vera_dropout=hyper["lora_dropout"],
        **more,
    )


def _adalora(hyper: Hyper, **more: Any) -> Any:
    import peft

    first = -(-3 * hyper["rank"] // 2) if hyper["init_r"] == "auto" else hyper["init_r"]
    same = ("tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "lora_dropout")
    return peft.AdaLoraConfig(
        init_r=first,
        target_r=hyper["rank"],
        lora_alpha=hyper["alpha"],
        total_step=TOTAL,
        **{key: hyper[key] for key in same},
        **more,
    )


CONFIGS: Mapping[str, Callable[..., Any]] = {
    "adalora": _adalora,
    "dora": _dora,
    "lora": _lora,
    "lora_fa": _lora,
    "lora_plus": _lora,
    "milora": _lora,
    "pissa": _lora,
    "rslora": _rslora,
    "vera": _vera,
}
"""A variant -> PEFT's configuration of it. PEFT has no MiLoRA: its LoRA on the residual, as for PiSSA."""
