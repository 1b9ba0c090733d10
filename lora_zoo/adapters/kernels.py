"""Forward and backward of an adapted dense layer in one piece: the frozen layer and as little more as can be.

The plain definition is `F.linear(x, weight(W))`, which these equal; what they do not take (see `fits`) is
done by ordinary operations. Each picks the cheaper order for the shapes at hand, forward and gradients apart:
two thin products beside W x, or the effective matrix formed once and one large product (arXiv:2312.03415).

The frozen product has x's dtype and the branch its factors', often a wider one: the input is widened for the
branch while it is used and kept as it is, and a sum is rounded once. Autocast narrows x and the factors
before all else. Where x is narrow W' is never formed: rounded to x's dtype it would lose a small change.

Shapes: N tokens, O out, I in, R rank; x is (..., I) and the output (..., O).
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_zoo.adapters.hosts import DENSE, LayerHost, at_least_float32, cast, uncast
from lora_zoo.adapters.randomness import Mask

FIXED = 8
"""An entry of a matrix that is formed costs its R multiplications, and about so many more for the memory."""


class Pair(NamedTuple):
    """A product B A of thin factors, B (O, R) and A (R, I)."""

    B_OR: Tensor
    A_RI: Tensor


def fits(host: LayerHost, x: Tensor, *tensors: Tensor) -> bool:
    """Whether a kernel takes this layer: dense, whole, frozen, its dtypes allowed, in plain reverse mode.

    Compilers, functional transforms and forward-mode derivatives are given ordinary operations.
    """
    if not isinstance(host, DENSE) or host.known is not None or not x.numel():
        return False
    W_OI, bias_O = host.matrix(), host.layer.bias
    if W_OI.requires_grad or (isinstance(bias_O, Tensor) and bias_O.requires_grad):
        return False
    if any(t.device != x.device for t in (W_OI, *tensors)) or not _allowed(x, W_OI, *tensors):
        return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _allowed(x: Tensor, W_OI: Tensor, *tensors: Tensor) -> bool:
    """Whether the adapter has one dtype, x's or a wider one; autocast takes any, but leaves float64 as it is."""
    first, *others = {t.dtype for t in tensors}
    if others:
        return False
    if cast(x.device):
        narrow = torch.get_autocast_dtype(x.device.type).itemsize == 2
        return narrow and x.is_floating_point() and torch.float64 not in (x.dtype, W_OI.dtype, first)
    return x.dtype == W_OI.dtype and first == torch.promote_types(x.dtype, first)


def product(
    host: LayerHost, x: Tensor, pair: Pair, start: Pair | None = None, mask: Mask | None = None
) -> Tensor:
    """W x + bias + (B A + B0 A0) drop(x); `start` is the frozen B0 A0 of a residual start."""
    x, pair, start = branched(x, pair, start)
    x, *factors = learning(x, *pair)
    with exactly(x):
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
    W_OI = host.matrix()
    with exactly(x), torch.no_grad():
        wide = at_least_float32(torch.promote_types(W_OI.dtype, pair.B_OR.dtype))
        V_OI = formed(W_OI.to(wide), *(None if t is None else t.to(wide) for t in (*pair, *(start or NONE))))
        norm_O = V_OI.norm(dim=1).clamp_min(torch.finfo(V_OI.dtype).tiny)
    x, pair, start = branched(x, pair, start)
    x, gain_O, *factors = learning(x, m_O / norm_O, *pair)
    known = V_OI if formable(x, pair.B_OR) else None
    with exactly(x):
        y: Tensor = _Decomposed.apply(
            x, W_OI, host.layer.bias, known, gain_O, *factors, *(start or NONE), mask
        )
    return y


def scaled(
    host: LayerHost, x: Tensor, b_O: Tensor, d_R: Tensor, pair: Pair, mask: Mask | None = None
) -> Tensor:
    """W x + bias + diag(b) B diag(d) A drop(x) with B and A frozen."""
    x, pair, _ = branched(x, pair)
    x, *own = learning(x, b_O, d_R, *pair)
    with exactly(x):
        y: Tensor = _Scaled.apply(x, host.matrix(), host.layer.bias, *own, mask)
    return y


def branched(x: Tensor, pair: Pair, start: Pair | None = None) -> tuple[Tensor, Pair, Pair | None]:
    """The input and the branch, narrowed under autocast; its start is within the pair where x is narrow.

    A residual start's product is large and nearly the pair's own: their difference is to be rounded, not they.
    """
    if start is not None and (cast(x.device) or not formable(x, pair.B_OR)):
        pair = Pair(torch.cat([pair.B_OR, start.B_OR], dim=1), torch.cat([pair.A_RI, start.A_RI]))
        start = None
    if cast(x.device):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, pair = x.to(dtype), Pair(*(t.to(dtype) for t in pair))
    return x, pair, start


