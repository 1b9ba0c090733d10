"""HiddenKey: LoRA Meets Dropout under a Unified Framework (Wang et al., Findings of ACL 2024).

Shapes: B samples, H heads, Q queries, K keys, T tokens, F hidden units.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.dropout import Dropout, SpanDropout
from lora_zoo.core.hooks import Progress
from lora_zoo.core.variants import register
from lora_zoo.injection.attention import (
    attentions,
    out_of_reach,
    with_dropped_weights,
    with_kept_keys,
    without_keys,
)
from lora_zoo.injection.roles import role_of
from lora_zoo.variants.low_rank import Additive
from lora_zoo.variants.two_passes import TwoPasses

Structure = Literal["element", "column", "span"]
Reach = Callable[[nn.Module, Callable[[Tensor], Tensor]], contextlib.AbstractContextManager[Any]]


class DroppedKeys(TwoPasses):
    """§3.2, eq. 11: keys of the attention and parts of the FFN's hidden layer are dropped, with a KL.

    `key_position`: `logits` is DropKey, `weights` DropAttention, which divides by the sum of the weights that
    are left, without a gradient; both give one output. A query that would be left without any key keeps its
    own. Hidden values are HiddenCut's place, and what is kept of them is scaled up.

    Structures: `element` drops each number by itself; `column` a key for all queries of a sample and head,
    or a hidden unit for all tokens of a sample; `span` ⌈p T⌉ neighbouring keys, or tokens of a sample, padded
    ones among them. The paper searches p and `kl_weight`; with `kl_weight=0` this is its HiddenKey⁻, of one
    pass, and with one of both p at 0 it is the other method alone.
    """

    def __init__(
        self,
        adapters: Mapping[str, "HiddenKey"],
        *,
        key_dropout: float = 0.1,
        hidden_dropout: float = 0.1,
        key_position: Literal["logits", "weights"] = "logits",
        key_structure: Structure = "column",
        hidden_structure: Structure = "element",
        **two_passes: Any,
    ) -> None:
        super().__init__(adapters, **two_passes)
        for name, p in (("key_dropout", key_dropout), ("hidden_dropout", hidden_dropout)):
            if not 0 <= p < 1:
                raise ValueError(f"hiddenkey: {name} must lie in [0, 1); got {p}")
        self.key_dropout, self.hidden_dropout = key_dropout, hidden_dropout
        self.key_structure, self.hidden_structure = key_structure, hidden_structure
        self.reach: Reach = with_kept_keys if key_position == "logits" else with_dropped_weights

    def attach(self, model: nn.Module, matrices: Mapping[str, Any], **seen: Any) -> None:
        super().attach(model, matrices, **seen)
        hidden = [name for name, _ in model.named_modules() if role_of(name) == "down"]
        self.of_keys = self._dropouts(attentions(model), self.key_dropout, self.key_structure)
        self.of_hidden = self._dropouts(hidden, self.hidden_dropout, self.hidden_structure)

    def _dropouts(self, names: Iterable[str], p: float, structure: Structure) -> dict[str, Dropout]:
        kind = SpanDropout if structure == "span" else Dropout
        return {n: kind(p, seed=self.seed, name=f"hiddenkey.{n}", counter=self.counter) for n in names if p}

    def on_train_begin(self, total: int) -> None:
        """ValueError for a model of transformers' in which one of the places cannot be reached."""
        super().on_train_begin(total)
        if not hasattr(getattr(self.model, "config", None), "_attn_implementation"):
            return  # no model of transformers': what is not found is not there
        if self.key_dropout and (reason := out_of_reach(self.model)):
            raise ValueError(f"hiddenkey cannot drop keys: {reason}; use variant.key_dropout=0")
        if self.hidden_dropout and not self.of_hidden:
            raise ValueError(
                "hiddenkey finds no layer with the role `down`, whose input is an FFN's hidden layer; "
                "use variant.hidden_dropout=0"
            )

    @contextlib.contextmanager
    def forward_context(self, progress: Progress) -> Iterator[None]:
        find = self.model.get_submodule
        with super().forward_context(progress), contextlib.ExitStack() as stack:
            for name, dropout in self.of_keys.items():
                stack.enter_context(self.reach(find(name), _kept_keys(dropout, self.key_structure)))
            for name, dropout in self.of_hidden.items():
                dropped = _dropped_inputs(dropout, self.hidden_structure)
                stack.enter_context(find(name).register_forward_pre_hook(dropped, with_kwargs=True))
            yield

    @torch.no_grad()
    def law(self) -> None:
        """A dropped column gets no attention; the rest is the softmax of the logits that are left."""
        logits_BHQK = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        kept_BH1K = torch.tensor([True, False, True, False]).expand(2, 3, 1, 4)
        mask_BHQK = without_keys(None, torch.ones_like(logits_BHQK, dtype=torch.bool), kept_BH1K, logits_BHQK)
        found_BHQK = (logits_BHQK + mask_BHQK).softmax(-1)
        assert not found_BHQK[..., 1::2].any()
        torch.testing.assert_close(found_BHQK[..., ::2], logits_BHQK[..., ::2].softmax(-1))


@register("hiddenkey")
class HiddenKey(Additive):
    """§4: LoRA (there of keys and values, r = 8, α = 16) whose model drops keys and hidden elements."""

    paper = "arXiv:2403.00812"
    by_row = "drops keys of each row"
    equation = "W' = W + (α/r) B A, key columns and hidden elements dropped, + α_KL KL of two passes"
    count = "R * (O + I)"
    hooks = DroppedKeys
    paper_alpha = 16.0


def _kept_keys(dropout: Dropout, structure: Structure) -> Callable[[Tensor], Tensor]:
    """From ones (B, H, Q, K) to what is kept, true, as (B, H, Q or 1, K)."""
    return lambda ones: dropout(ones if structure == "element" else ones[:, :, :1]) > 0


def _dropped_inputs(dropout: Dropout, structure: Structure) -> Callable[..., Any]:
    def scaled(x: Tensor) -> Tensor:
        if structure == "element":
            return dropout(x)
        if x.ndim != 3:
            raise ValueError(
                f"hiddenkey: hidden_structure={structure} needs hidden layers (samples, tokens, units); got "
                f"{tuple(x.shape)}; use variant.hidden_structure=element"
            )
        B, T, F = x.shape
        if structure == "column":
            return x * dropout(x.new_ones(B, 1, F))
        return x * dropout(x.new_ones(B, T))[..., None]

    return lambda module, given, named: ((scaled(given[0]), *given[1:]), named) if module.training else None
