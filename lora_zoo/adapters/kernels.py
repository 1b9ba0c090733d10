"""Forward and backward of an adapted dense layer in one piece: the frozen layer and as little more as can be.

The plain definition is `F.linear(x, weight(W))`, which these equal; what they do not take (see `fits`) is
done by ordinary operations. Each picks the cheaper order for the shapes at hand, forward and gradients apart:
two thin products beside W x, or the effective matrix formed once and one large product (arXiv:2312.03415).

Shapes: N tokens, O out, I in, R rank; x is (..., I) and the output (..., O).
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_zoo.adapters.hosts import DENSE, LayerHost, cast
from lora_zoo.adapters.randomness import Mask

FIXED = 8
"""An entry of a matrix that is formed costs its R multiplications, and about so many more for the memory."""


class Pair(NamedTuple):
    """A product B A of thin factors, B (O, R) and A (R, I)."""

    B_OR: Tensor
    A_RI: Tensor


def fits(host: LayerHost, x: Tensor, *tensors: Tensor) -> bool:
    """Whether a kernel takes this layer: dense, whole, frozen, of one dtype, in plain reverse mode.

    Compilers, autocast, functional transforms and forward-mode derivatives are given ordinary operations.
    """
    if not isinstance(host, DENSE) or host.known is not None or not x.numel():
        return False
    W_OI, bias_O = host.matrix(), host.layer.bias
    if W_OI.requires_grad or (isinstance(bias_O, Tensor) and bias_O.requires_grad):
        return False
    if any(t.dtype != x.dtype or t.device != x.device for t in (W_OI, *tensors)):
        return False
    return not (
        torch.compiler.is_compiling()
        or cast(x.device)
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def product(
    host: LayerHost, x: Tensor, pair: Pair, start: Pair | None = None, mask: Mask | None = None
) -> Tensor:
    """W x + bias + (B A + B0 A0) drop(x); `start` is the frozen B0 A0 of a residual start."""
    x, *factors = learning(x, *pair)
    y: Tensor = _Product.apply(x, host.matrix(), host.layer.bias, *factors, *(start or NONE), mask)
    return y


def decomposed(
    host: LayerHost,
    x: Tensor,
    m_O: Tensor,
    pair: Pair,
    start: Pair | None = None,
    mask: Mask | None = None,
) -> Tensor:
    """W x + bias + (W' - W) drop(x), W' = m V / ‖V‖_row, V = W + B A + B0 A0; the norm has no gradient."""
    x, *own = learning(x, m_O, *pair)
    y: Tensor = _Decomposed.apply(x, host.matrix(), host.layer.bias, *own, *(start or NONE), mask)
    return y


def scaled(
    host: LayerHost, x: Tensor, b_O: Tensor, d_R: Tensor, pair: Pair, mask: Mask | None = None
) -> Tensor:
    """W x + bias + diag(b) B diag(d) A drop(x) with B and A frozen."""
    x, *own = learning(x, b_O, d_R, *pair)
    y: Tensor = _Scaled.apply(x, host.matrix(), host.layer.bias, *own, mask)
    return y


def learning(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, without their gradients where none are recorded: a Function sees the tensors alone."""
    return tensors if torch.is_grad_enabled() else tuple(t.detach() for t in tensors)


NONE = (None, None)


def cheaper_formed(N: int, R: int, shape: tuple[int, int], *, spared: int) -> bool:
    """Whether W + B A is better formed, which spares the branch `spared` multiplications a token and rank."""
    O, I = shape
    return N * R * spared > O * I * (R + FIXED)


class _Product(torch.autograd.Function):
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
        mask: Mask | None,
    ) -> Tensor:
        x_NI, (O, I) = x.reshape(-1, x.shape[-1]), W_OI.shape
        _, _, _, for_B, for_A, *_ = ctx.needs_input_grad
        # B's gradient takes A x anyway: the branch's first product is not spared where B learns.
        spared = O if for_B else O + I
        h_NR = None
        if mask is None and cheaper_formed(len(x_NI), both(B_OR, B0_OR), (O, I), spared=spared):
            y = F.linear(x, formed(W_OI, B_OR, A_RI, B0_OR, A0_RI), bias_O)
        else:
            y = F.linear(x, W_OI, bias_O)
            y_NO = y.view(-1, O)
            dropped_NI = x_NI if mask is None else mask.drop(x_NI)
            h_NR = dropped_NI @ A_RI.T
            y_NO.addmm_(h_NR, B_OR.T)
            if B0_OR is not None and A0_RI is not None:
                y_NO.addmm_(dropped_NI @ A0_RI.T, B0_OR.T)
        if for_B and not for_A and h_NR is None:
            h_NR = x_NI @ A_RI.T  # R numbers a token are kept, not the I of x
        kept = (x_NI if for_A else None, h_NR if for_B else None)
        keep(ctx, x, mask, *kept, W_OI, B_OR, A_RI, B0_OR, A0_RI)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, x_NI, h_NR, W_OI, B_OR, A_RI, B0_OR, A0_RI = kept_of(ctx)
        (O, I), g_NO = W_OI.shape, g.reshape(-1, g.shape[-1])
        for_x, _, _, for_B, for_A, *_ = ctx.needs_input_grad
        form = mask is None and cheaper_formed(
            len(g_NO), both(B_OR, B0_OR), (O, I), spared=I if for_A else O + I
        )
        gB_NR = g_NO @ columns(B_OR) if for_A or (for_x and not form) else None
        dB_OR = dA_RI = dx = None
        if for_A:
            dropped_NI = x_NI if mask is None else mask.drop(x_NI)
            h_NR = dropped_NI @ A_RI.T if h_NR is None and for_B else h_NR
            assert gB_NR is not None
            dA_RI = gB_NR.T @ dropped_NI
        if for_B:
            dB_OR = (h_NR.T @ g_NO).T
        if for_x and form:
            dx = g_NO @ formed(W_OI, B_OR, A_RI, B0_OR, A0_RI)
        elif for_x:
            assert gB_NR is not None
            dx = through(g_NO, W_OI, gB_NR, A_RI, B0_OR, A0_RI, mask)
        return unflattened(dx, ctx.shape), None, None, dB_OR, dA_RI, None, None, None