def exactly(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Inside, autocast changes no dtype any more."""
    return uncast(x.device) if cast(x.device) else contextlib.nullcontext()


def in_own_dtypes(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass in the dtypes of its forward pass, whatever is on when it is called."""

    @functools.wraps(backward)
    def within(ctx: Any, g: Tensor) -> Any:
        with exactly(g):
            return backward(ctx, g)

    return within


def learning(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, without their gradients where none are recorded: a Function sees the tensors alone."""
    return tensors if torch.is_grad_enabled() else tuple(t.detach() for t in tensors)


NONE = (None, None)


def cheaper_formed(N: int, R: int, shape: tuple[int, int], *, spared: int) -> bool:
    """Whether W + B A is better formed, which spares the branch `spared` multiplications a token and rank."""
    O, I = shape
    return N * R * spared > O * I * (R + FIXED)


def formable(x: Tensor, B_OR: Tensor) -> bool:
    """Whether W + B A may stand in for W; rounded to a narrow dtype it would lose a small B A."""
    return x.dtype == B_OR.dtype == at_least_float32(x.dtype)


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
        spared, rank = O if for_B else O + I, both(B_OR, B0_OR)
        h_NR = None
        if mask is None and formable(x, B_OR) and cheaper_formed(len(x_NI), rank, (O, I), spared=spared):
            y = F.linear(x, formed(W_OI, B_OR, A_RI, B0_OR, A0_RI), bias_O)
        else:
            y = frozen(x, W_OI, bias_O)
            y_NO = y.view(-1, O)
            dropped_NI = seen(x_NI, mask, A_RI.dtype)
            h_NR = dropped_NI @ A_RI.T
            plus_(y_NO, h_NR, B_OR.T)
            if B0_OR is not None and A0_RI is not None:
                y_NO.addmm_(dropped_NI @ A0_RI.T, B0_OR.T)
        if for_B and not for_A and h_NR is None:
            h_NR = x_NI @ A_RI.T  # R numbers a token are kept, not the I of x
        kept = (x_NI if for_A else None, h_NR if for_B else None)
        keep(ctx, x, mask, *kept, W_OI, B_OR, A_RI, B0_OR, A0_RI)
        return y

    @staticmethod
    @once_differentiable
    @in_own_dtypes
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, x_NI, h_NR, W_OI, B_OR, A_RI, B0_OR, A0_RI = kept_of(ctx)
        (O, I), g_NO = W_OI.shape, g.reshape(-1, g.shape[-1])
        for_x, _, _, for_B, for_A, *_ = ctx.needs_input_grad
        form = (
            mask is None
            and formable(g, B_OR)
            and cheaper_formed(len(g_NO), both(B_OR, B0_OR), (O, I), spared=I if for_A else O + I)
        )
        own_NO = g_NO.to(B_OR.dtype)
        gB_NR = own_NO @ columns(B_OR) if for_A or (for_x and not form) else None
        dB_OR = dA_RI = dx = None
        if for_A:
            dropped_NI = seen(x_NI, mask, A_RI.dtype)
            h_NR = dropped_NI @ A_RI.T if h_NR is None and for_B else h_NR
            assert gB_NR is not None
            dA_RI = gB_NR.T @ dropped_NI
        if for_B:
            dB_OR = (h_NR.T @ own_NO).T
        if for_x and form:
            dx = g_NO @ formed(W_OI, B_OR, A_RI, B0_OR, A0_RI)
        elif for_x:
            assert gB_NR is not None
            dx = through(g_NO, W_OI, gB_NR, A_RI, B0_OR, A0_RI, mask)
        return unflattened(dx, ctx.shape), None, None, dB_OR, dA_RI, None, None, None


class _Decomposed(torch.autograd.Function):
    """gain (V x) + bias; V, which is written over, is None where it may not be formed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_OI: Tensor,
        bias_O: Tensor | None,
        V_OI: Tensor | None,
        gain_O: Tensor,
        B_OR: Tensor,
        A_RI: Tensor,
        B0_OR: Tensor | None,
        A0_RI: Tensor | None,
        mask: Mask | None,
    ) -> Tensor:
        learns, u, ctx.lent = any(ctx.needs_input_grad[4:7]), None, None
        if mask is None and V_OI is not None:
            y = F.linear(x, V_OI.mul_(gain_O[:, None]), bias_O)
        elif V_OI is not None:
            dropped = mask.drop(x)
            y = F.linear(x - dropped, W_OI, bias_O)
            u = F.linear(dropped, V_OI)
            y.addcmul_(u, gain_O)
        else:
            dropped = x if mask is None else mask.drop(x)
            Wx = frozen(dropped, W_OI)
            Vx = beside(Wx, dropped, B_OR, A_RI, gain_O.dtype)
            u = None if mask is None and bias_O is None else Vx.to(x.dtype)
            wide = Vx.mul_(gain_O) if mask is None else Vx.mul_(gain_O).sub_(Wx).add_(frozen(x, W_OI))
            y = (wide if bias_O is None else wide.add_(bias_O)).to(x.dtype)
        if learns and u is None:
            ctx.lent, u = Lent.of(y)
        keep(ctx, x, mask, *((x, u) if learns else NONE), gain_O, W_OI, bias_O, B_OR, A_RI, B0_OR, A0_RI)
        return y

    @staticmethod
    @once_differentiable
    @in_own_dtypes
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, x, u, gain_O, W_OI, bias_O, B_OR, A_RI, B0_OR, A0_RI = kept_of(ctx)
        g_NO = g.reshape(-1, g.shape[-1])
        for_x, *_, for_gain, for_B, for_A, _, _, _ = ctx.needs_input_grad
        gained_NO = g_NO * gain_O
        own_NO = gained_NO.to(B_OR.dtype)
        gB_NR = own_NO @ columns(B_OR)
        dgain_O = dB_OR = dA_RI = dx = None
        if for_gain and ctx.lent and ctx.lent.written():
            if formable(x, B_OR):
                u = F.linear(x, formed(W_OI, B_OR, A_RI, B0_OR, A0_RI))
            else:
                u = beside(frozen(x, W_OI), x, B_OR, A_RI, gain_O.dtype)
        if for_gain:
            dgain_O = (g_NO.to(gain_O.dtype) * u.reshape(g_NO.shape)).sum(0)
            if ctx.lent and not ctx.lent.written():  # u is the output
                if bias_O is not None:
                    dgain_O -= g_NO.sum(0) * bias_O
                tiny = torch.finfo(gain_O.dtype).tiny
                dgain_O /= torch.where(gain_O.abs() < tiny, tiny, gain_O)
        if for_A or for_B:
            dropped_NI = seen(x.reshape(-1, x.shape[-1]), mask, A_RI.dtype)
            dB_OR = ((dropped_NI @ A_RI.T).T @ own_NO).T if for_B else None
            dA_RI = gB_NR.T @ dropped_NI if for_A else None
        if for_x and mask is None:
            dx = through(gained_NO.to(g.dtype), W_OI, gB_NR, A_RI, B0_OR, A0_RI, None)
        elif for_x:
            changed_NO = (gained_NO - g_NO).to(g.dtype)
            more_NI = through(changed_NO, W_OI, gB_NR, A_RI, B0_OR, A0_RI, None, of_pair=gained_NO)
            dx = plus_(mask.drop_(more_NI), g_NO, W_OI.to(g.dtype))
        return unflattened(dx, ctx.shape), None, None, None, dgain_O, dB_OR, dA_RI, None, None, None


class Lent(NamedTuple):
    """An output that is kept for backward as it is; whoever comes next keeps it as well, or writes over it."""

    witness: Tensor
    version: int

    @classmethod
    def of(cls, y: Tensor) -> tuple["Lent", Tensor]:
        """`.data` is not checked for that, and the witness, a tensor without memory, tells it."""
        lent, kept = cls(y.detach(), y._version), y.data
        lent.witness.data = y.new_empty(0)
        return lent, kept

    def written(self) -> bool:
        return self.witness._version != self.version


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
        together, wide = formable(x, B_OR), B_OR.dtype == at_least_float32(B_OR.dtype)
        apart = 0 if together else (1 + learns) * len(x_NI) * O * I
        whole = (1 + learns) * R * O * I + learns * len(x_NI) * O * I + apart
        ctx.formed = mask is None and wide and whole < (1 + learns) * len(x_NI) * R * (O + I)
        if ctx.formed:
            M_OI = (B_OR * d_R) @ A_RI
            if together:
                y = F.linear(x, torch.addcmul(W_OI, M_OI, b_O[:, None]), bias_O)
            else:
                y = frozen(x, W_OI, bias_O).add_(F.linear(x.to(M_OI.dtype), b_O[:, None] * M_OI))
            kept = (x_NI, M_OI)
        else:
            h_NR = seen(x_NI, mask, A_RI.dtype) @ A_RI.T
            u_NO = (h_NR * d_R).to(B_OR.dtype) @ B_OR.T
            y = frozen(x, W_OI, bias_O)
            y.view(-1, O).addcmul_(u_NO, b_O)
            kept = (h_NR, u_NO.to(x.dtype))
        keep(ctx, x, mask, *(kept if learns else NONE), b_O, d_R, W_OI, B_OR, A_RI)
        return y

    @staticmethod
    @once_differentiable
    @in_own_dtypes
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, one, two, b_O, d_R, W_OI, B_OR, A_RI = kept_of(ctx)
        g_NO = g.reshape(-1, g.shape[-1])
        own_NO = g_NO.to(b_O.dtype)
        for_x, _, _, for_b, for_d, *_ = ctx.needs_input_grad
        db_O = dd_R = dx = None
        if ctx.formed and one is not None:
            x_NI, M_OI = one, two
            G_OI = own_NO.T @ x_NI.to(own_NO.dtype)
            db_O = (G_OI * M_OI).sum(1) if for_b else None
            dd_R = (((B_OR * b_O[:, None]).T @ G_OI) * A_RI).sum(1) if for_d else None
            if for_x and formable(g, B_OR):
                dx = g_NO @ torch.addcmul(W_OI, M_OI, b_O[:, None])
            elif for_x:
                dx = (g_NO @ W_OI.to(g.dtype)).add_(own_NO @ (M_OI * b_O[:, None]))
            return unflattened(dx, ctx.shape), None, None, db_O, dd_R, None, None, None
        h_NR, u_NO = one, two
        gB_NR = (own_NO * b_O).to(B_OR.dtype) @ columns(B_OR)
        db_O = (own_NO * u_NO).sum(0) if for_b else None
        dd_R = (gB_NR.to(d_R.dtype) * h_NR).sum(0) if for_d else None
        dx = through(g_NO, W_OI, gB_NR.mul_(d_R), A_RI, None, None, mask) if for_x else None
        return unflattened(dx, ctx.shape), None, None, db_O, dd_R, None, None, None


def keep(ctx: Any, x: Tensor, mask: Mask | None, *tensors: Tensor | None) -> None:
    """Save what backward needs where whoever watches saved tensors (checkpointing, offloading) sees it."""
    ctx.shape, ctx.mask = x.shape, None if mask is None else replace(mask, entries=x.new_empty(0))
    ctx.save_for_backward(None if mask is None else mask.entries, *tensors)


def kept_of(ctx: Any) -> tuple[Any, ...]:
    entries, *tensors = ctx.saved_tensors
    return None if ctx.mask is None else replace(ctx.mask, entries=entries), *tensors


def frozen(x: Tensor, W_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """The frozen layer's own output, in x's dtype."""
    return F.linear(x, W_OI.to(x.dtype), None if bias_O is None else bias_O.to(x.dtype))


def beside(Wx: Tensor, x: Tensor, B_OR: Tensor, A_RI: Tensor, dtype: torch.dtype) -> Tensor:
    """W x + B A x in a dtype wider than that of `Wx`, a new tensor."""
    return F.linear(F.linear(x.to(A_RI.dtype), A_RI), B_OR).to(dtype).add_(Wx)


def seen(x_NI: Tensor, mask: Mask | None, dtype: torch.dtype) -> Tensor:
    """What the branch is given, in its dtype."""
    return x_NI.to(dtype) if mask is None else mask.drop(x_NI.to(dtype))


def plus_(y: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """y += one two in place; where y is narrower, the sum alone is rounded."""
    if y.dtype == one.dtype:
        return y.addmm_(one, two)
    if (y.dtype, one.dtype) == (torch.bfloat16, torch.float32):
        # Two bfloat16 numbers hold 16 bits of a float32: nothing as large as y is made in float32.
        (a, da), (b, db) = halves(one), halves(two)
        return y.addmm_(torch.cat([a, a, da], dim=1), torch.cat([b, db, b]))
    return y.add_(one @ two)


def halves(t: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors whose sum is float32 `t`, to 16 bits."""
    high = t.to(torch.bfloat16)
    return high, (t - high).to(torch.bfloat16)


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
    W_OI = W_OI.to(g_NO.dtype)
    gB0_NR = None if B0_OR is None else (g_NO if of_pair is None else of_pair) @ columns(B0_OR)
    if mask is None:
        dx_NI = plus_(g_NO @ W_OI, gB_NR, A_RI)
        return dx_NI if gB0_NR is None or A0_RI is None else dx_NI.addmm_(gB0_NR, A0_RI)
    dx_NI = gB_NR @ A_RI
    if gB0_NR is not None and A0_RI is not None:
        dx_NI.addmm_(gB0_NR, A0_RI)
    mask.drop_(dx_NI)
    return dx_NI.addmm_(g_NO, W_OI) if dx_NI.dtype == g_NO.dtype else (g_NO @ W_OI).add_(dx_NI)


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
