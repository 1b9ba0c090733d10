"""PEFT's adapter of the same variant, with the same settings and the same tensors.

PEFT is a dependency of the benchmark alone (`pip install -e ".[bench]"`); without it its column is left out.
A residual init (PiSSA; MiLoRA, which PEFT lacks) stands beside PEFT's LoRA on the residual.
"""

import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.formats.peft.forms import PeftContent, Unfit
from lora_zoo.formats.peft.plain import PlainFormat
from lora_zoo.injection.inject import Injection

TOTAL = 10_000
"""A run's optimiser steps, for AdaLoRA's schedule."""
INITS: dict[str, bool | str] = {"kaiming": True}
INITS |= {name: name for name in ("gaussian", "orthogonal", "pissa", "olora")}
"""Our init -> PEFT's word for it."""
SETTINGS = {"r": "rank", "lora_alpha": "alpha", "tinit": "tinit", "tfinal": "tfinal"}
"""PEFT's field -> our hyperparameter, where a written adapter has another value than one in training."""
TENSORS = {
    "A_RI": "lora_A",
    "B_OR": "lora_B",
    "E_R": "lora_E",
    "m_O": "lora_magnitude_vector",
    "b_O": "vera_lambda_b",
    "d_R": "vera_lambda_d",
    "l": "ia3_l",
}
"""Our tensor -> where PEFT's layer keeps the same one."""


def installed() -> bool:
    return importlib.util.find_spec("peft") is not None


def has(ours: Injection) -> bool:
    """True if PEFT is installed and has this adapter, on these layers and with these settings.

    Its soft prompts are left out: they take a model whose task is told, and no tuner stands around it.
    """
    if not installed() or ours.variant.peft is None:
        return False
    try:
        return "num_virtual_tokens" not in _written(ours).config
    except Unfit:
        return False


def _written(ours: Injection) -> PeftContent:
    """The content of PEFT's files for `ours`."""
    form = ours.variant.peft
    assert form is not None
    with ours.disabled():
        content: PeftContent = form.to_peft(ours)
    return content


def _as_written(ours: Injection) -> bool:
    """True if PEFT trains what its files hold: not a residual start, nor ranks that a file leaves out."""
    return isinstance(ours.variant.peft, PlainFormat)


def init_word(variant: str, init: str) -> bool | str | None:
    """PEFT's word for the init; None where it has none. AdaLoRA and VeRA have one that is their own."""
    own = variant in ("adalora", "vera")
    return True if own else INITS.get(init, init if init.startswith("pissa_niter_") else None)


def config(ours: Injection, init: bool | str | None = True) -> Any:
    """PEFT's configuration with the settings of `ours`, for training; by default with PEFT's init."""
    import peft

    fields = _written(ours).config
    if not _as_written(ours):
        fields |= {theirs: ours.hyper[own] for theirs, own in SETTINGS.items() if theirs in fields}
        fields |= {key: {} for key in ("rank_pattern", "alpha_pattern") if key in fields}
    fields |= {"total_step": TOTAL} if "total_step" in fields else {}
    fields |= {} if init is True else {"init_lora_weights": init}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_config(fields)


def wrap(model: nn.Module, config: Any) -> Any:
    """PEFT's model around `model`, which is changed in place."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config)


@torch.no_grad()
def aligned(ours: Injection, model: nn.Module) -> Any:
    """PEFT's tuner of `model`, with the tensors of `ours`; of a residual init the base is W less the init."""
    import peft

    whole = wrap(model, config(ours))
    tuner = whole.base_model
    if _as_written(ours):
        peft.set_peft_model_state_dict(whole, _written(ours).tensors)
        return tuner
    for name, adapter in ours.adapters.items():
        layer, state = tuner.model.get_submodule(name), adapter.state_dict()
        trained = {own for own, p in adapter.named_parameters() if p.requires_grad}
        for own in TENSORS.keys() & state.keys():
            held = getattr(layer, TENSORS[own])["default"]
            target = held if isinstance(held, Tensor) else held.weight
            target.copy_(state[own].view_as(target))
            target.requires_grad_(own in trained)  # LoRA-FA's A is frozen, as by PEFT's optimiser
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
