"""Dtypes of adapters, and what autocast may change."""

import contextlib
from functools import cache
from typing import Any

import torch
from torch import Tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of an adapter's tensors on a base of `dtype`: float32, or float64 on a float64 base."""
    return torch.promote_types(dtype, torch.float32)


def wide(W: Tensor) -> Tensor:
    """`W` detached, in float32 or wider."""
    return W.detach().to(at_least_float32(W.dtype))


def cast(device: torch.device) -> bool:
    """True if autocast is on for `device`."""
    if not torch._C._is_any_autocast_enabled():
        return False
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def uncast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, autocast is off: a weight is computed in its tensors' own dtype, whatever x meets."""
    return torch.autocast(device.type, enabled=False) if cast(device) else contextlib.nullcontext()


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """True if `device` has instructions for products of bfloat16; others emulate them, and take longer."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(
        torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16")
    )


def product(X: Tensor, Y: Tensor) -> Tensor:
    """X Y of weights in their own dtype; its backward pass, too, where that is called under autocast."""
    with uncast(X.device):
        XY: Tensor = ProductFunction.apply(X, Y)
    return XY


class ProductFunction(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(X: Tensor, Y: Tensor) -> Tensor:
        return X @ Y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        X, Y = ctx.saved_tensors
        for_X, for_Y = ctx.needs_input_grad
        with uncast(g.device):
            return g @ Y.mT if for_X else None, X.mT @ g if for_Y else None
