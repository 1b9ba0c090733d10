"""W x + bias + diag(b) B diag(d) A drop(x), with B and A frozen.

Shapes: N tokens, O out, I in, R rank; x is (..., I) and the output (..., O).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_zoo.core.dropout import Mask
from lora_zoo.core.dtypes import at_least_float32, uncast
from lora_zoo.core.host import LayerHost
from lora_zoo.core.kernel import KERNELS
from lora_zoo.kernels.dense import DenseKernel, learning, narrowed
from lora_zoo.kernels.dtypes import formable
from lora_zoo.kernels.shared import (
    NONE,
    FactorPair,
    columns,
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


@KERNELS.register("vera")
class VeraKernel(DenseKernel):
    """W x + bias + diag(b) B diag(d) A drop(x), A and B frozen and shared."""

    def operands(self, adapter: Any) -> tuple[Any, ...]:
        d_R = adapter.d_R if adapter.gain == 1 else adapter.gain * adapter.d_R
        return adapter.b_O, d_R, adapter.projections()

    def __init__(self) -> None:
        self._corner: tuple[tuple[Any, ...], FactorPair] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks at its own pair."""
        return {"_corner": None}

    def lean_operands(self, adapter: Any) -> tuple[Any, ...]:
        """`operands`, whose views of the shared pair are those of the last call: on one token they cost much.

        They are made anew where a tensor of the pair has other memory or another layout.
        """
        B_OR, A_RI = adapter.pair.B_OR, adapter.pair.A_RI
        place = B_OR.data_ptr(), A_RI.data_ptr(), B_OR.stride(), A_RI.stride(), B_OR.device
        b_O, d_R, kept = adapter.b_O, adapter.d_R, self._corner
        if kept is None or kept[0] != place:
            R = len(d_R)  # the views keep their memory alive, so that no other tensor gets its address
            kept = self._corner = place, FactorPair(B_OR[: len(b_O), :R], A_RI[:R, : adapter.I])
        return b_O, d_R if adapter.gain == 1 else adapter.gain * d_R, kept[1]

    def run(self, x: Tensor, host: LayerHost, operands: tuple[Any, ...], mask: Mask | None) -> Tensor:
        b_O, d_R, pair = operands
        return scaled(host, x, b_O, d_R, pair, mask)

    def value(self, x_NI: Tensor, W_OI: Tensor, bias_O: Tensor | None, operands: tuple[Any, ...]) -> Tensor:
        b_O, d_R, (B_OR, A_RI, _) = operands
        (O, I), R = W_OI.shape, len(d_R)
        if formable(x_NI, B_OR) and len(x_NI) * R * (O + I) > R * O * I:
            return F.linear(x_NI, torch.addcmul(W_OI, (B_OR * d_R) @ A_RI, b_O[:, None]), bias_O)
        u_NO = F.linear(F.linear(x_NI, A_RI).mul_(d_R), B_OR)
        return F.linear(x_NI, W_OI, bias_O).addcmul_(u_NO, b_O)


def scaled(
    host: LayerHost, x: Tensor, b_O: Tensor, d_R: Tensor, pair: FactorPair, mask: Mask | None = None
) -> Tensor:
    """W x + bias + diag(b) B diag(d) A drop(x) with B and A frozen."""
    dtype = narrowed(x, pair.B_OR.dtype, host)
    x, *own = learning(x.to(narrowed(x, x.dtype)), b_O, d_R, *pair.scaled())
    with uncast(x.device):
        y, _ = VeraFunction.apply(x, host.matrix(), host.own_bias, *own, dtype, mask)
    return y


