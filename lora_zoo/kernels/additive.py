"""W x + bias + (B A + B0 A0) drop(x).

Shapes: N tokens, O out, I in, R rank; x is (..., I) and the output (..., O).
"""

import itertools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_zoo.core.dropout import Mask
from lora_zoo.core.dtypes import uncast
from lora_zoo.core.host import LayerHost, Rows
from lora_zoo.core.kernel import KERNELS
from lora_zoo.kernels.dense import DenseKernel, branched, learning
from lora_zoo.kernels.dtypes import formable, plus_
from lora_zoo.kernels.shared import (
    NO_PAIR,
    FactorPair,
    columns,
    formed,
    frozen,
    in_own_dtypes,
    keep,
    kept_of,
    linear,
    link_of,
    linked,
    returned,
    seen,
    through,
    unflattened,
)

FIXED = 8
"""An entry of a matrix that is formed costs its R multiplications, and about so many more for the memory."""


def cheaper_formed(N: int, R: int, shape: tuple[int, int], *, spared: int) -> bool:
    """True if forming W + B A is cheaper; it saves the branch `spared` multiplications a token and rank."""
    O, I = shape
    return N * R * spared > O * I * (R + FIXED)


@KERNELS.register("additive")
class AdditiveKernel(DenseKernel):
    """W x + bias + (B A + B0 A0) drop(x), the factors from the adapter's `pairs()`."""

    def operands(self, adapter: Any) -> tuple[Any, ...]:
        return adapter.pairs()

    def of_parts(self, parts: Sequence[tuple[Rows, Any]], rows: int) -> tuple[Any, ...] | None:
        found = [(part, *adapter.pairs()) for part, adapter in parts]
        starts = [(part, start) for part, _, start in found if start is not None]
        return placed([(part, pair) for part, pair, _ in found], rows), placed(
            starts, rows
        ) if starts else None

    def run(self, x: Tensor, host: LayerHost, operands: tuple[Any, ...], mask: Mask | None) -> Tensor:
        pair, start = operands
        return product(host, x, pair, start, mask)

    def value(self, x_NI: Tensor, W_OI: Tensor, bias_O: Tensor | None, operands: tuple[Any, ...]) -> Tensor:
        (B_OR, A_RI, scale), start = operands
        B0_OR, A0_RI, start_scale = start or NO_PAIR
        (O, I), rank = W_OI.shape, both(B_OR, B0_OR)
        if cheaper_formed(len(x_NI), rank, (O, I), spared=O + I) and formable(x_NI, B_OR):
            scales = scale, start_scale
            return F.linear(x_NI, formed(W_OI, B_OR, A_RI, B0_OR, A0_RI, scales), bias_O)
        y_NO = F.linear(x_NI, W_OI, bias_O).addmm_(F.linear(x_NI, A_RI), B_OR.T, alpha=scale)
        if B0_OR is None or A0_RI is None:
            return y_NO
        return y_NO.addmm_(F.linear(x_NI, A0_RI), B0_OR.T, alpha=start_scale)


def product(
    host: LayerHost, x: Tensor, pair: FactorPair, start: FactorPair | None = None, mask: Mask | None = None
) -> Tensor:
    """W x + bias + (B A + B0 A0) drop(x); `start` is the frozen B0 A0 of a residual start."""
    x, pair, start = branched(host, x, pair, start)
    x, *factors = learning(x, *pair[:2])
    B0_OR, A0_RI, start_scale = start or NO_PAIR
    scales = pair.scale, start_scale
    with uncast(x.device):
        y, _ = LoraFunction.apply(x, host.matrix(), host.own_bias, *factors, B0_OR, A0_RI, scales, mask)
    return y


def placed(parts: Sequence[tuple[Rows, FactorPair]], rows: int) -> FactorPair:
    """One product of so many rows: that of each part on its own rows, and 0 elsewhere."""
    places, scales = [part for part, _ in parts], [pair.scale for _, pair in parts]
    B_OK = PlacedFunction.apply(rows, places, scales, *[pair.B_OR for _, pair in parts])
    return FactorPair(B_OK, torch.cat([pair.A_RI for _, pair in parts]))


class PlacedFunction(torch.autograd.Function):
    """The factors B of parts, each times its scale, on the rows of its part and in columns of its own."""

    @staticmethod
    def forward(
        ctx: Any, rows: int, places: Sequence[Rows], scales: Sequence[float], *factors: Tensor
    ) -> Tensor:
        ends = [*itertools.accumulate((B_OR.shape[1] for B_OR in factors), initial=0)]
        ctx.places, ctx.scales, ctx.columns = places, scales, [*itertools.starmap(slice, pairwise(ends))]
        B_OK = factors[0].new_zeros(rows, ends[-1])
        for part, scale, own, B_OR in zip(places, scales, ctx.columns, factors, strict=True):
            B_OK[part, own] = scale * B_OR
        return B_OK

    @staticmethod
    def backward(ctx: Any, g_OK: Tensor) -> tuple[Tensor | None, ...]:
        of_parts = zip(ctx.places, ctx.scales, ctx.columns, strict=True)
        return None, None, None, *[scale * g_OK[part, own] for part, scale, own in of_parts]