class _Decomposed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_OI: Tensor,
        bias_O: Tensor | None,
        m_O: Tensor,
        B_OR: Tensor,
        A_RI: Tensor,
        B0_OR: Tensor | None,
        A0_RI: Tensor | None,
        mask: Mask | None,
    ) -> Tensor:
        V_OI = formed(W_OI, B_OR, A_RI, B0_OR, A0_RI)
        norm_O = V_OI.norm(dim=1).detach().clamp_min(torch.finfo(V_OI.dtype).tiny)
        gain_O, learns = m_O / norm_O, any(ctx.needs_input_grad[3:6])
        if mask is None:
            y = kept = F.linear(x, V_OI.mul_(gain_O[:, None]), bias_O)
            if learns:
                # m's gradient needs the output, which whoever comes next keeps as well, or writes over:
                # `.data` is not checked for that, and the witness, a tensor without memory, tells it.
                kept, ctx.witness, ctx.version = y.data, y.detach(), y._version
                ctx.witness.data = y.new_empty(0)
        else:
            dropped = mask.drop(x)
            y = F.linear(x - dropped, W_OI, bias_O)
            kept = F.linear(dropped, V_OI)
            y.addcmul_(kept, gain_O)
        own = (x, kept) if learns else NONE
        keep(ctx, x, mask, *own, m_O, norm_O, W_OI, bias_O, B_OR, A_RI, B0_OR, A0_RI)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, x, y, m_O, norm_O, W_OI, bias_O, B_OR, A_RI, B0_OR, A0_RI = kept_of(ctx)
        g_NO, gain_O = g.reshape(-1, g.shape[-1]), m_O / norm_O
        for_x, _, _, for_m, for_B, for_A, *_ = ctx.needs_input_grad
        gained_NO = g_NO * gain_O
        gB_NR = gained_NO @ columns(B_OR)
        dm_O = dB_OR = dA_RI = dx = None
        if for_m and mask is None:
            if ctx.witness._version != ctx.version:
                V_OI = formed(W_OI, B_OR, A_RI, B0_OR, A0_RI)
                y = F.linear(x, V_OI.mul_(gain_O[:, None]), bias_O)
            dm_O = (g_NO * y.reshape(g_NO.shape)).sum(0)
            if bias_O is not None:
                dm_O -= g_NO.sum(0) * bias_O
            tiny = torch.finfo(m_O.dtype).tiny
            dm_O /= torch.where(m_O.abs() < tiny, tiny, m_O)
        elif for_m:
            dm_O = (g_NO * y.reshape(g_NO.shape)).sum(0) / norm_O
        if for_A or for_B:
            x_NI = x.reshape(-1, x.shape[-1])
            dropped_NI = x_NI if mask is None else mask.drop(x_NI)
            dB_OR = ((dropped_NI @ A_RI.T).T @ gained_NO).T if for_B else None
            dA_RI = gB_NR.T @ dropped_NI if for_A else None
        if for_x and mask is None:
            dx = through(gained_NO, W_OI, gB_NR, A_RI, B0_OR, A0_RI, None)
        elif for_x:
            more_NI = through(gained_NO - g_NO, W_OI, gB_NR, A_RI, B0_OR, A0_RI, None, of_pair=gained_NO)
            dx = mask.drop_(more_NI).addmm_(g_NO, W_OI)
        return unflattened(dx, ctx.shape), None, None, dm_O, dB_OR, dA_RI, None, None, None


