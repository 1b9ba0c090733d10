"""LoRA Dropout: LoRA Dropout as a Sparsity Regularizer for Overfitting Control (Lin et al., 2024).

Not the option `lora_dropout`, which drops entries of the input. Shapes: O out, I in, R rank.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.dropout import DenseMask, Dropout
from lora_zoo.core.hooks import AdapterHooks, Pass, Progress
from lora_zoo.core.init import Init
from lora_zoo.core.seeding import generator
from lora_zoo.core.variants import register
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.low_rank import Additive

Drop = Callable[[str, Tensor], Tensor]
"""From a factor's name and ones, (I,) for A and (O,) for B, to its mask."""
OF_ONE = ("past_key_values", "cache", "encoder_outputs")
"""Arguments of a pass that are of one member's earlier pass."""


class MaskedPasses(AdapterHooks):
    """Eq. 7: the loss is the mean of `instances` passes, each with masks of its own.

    Eq. 8: at test time the logits are the mean of `ensemble` models, each with masks that stay (0: without
    it). This is a view, judged beside the model of the masks' mean; it averages outputs, which no matrix
    does, so that it cannot be merged or exported. The paper has one N for both and states no default.
    """

    pointwise_views = False

    def __init__(
        self, adapters: Mapping[str, "LoRADropoutMasks"], *, instances: int = 1, ensemble: int = 4
    ) -> None:
        super().__init__(adapters)
        for name, number, least in (("instances", instances, 1), ("ensemble", ensemble, 0)):
            if number < least:
                raise ValueError(f"lora_dropout_masks: {name} must be {least} or more; got {number}")
        self.instances, self.ensemble = instances, ensemble

    def on_train_begin(self, total: int) -> None:
        """ValueError for an encoder-decoder, which generates from one pass of its encoder."""
        if self.views() and getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            raise ValueError(
                "lora_dropout_masks: an encoder-decoder generates from one pass of its encoder, which cannot "
                "be that of each member; use variant.ensemble=0"
            )

    @contextlib.contextmanager
    def forward_context(self, progress: Progress) -> Iterator[None]:
        with self._dropping(lambda site: site.fresh):
            yield

    def objective(self, once: Callable[[], Pass], progress: Progress) -> tuple[Tensor, Any, Tensor | float]:
        passes = [once() for _ in range(self.instances)]
        return torch.stack([loss for loss, _ in passes]).mean(), passes[0][1], 0.0

    def views(self) -> dict[str, contextlib.AbstractContextManager[Any]]:
        drops = self.ensemble and any(site.mask_dropout for site in self.adapters.values())
        return {f"ensemble={self.ensemble}": self._averaging()} if drops else {}

    @contextlib.contextmanager
    def _dropping(self, by: Callable[["LoRADropoutMasks"], Drop]) -> Iterator[None]:
        self._drop(by)
        try:
            yield
        finally:
            self._drop(lambda _: None)

    def _drop(self, by: Callable[["LoRADropoutMasks"], Drop | None]) -> None:
        for site in self.adapters.values():
            site.drop = by(site)

    @contextlib.contextmanager
    def _averaging(self) -> Iterator[None]:
        generation = getattr(self.model, "generation_config", None)
        cached = getattr(generation, "use_cache", None)
        with contextlib.ExitStack() as stack:
            for hook in (
                self.model.register_forward_pre_hook(self._first_member, with_kwargs=True),
                self.model.register_forward_hook(self._mean, with_kwargs=True),
            ):
                stack.callback(hook.remove)
            if generation is not None:  # a cache of keys and values would be one member's
                stack.callback(setattr, generation, "use_cache", cached)
                generation.use_cache = False
            stack.enter_context(self._dropping(lambda _: _no_matrix))
            yield

    def _first_member(self, model: nn.Module, given: Any, named: dict[str, Any]) -> None:
        for name in OF_ONE:
            if named.get(name) is not None:
                raise ValueError(f"lora_dropout_masks: {name} is of one member, and the ensemble has more")
        self._become(0)

    def _become(self, member: int) -> None:
        self.asked = False
        self._drop(lambda site: partial(self._asked_of, site, member))

    def _asked_of(self, site: "LoRADropoutMasks", member: int, factor: str, ones: Tensor) -> Tensor:
        self.asked = True
        return site.lasting(member, factor, ones)

    def _mean(self, model: nn.Module, given: Any, named: dict[str, Any], first: Any) -> Any:
        total = _logits(first)
        if not self.asked:
            raise ValueError("lora_dropout_masks: the adapters are merged or idle: nothing is dropped")
        for member in range(1, self.ensemble):
            self._become(member)
            total = total + _logits(model.forward(*given, **named))
        self._drop(lambda _: _no_matrix)
        mean = total / self.ensemble
        return mean if isinstance(first, Tensor) else type(first)(logits=mean)


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if "logits" not in output:
        raise ValueError(f"lora_dropout_masks: the ensemble averages logits; got a {type(output).__name__}")
    logits: Tensor = output["logits"]
    return logits