def differentiable(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `LoraFunction`, by operations that autograd records."""
    mask, A_RI, x, h_NR, link, W_OI, B_OR, B0_OR, A0_RI = kept_of(ctx)
    for_x, _, _, for_B, *_ = ctx.needs_input_grad
    g_NO = g.reshape(-1, g.shape[-1])
    own_NO = g_NO.to(B_OR.dtype)
    scale, start_scale = ctx.scales
    gB_NR, dB_OR, dA_RI, dx = scale * (own_NO @ B_OR), None, None, None
    if x is not None:
        dropped_NI = seen(x.reshape(-1, x.shape[-1]), mask, A_RI.dtype)
        h_NR, dA_RI = dropped_NI @ A_RI.T, gB_NR.T @ dropped_NI
    if for_B:
        dB_OR = own_NO.T @ (scale * linked(h_NR, link))
    if for_x:
        branch_NI = gB_NR @ A_RI
        branch_NI = branch_NI if B0_OR is None else branch_NI + start_scale * (own_NO @ B0_OR @ A0_RI)
        dx = returned(g_NO, W_OI, branch_NI, mask)
    return unflattened(dx, ctx.shape), None, None, dB_OR, dA_RI, None, None, None, None


class LoraFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_OI: Tensor,
        bias_O: Tensor | None,
        B_OR: Tensor,
        A_RI: Tensor,
        B0_OR: Tensor | None,
        A0_RI: Tensor | None,
        scales: tuple[float, float],
        mask: Mask | None,
    ) -> tuple[Tensor, Tensor | None]:
        x_NI, (O, I) = x.reshape(-1, x.shape[-1]), W_OI.shape
        ctx.scales = scales
        _, _, _, for_B, for_A, *_ = ctx.needs_input_grad
        # B's gradient takes A x anyway: the branch's first product is not spared where B learns.
        spared, rank = O if for_B else O + I, both(B_OR, B0_OR)
        h_NR = None
        if mask is None and formable(x, B_OR) and cheaper_formed(len(x_NI), rank, (O, I), spared=spared):
            y = linear(x, formed(W_OI, B_OR, A_RI, B0_OR, A0_RI, scales), bias_O)
        else:
            y = frozen(x, W_OI, bias_O)
            y_NO = y.view(-1, O)
            dropped_NI = seen(x_NI, mask, A_RI.dtype)
            h_NR = dropped_NI @ A_RI.T
            plus_(y_NO, h_NR, B_OR.T, scales[0])
            if B0_OR is not None and A0_RI is not None:
                y_NO.addmm_(dropped_NI @ A0_RI.T, B0_OR.T, alpha=scales[1])
        if for_B and not for_A and h_NR is None:
            h_NR = x_NI @ A_RI.T  # R numbers a token are kept, not the I of x
        kept = (x if for_A else None, h_NR if for_B else None)
        link = link_of(ctx, len(x_NI), A_RI, learns=for_B and not for_A)
        keep(ctx, x, mask, A_RI, *kept, link, W_OI, B_OR, B0_OR, A0_RI)
        return y, link

    @staticmethod
    @in_own_dtypes(differentiable)
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, A_RI, x, h_NR, _, W_OI, B_OR, B0_OR, A0_RI = kept_of(ctx)
        (O, I), g_NO = W_OI.shape, g.reshape(-1, g.shape[-1])
        for_x, _, _, for_B, for_A, *_ = ctx.needs_input_grad
        form = (
            mask is None
            and formable(g, B_OR)
            and cheaper_formed(len(g_NO), both(B_OR, B0_OR), (O, I), spared=I if for_A else O + I)
        )
        own_NO = g_NO.to(B_OR.dtype)
        gB_NR = own_NO @ columns(B_OR) if for_A or (for_x and not form) else None
        scale, start_scale = ctx.scales
        if gB_NR is not None and scale != 1:
            gB_NR.mul_(scale)
        dB_OR = dA_RI = dx = None
        if for_A:
            dropped_NI = seen(x.reshape(-1, I), mask, A_RI.dtype)
            h_NR = dropped_NI @ A_RI.T if h_NR is None and for_B else h_NR
            assert gB_NR is not None
            dA_RI = gB_NR.T @ dropped_NI
        if for_B:
            dB_OR = ((h_NR if scale == 1 else scale * h_NR).T @ own_NO).T
        if for_x and form:
            dx = g_NO @ formed(W_OI, B_OR, A_RI, B0_OR, A0_RI, ctx.scales)
        elif for_x:
            assert gB_NR is not None
            dx = through(g_NO, W_OI, gB_NR, A_RI, B0_OR, A0_RI, mask, start_scale=start_scale)
        return unflattened(dx, ctx.shape), None, None, dB_OR, dA_RI, None, None, None, None


def both(B_OR: Tensor, B0_OR: Tensor | None) -> int:
    """The rank of the pair and its start together."""
    return B_OR.shape[1] + (0 if B0_OR is None else B0_OR.shape[1])
