"""Two levels of parameters, each learned on a part of the training data of its own."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_zoo.core.hooks import AdapterHooks, Progress

INNER, OUTER = "inner", "outer"
SHIFT = 0.01
"""The length of the shift of all weights of the lower level from which a second derivative is taken."""


class TwoLevels(AdapterHooks):
    """One tensor of each adapter learns on the outer part, all others on the inner one, in turns of steps.

    The upper level's gradient is that of L_out(w - ξ ∇_w L_in(w, α), α), the unrolled step of DARTS
    (arXiv:1806.09055), with ξ = `unroll_lr`: ∇_α L_out - ξ ∇²_αw L_in v (eq. 7), v = ∇_w L_out. The second
    term is taken from ∇_α L_in at w ± ε v, ε = 0.01 / ‖v‖ (eq. 8), by two more passes; ξ = 0 leaves it out
    (first order). L_in is the loss of the last inner step's batches, w the adapters' own tensors as that step
    has left them. DARTS and the papers set ξ to the lower level's learning rate; AutoLoRA's official code,
    by Betty, leaves ξ out, which is ξ = 1.
    """

    who: ClassVar[str]
    """The variant's name, for errors."""
    upper: ClassVar[str]
    """The attribute of an adapter that is the upper level."""

    def __init__(
        self,
        adapters: Mapping[str, Any],
        *,
        outer_share: float = 0.2,
        inner_steps: int = 1,
        outer_steps: int = 1,
        unroll_lr: float = 0.0,
    ) -> None:
        super().__init__(adapters)
        self.parts(outer_share=outer_share)
        if min(inner_steps, outer_steps) < 1:
            needs = "needs inner_steps >= 1 and outer_steps >= 1"
            raise ValueError(f"{self.who}: {needs}; got {inner_steps} and {outer_steps}")
        if not 0 <= unroll_lr < float("inf"):
            raise ValueError(f"{self.who}: unroll_lr must be 0 (first order) or more; got {unroll_lr}")
        self.turns, self.inner_steps = inner_steps + outer_steps, inner_steps
        self.unroll_lr = unroll_lr

    @classmethod
    def parts(cls, *, outer_share: float = 0.2, **hyper: Any) -> Mapping[str, float]:
        if not 0 < outer_share < 1:
            raise ValueError(f"{cls.who}: outer_share must lie between 0 and 1; got {outer_share}")
        return {INNER: 1 - outer_share, OUTER: outer_share}

    def part(self, step: int) -> str:
        return INNER if (step - 1) % self.turns < self.inner_steps else OUTER

    def on_after_backward(self, progress: Progress) -> None:
        upper, lower = self._levels()
        if self.part(progress.step) == INNER:
            rests = upper
        else:
            rests = lower
            if self.unroll_lr:
                self._unroll(progress, upper, lower)
        for p in rests:
            p.grad = None

    def _levels(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the upper and of the lower level that have gradients."""
        upper, lower = list[nn.Parameter](), list[nn.Parameter]()
        for adapter in self.adapters.values():
            for name, p in adapter.named_parameters():
                if p.grad is not None:
                    (upper if name == self.upper else lower).append(p)
        return upper, lower

    @torch.no_grad()
    def _unroll(self, progress: Progress, upper: list[nn.Parameter], lower: list[nn.Parameter]) -> None:
        """Add the second term to the upper level's gradients."""
        if progress.gradients_of_step is None:
            raise ValueError(
                f"{self.who}: unroll_lr needs this project's trainer, which has the inner batches"
            )
        last_inner = progress.step - (progress.step - 1) % self.turns + self.inner_steps - 1
        v, before = self._outer_gradients(lower), [p.clone() for p in lower]
        shift = SHIFT / torch.stack([g.norm() for g in v]).norm().clamp(min=1e-15)
        beside = list[Mapping[nn.Parameter, Tensor]]()
        for sign in (1, -1):
            for p, w, g in zip(lower, before, v, strict=True):
                p.copy_(w + sign * shift * g)
            with torch.enable_grad():
                beside.append(progress.gradients_of_step(last_inner))
        for p, w in zip(lower, before, strict=True):
            p.copy_(w)
        for p in upper:
            p.grad -= self.unroll_lr * (beside[0][p] - beside[1][p]) / (2 * shift)

    def _outer_gradients(self, lower: list[nn.Parameter]) -> list[Tensor]:
        """Those of the loss alone: the penalty is the lower level's."""
        with torch.enable_grad():
            penalty = torch.as_tensor(self.regularizer())
        whole = [torch.as_tensor(p.grad) for p in lower]
        if not penalty.requires_grad:
            return whole
        of_penalty = torch.autograd.grad(penalty, lower, materialize_grads=True)
        return [g - own for g, own in zip(whole, of_penalty, strict=True)]

    def law(self) -> None:
        """Of each round of turns, the lower level has `inner_steps`, and they come first."""
        seen = [self.part(step) for step in range(1, 2 * self.turns + 1)]
        assert seen == 2 * (self.inner_steps * [INNER] + (self.turns - self.inner_steps) * [OUTER])