def _no_matrix(factor: str, ones: Tensor) -> Tensor:
    raise ValueError(
        "lora_dropout_masks: the ensemble averages its members' outputs, which no matrix does; leave the "
        "view to merge or export the masks' mean"
    )


@register("lora_dropout_masks")
class LoRADropoutMasks(Additive):
    """Eq. 2: A's input columns and B's output rows are dropped with p = `mask_dropout`, never the rank.

    What is kept is scaled by 1/(1-p), so that LoRA's own ΔW is the masks' mean. Eq. 2 has no such factor:
    with α (1-p)² this is the same training. No source settles the authors' p (fig. 5 varies it) or code.
    """

    title = "LoRA Dropout"
    paper = "arXiv:2404.09610"
    equation = "W' = W + (α/r) diag(m_B) B A diag(m_A), masks m drawn each pass, their mean afterwards"
    count = "R * (O + I)"
    hooks = MaskedPasses

    def __init__(self, context: LayerContext, *, mask_dropout: float = 0.1, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        if not 0 <= mask_dropout < 1:
            raise ValueError(f"lora_dropout_masks: mask_dropout must lie in [0, 1); got {mask_dropout}")
        self.mask_dropout, self.place = mask_dropout, (context.seed, context.name)
        self.drop: Drop | None = None
        dropout = partial(Dropout, mask_dropout, seed=context.seed, counter=context.counter, of_rows=False)
        self.masks = nn.ModuleDict({factor: dropout(name=f"{context.name}.{factor}") for factor in "AB"})

    @property
    def varies(self) -> bool:
        return self.drop is not None

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return not init.residual  # no source masks what a start took from W

    def fresh(self, factor: str, ones: Tensor) -> Tensor:
        """The mask of this pass, in training mode; ones otherwise."""
        mask: Tensor = self.masks[factor](ones)
        return mask

    def lasting(self, member: int, factor: str, ones: Tensor) -> Tensor:
        """The mask of a member of the ensemble, from seed and place alone."""
        source = generator("lora_dropout_masks", *self.place, factor, member, device=ones.device)
        return DenseMask.draw(ones, self.mask_dropout, source).drop(ones)

    def pairs(self) -> tuple[FactorPair, FactorPair | None]:
        B_OR, A_RI, scale = super().pairs()[0]
        if self.drop is not None and self.mask_dropout:
            B_OR = B_OR * self.drop("B", B_OR.new_ones(len(B_OR)))[:, None]
            A_RI = A_RI * self.drop("A", A_RI.new_ones(A_RI.shape[1]))
        return FactorPair(B_OR, A_RI, scale), None

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """A member's ΔW is LoRA's times an outer product of masks: whole rows and columns are gone."""
        plain_OI, kept = self.weight(W_OI) - W_OI, 1 / (1 - self.mask_dropout)
        m_I, m_O = (self.lasting(0, f, W_OI.new_ones(n)) for f, n in zip("AB", W_OI.shape[::-1], strict=True))
        before, self.drop = self.drop, partial(self.lasting, 0)
        dropped_OI, self.drop = self.weight(W_OI) - W_OI, before
        torch.testing.assert_close(dropped_OI, plain_OI * torch.outer(m_O, m_I))
        kept_I = m_I[m_I > 0]
        torch.testing.assert_close(kept_I, torch.full_like(kept_I, kept), rtol=2**-10, atol=0.0)  # p: 16 bits
