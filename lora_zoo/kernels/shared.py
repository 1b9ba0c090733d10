"""Shared helpers of the autograd functions: what is saved for backward, the frozen product, its gradient.

Shapes: N tokens, O out, I in, R rank; x is (..., I) and the output (..., O).
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_zoo.core.dropout import Mask
from lora_zoo.core.dtypes import uncast
from lora_zoo.kernels.dtypes import plus_


class FactorPair(NamedTuple):
    """A product scale · B A of thin factors, B (O, R) and A (R, I)."""

    B_OR: Tensor
    A_RI: Tensor
    scale: float = 1.0

    def scaled(self) -> tuple[Tensor, Tensor]:
        """The factors with the scale in B."""
        return self.B_OR if self.scale == 1 else self.scale * self.B_OR, self.A_RI


NONE = (None, None)
NO_PAIR = (*NONE, 1.0)


def keep(ctx: Any, x: Tensor, mask: Mask | None, *tensors: Tensor | None) -> None:
    """Save what backward needs where whoever watches saved tensors (checkpointing, offloading) sees it."""
    ctx.shape, ctx.mask = x.shape, None if mask is None else replace(mask, entries=x.new_empty(0))
    ctx.save_for_backward(None if mask is None else mask.entries, *tensors)


def kept_of(ctx: Any) -> tuple[Any, ...]:
    entries, *tensors = ctx.saved_tensors
    return None if ctx.mask is None else replace(ctx.mask, entries=entries), *tensors


def link_of(ctx: Any, N: int, A_RI: Tensor, *, learns: bool) -> Tensor | None:
    """Zeros (N, R) without memory, an output that stands for drop(x) Aᵀ in second derivatives: x is not kept.

    None where no second derivative can ask for it.
    """
    ctx.set_materialize_grads(False)
    return A_RI.new_zeros(1, 1).expand(N, len(A_RI)) if learns and ctx.needs_input_grad[0] else None


def linked(h_NR: Tensor, link: Tensor | None) -> Tensor:
    """`h_NR` = drop(x) Aᵀ, differentiable by x through `link`."""
    return h_NR if link is None else h_NR + link.to(h_NR.dtype)


def through_link(ctx: Any, g_NR: Tensor) -> Tensor:
    """The input's gradient through `link_of`."""
    mask, A_RI, *_ = kept_of(ctx)
    dx_NI = g_NR @ A_RI
    return (dx_NI if mask is None else mask.drop(dx_NI)).view(ctx.shape)


Gradients = tuple[Tensor | None, ...]
Backward = Callable[[Any, Tensor], Gradients]


def in_own_dtypes(differentiable: Backward) -> Callable[[Backward], Callable[..., Gradients]]:
    """Backward passes in the dtypes of their forward pass, also where they are called under autocast.

    `differentiable` computes the same by ordinary operations, where a second derivative may be asked for.
    """

    def of(backward: Backward) -> Callable[..., Gradients]:
        @functools.wraps(backward)
        def within(ctx: Any, g: Tensor | None, g_link_NR: Tensor | None = None) -> Gradients:
            found: Gradients = (None,) * len(ctx.needs_input_grad)
            if g is not None:
                with uncast(g.device):
                    found = differentiable(ctx, g) if torch.is_grad_enabled() else backward(ctx, g)
            if g_link_NR is None:
                return found
            dx, *rest = found
            more = through_link(ctx, g_link_NR)
            return more if dx is None else dx + more.to(dx.dtype), *rest

        return within

    return of


def returned(g_NO: Tensor, W_OI: Tensor, branch_NI: Tensor, mask: Mask | None) -> Tensor:
    """The input's gradient g W + drop(branch), differentiable."""
    branch_NI = branch_NI if mask is None else mask.drop(branch_NI)
    return g_NO @ W_OI.to(g_NO.dtype) + branch_NI.to(g_NO.dtype)


def linear(x: Tensor, W_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias as a tensor that the model may write in place once a Function has returned it.

    With a bias and x of three dimensions, F.linear's is a view of a flat product, which nobody else has.
    """
    y = F.linear(x, W_OI, bias_O)
    return y if y._base is None else torch.ops.aten._unsafe_view(y, y.shape)


def frozen(x: Tensor, W_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """The frozen layer's own output, in x's dtype."""
    return linear(x, W_OI.to(x.dtype), None if bias_O is None else bias_O.to(x.dtype))


def seen(x_NI: Tensor, mask: Mask | None, dtype: torch.dtype) -> Tensor:
    """The branch's input, dropped and in the branch's dtype."""
    return x_NI.to(dtype) if mask is None else mask.drop(x_NI.to(dtype))


def through(
    g_NO: Tensor,
    W_OI: Tensor,
    gB_NR: Tensor,
    A_RI: Tensor,
    B0_OR: Tensor | None,
    A0_RI: Tensor | None,
    mask: Mask | None,
    of_pair: Tensor | None = None,
    start_scale: float = 1.0,
) -> Tensor:
    """The input's gradient g W + drop(g B A + g B0 A0), B0 A0 times `start_scale`.

    `of_pair` stands for g at B0, where it is another.
    """
    W_OI = W_OI.to(g_NO.dtype)
    gB0_NR = None if B0_OR is None else (g_NO if of_pair is None else of_pair) @ columns(B0_OR)
    if mask is None:
        dx_NI = plus_(g_NO @ W_OI, gB_NR, A_RI)
        return dx_NI if gB0_NR is None or A0_RI is None else dx_NI.addmm_(gB0_NR, A0_RI, alpha=start_scale)
    dx_NI = gB_NR @ A_RI
    if gB0_NR is not None and A0_RI is not None:
        dx_NI.addmm_(gB0_NR, A0_RI, alpha=start_scale)
    mask.drop_(dx_NI)
    return dx_NI.addmm_(g_NO, W_OI) if dx_NI.dtype == g_NO.dtype else (g_NO @ W_OI).add_(dx_NI)


def formed(
    W_OI: Tensor,
    B_OR: Tensor,
    A_RI: Tensor,
    B0_OR: Tensor | None,
    A0_RI: Tensor | None,
    scales: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """W + B A + B0 A0, each product times its scale: a new tensor."""
    formed_OI = torch.addmm(W_OI, B_OR, A_RI, alpha=scales[0])
    return formed_OI if B0_OR is None or A0_RI is None else formed_OI.addmm_(B0_OR, A0_RI, alpha=scales[1])


def columns(B_OR: Tensor) -> Tensor:
    """B with its columns contiguous: a product from the left reads them in order, twice as fast."""
    return B_OR.T.contiguous().T


def unflattened(dx_NI: Tensor | None, shape: torch.Size) -> Tensor | None:
    return None if dx_NI is None else dx_NI.view(shape)