class _Scaled(torch.autograd.Function):
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
        mask: Mask | None,
    ) -> Tensor:
        x_NI, (O, I), R = x.reshape(-1, x.shape[-1]), W_OI.shape, len(d_R)
        learns = any(ctx.needs_input_grad[3:5])
        # Formed: B diag(d) A here and one more such product in the backward pass, which makes gᵀ x, too.
        whole = (1 + learns) * R * O * I + learns * len(x_NI) * O * I
        if mask is None and whole < (1 + learns) * len(x_NI) * R * (O + I):
            M_OI = (B_OR * d_R) @ A_RI
            y = F.linear(x, torch.addcmul(W_OI, M_OI, b_O[:, None]), bias_O)
            kept = (x_NI, M_OI)
        else:
            h_NR = (x_NI if mask is None else mask.drop(x_NI)) @ A_RI.T
            u_NO = (h_NR * d_R) @ B_OR.T
            y = F.linear(x, W_OI, bias_O)
            y.view(-1, O).addcmul_(u_NO, b_O)
            kept = (h_NR, u_NO)
        ctx.formed = kept[0] is x_NI
        keep(ctx, x, mask, *(kept if learns else NONE), b_O, d_R, W_OI, B_OR, A_RI)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, one, two, b_O, d_R, W_OI, B_OR, A_RI = kept_of(ctx)
        g_NO = g.reshape(-1, g.shape[-1])
        for_x, _, _, for_b, for_d, *_ = ctx.needs_input_grad
        db_O = dd_R = dx = None
        if ctx.formed and one is not None:
            x_NI, M_OI = one, two
            G_OI = g_NO.T @ x_NI
            db_O = (G_OI * M_OI).sum(1) if for_b else None
            dd_R = (((B_OR * b_O[:, None]).T @ G_OI) * A_RI).sum(1) if for_d else None
            dx = g_NO @ torch.addcmul(W_OI, M_OI, b_O[:, None]) if for_x else None
            return unflattened(dx, ctx.shape), None, None, db_O, dd_R, None, None, None
        h_NR, u_NO = one, two
        gB_NR = (g_NO * b_O) @ columns(B_OR)
        db_O = (g_NO * u_NO).sum(0) if for_b else None
        dd_R = (gB_NR * h_NR).sum(0) if for_d else None
        dx = through(g_NO, W_OI, gB_NR.mul_(d_R), A_RI, None, None, mask) if for_x else None
        return unflattened(dx, ctx.shape), None, None, db_O, dd_R, None, None, None


def keep(ctx: Any, x: Tensor, mask: Mask | None, *tensors: Tensor | None) -> None:
    """Save what backward needs where whoever watches saved tensors (checkpointing, offloading) sees it."""
    ctx.shape, ctx.mask = x.shape, None if mask is None else replace(mask, entries=x.new_empty(0))
    ctx.save_for_backward(None if mask is None else mask.entries, *tensors)


def kept_of(ctx: Any) -> tuple[Any, ...]:
    entries, *tensors = ctx.saved_tensors
    return None if ctx.mask is None else replace(ctx.mask, entries=entries), *tensors


def through(
    g_NO: Tensor,
    W_OI: Tensor,
    gB_NR: Tensor,
    A_RI: Tensor,
    B0_OR: Tensor | None,
    A0_RI: Tensor | None,
    mask: Mask | None,
    of_pair: Tensor | None = None,
) -> Tensor:
    """The input's gradient g W + drop(g B A + g B0 A0); `of_pair` stands for g at B0, where it is another."""
    gB0_NR = None if B0_OR is None else (g_NO if of_pair is None else of_pair) @ columns(B0_OR)
    if mask is None:
        dx_NI = (g_NO @ W_OI).addmm_(gB_NR, A_RI)
        return dx_NI if gB0_NR is None or A0_RI is None else dx_NI.addmm_(gB0_NR, A0_RI)
    dx_NI = gB_NR @ A_RI
    if gB0_NR is not None and A0_RI is not None:
        dx_NI.addmm_(gB0_NR, A0_RI)
    return mask.drop_(dx_NI).addmm_(g_NO, W_OI)


def formed(W_OI: Tensor, B_OR: Tensor, A_RI: Tensor, B0_OR: Tensor | None, A0_RI: Tensor | None) -> Tensor:
    """W + B A + B0 A0, a new tensor."""
    formed_OI = torch.addmm(W_OI, B_OR, A_RI)
    return formed_OI if B0_OR is None or A0_RI is None else formed_OI.addmm_(B0_OR, A0_RI)


def columns(B_OR: Tensor) -> Tensor:
    """B with its columns contiguous: a product from the left reads them in order, twice as fast."""
    return B_OR.T.contiguous().T


def both(B_OR: Tensor, B0_OR: Tensor | None) -> int:
    """The rank of the pair and its start together."""
    return B_OR.shape[1] + (0 if B0_OR is None else B0_OR.shape[1])


def unflattened(dx_NI: Tensor | None, shape: torch.Size) -> Tensor | None:
    return None if dx_NI is None else dx_NI.view(shape)


__all__ = ["Pair", "decomposed", "fits", "product", "scaled"]