def differentiable(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `VeraFunction`, by operations that autograd records."""
    mask, A_RI, one, _, link, b_O, d_R, W_OI, B_OR = kept_of(ctx)
    A_RI, B_OR = A_RI.to(ctx.dtype), B_OR.to(ctx.dtype)
    for_x, _, _, for_b, for_d, *_ = ctx.needs_input_grad
    g_NO = g.reshape(-1, g.shape[-1])
    own_NO = g_NO.to(ctx.dtype)
    gB_NR, db_O, dd_R, dx = (own_NO * b_O) @ B_OR, None, None, None
    if for_b or for_d:
        formed = ctx.formed and one is not None
        h_NR = one.reshape(-1, one.shape[-1]).to(A_RI.dtype) @ A_RI.T if formed else linked(one, link)
        db_O = (own_NO * ((h_NR * d_R) @ B_OR.T)).sum(0) if for_b else None
        dd_R = (gB_NR * h_NR).sum(0) if for_d else None
    if for_x:
        dx = returned(g_NO, W_OI, (gB_NR * d_R) @ A_RI, mask)
    return unflattened(dx, ctx.shape), None, None, db_O, dd_R, None, None, None, None


class VeraFunction(torch.autograd.Function):
    """The branch's products are in `dtype`: x's or, where the factors are wider and stay so, theirs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_OI: Tensor,
        bias_O: Tensor | None,
        b_O: Tensor,
        d_R: Tensor,
        B_OR: Tensor,
        A_RI: Tensor,
        dtype: torch.dtype,
        mask: Mask | None,
    ) -> tuple[Tensor, Tensor | None]:
        x_NI, (O, I), R = x.reshape(-1, x.shape[-1]), W_OI.shape, len(d_R)
        learns, together, N = any(ctx.needs_input_grad[3:5]), formable(x, B_OR), len(x_NI)
        ctx.dtype, ctx.wide = dtype, dtype == at_least_float32(dtype)
        # Formed: B diag(d) A here and one more such product in the backward pass, which makes gᵀ x, too;
        # where it cannot be added to W, two large products more.
        whole = (1 + learns) * R * O * I + (learns + (0 if together else 1 + learns)) * N * O * I
        ctx.formed = mask is None and ctx.wide and whole < (1 + learns) * N * R * (O + I)
        if ctx.formed:
            M_OI = (B_OR * d_R) @ A_RI
            if together:
                y = linear(x, torch.addcmul(W_OI, M_OI, b_O[:, None]), bias_O)
            else:
                y = frozen(x, W_OI, bias_O).add_(F.linear(x.to(M_OI.dtype), b_O[:, None] * M_OI))
            kept: tuple[Tensor, Tensor | None] = x, M_OI
        else:
            h_NR = seen(x_NI, mask, dtype) @ A_RI.to(dtype).T
            y, u_NO = frozen(x, W_OI, bias_O), None
            if ctx.wide:
                u_NO = (h_NR * d_R) @ B_OR.T
                y.view(-1, O).addcmul_(u_NO, b_O)
            else:
                y.view(-1, O).addmm_(h_NR, scaling(b_O, B_OR, d_R).to(dtype).T)
            kept = h_NR, u_NO
        link = link_of(ctx, N, A_RI, learns=learns and not ctx.formed)
        keep(ctx, x, mask, A_RI, *(kept if learns else NONE), link, b_O, d_R, W_OI, B_OR)
        return y, link

    @staticmethod
    @in_own_dtypes(differentiable)
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, A_RI, one, two, _, b_O, d_R, W_OI, B_OR = kept_of(ctx)
        g_NO = g.reshape(-1, g.shape[-1])
        own_NO = g_NO.to(ctx.dtype)
        for_x, _, _, for_b, for_d, *_ = ctx.needs_input_grad
        db_O = dd_R = dx = None
        if ctx.formed and one is not None:
            x_NI, M_OI = one.reshape(-1, one.shape[-1]), two
            G_OI = own_NO.T @ x_NI.to(own_NO.dtype)
            db_O = (G_OI * M_OI).sum(1) if for_b else None
            dd_R = (((B_OR * b_O[:, None]).T @ G_OI) * A_RI).sum(1) if for_d else None
            if for_x and formable(g, B_OR):
                dx = g_NO @ torch.addcmul(W_OI, M_OI, b_O[:, None])
            elif for_x:
                dx = (g_NO @ W_OI.to(g.dtype)).add_(own_NO @ (M_OI * b_O[:, None]))
            return unflattened(dx, ctx.shape), None, None, db_O, dd_R, None, None, None, None
        h_NR, u_NO = one, two
        if ctx.wide:
            gB_NR = (own_NO * b_O) @ columns(B_OR)
            db_O = (own_NO * u_NO).sum(0) if for_b else None
            dd_R = (gB_NR * h_NR).sum(0) if for_d else None
            gB_NR.mul_(d_R)
        else:
            gB_NR = own_NO @ columns(scaling(b_O, B_OR, d_R).to(ctx.dtype))
            if for_b or for_d:
                G_OR = (h_NR.T @ own_NO).T * B_OR
                db_O, dd_R = (G_OR * d_R).sum(1), (G_OR * b_O[:, None]).sum(0)
        dx = through(g_NO, W_OI, gB_NR, A_RI.to(ctx.dtype), None, None, mask) if for_x else None
        return unflattened(dx, ctx.shape), None, None, db_O, dd_R, None, None, None, None


def scaling(b_O: Tensor, B_OR: Tensor, d_R: Tensor) -> Tensor:
    """diag(b) B diag(d)."""
    return b_O[:, None] * B_OR * d_R
