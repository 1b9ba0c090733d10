"""HiddenKey: LoRA Meets Dropout under a Unified Framework (Wang et al., Findings of ACL 2024).

Shapes: N rows, C classes or tokens; B samples, H heads, Q queries, K keys.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.dropout import Dropout
from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.core.hooks import AdapterHooks, Pass, Progress
from lora_zoo.core.variants import register
from lora_zoo.injection.attention import attentions, out_of_reach, with_kept_keys, without_keys
from lora_zoo.injection.roles import role_of
from lora_zoo.variants.low_rank import Additive

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


class DroppedKeys(AdapterHooks):
    """§3.2, eq. 11: key columns of the attention logits and elements of the FFN's hidden layer are dropped.

    A column goes for all queries of a sample and head; a query that would be left without any key keeps its
    own. Two passes of a batch are drawn towards each other by `kl_weight` times their symmetric KL. The paper
    searches all three; with `kl_weight=0` it is its HiddenKey⁻, of one pass.
    """

    def __init__(
        self,
        adapters: Mapping[str, "HiddenKey"],
        *,
        key_dropout: float = 0.1,
        hidden_dropout: float = 0.1,
        kl_weight: float = 1.0,
    ) -> None:
        super().__init__(adapters)
        for name, p in (("key_dropout", key_dropout), ("hidden_dropout", hidden_dropout)):
            if not 0 <= p < 1:
                raise ValueError(f"hiddenkey: {name} must lie in [0, 1); got {p}")
        if kl_weight < 0:
            raise ValueError(f"hiddenkey: kl_weight must be 0 or more; got {kl_weight}")
        self.key_dropout, self.hidden_dropout, self.kl_weight = key_dropout, hidden_dropout, kl_weight
        self.batch: dict[str, Any] = {}

    def attach(self, model: nn.Module, matrices: Mapping[str, Any], **seen: Any) -> None:
        super().attach(model, matrices, **seen)
        hidden = [name for name, _ in model.named_modules() if role_of(name) == "down"]
        self.of_keys, self.of_hidden = (
            {n: Dropout(p, seed=self.seed, name=f"hiddenkey.{n}", counter=self.counter) for n in names if p}
            for p, names in ((self.key_dropout, attentions(model)), (self.hidden_dropout, hidden))
        )

    def on_train_begin(self, total: int) -> None:
        """ValueError for a model of transformers' in which one of the places cannot be reached."""
        config = getattr(self.model, "config", None)
        if not hasattr(config, "_attn_implementation"):
            return  # no model of transformers': what is not found is not there
        if self.key_dropout and (reason := out_of_reach(self.model)):
            raise ValueError(f"hiddenkey cannot drop keys: {reason}; use variant.key_dropout=0")
        if self.hidden_dropout and not self.of_hidden:
            raise ValueError(
                "hiddenkey finds no layer with the role `down`, whose input is an FFN's hidden layer; "
                "use variant.hidden_dropout=0"
            )
        if self.kl_weight and getattr(config, "num_labels", 2) == 1:
            raise ValueError("hiddenkey: a regression has no distribution; use variant.kl_weight=0")

    @contextlib.contextmanager
    def forward_context(self, progress: Progress) -> Iterator[None]:
        find = self.model.get_submodule
        hooks: list[tuple[nn.Module, Hook]] = [(self.model, self._remember)]
        hooks += [(find(name), _without_keys(dropout)) for name, dropout in self.of_keys.items()]
        hooks += [(find(name), _without_inputs(dropout)) for name, dropout in self.of_hidden.items()]
        with contextlib.ExitStack() as stack:
            for module, hook in hooks:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield
        self.batch = {}

    def _remember(self, model: nn.Module, given: Any, named: dict[str, Any]) -> None:
        self.batch = named

    def objective(self, once: Callable[[], Pass], progress: Progress) -> tuple[Tensor, Any, Tensor | float]:
        if not self.kl_weight:
            return super().objective(once, progress)
        (loss, outputs), (again, others) = once(), once()
        apart_N = divergence(self._judged(outputs["logits"]), self._judged(others["logits"]))
        return (loss + again) / 2, outputs, self.kl_weight * apart_N.sum() / max(len(apart_N), 1)

    @property
    def _causal(self) -> bool:
        return getattr(self.model, "loss_type", None) in (None, "ForCausalLM")  # None: transformers' default

    def _judged(self, logits: Tensor) -> Tensor:
        """The logits (N, C) that the task's loss looks at: those of tokens with a label, or all."""
        labels = self.batch.get("labels")
        if logits.ndim != 3 or labels is None or labels.shape != logits.shape[:2]:
            return logits.flatten(0, -2)
        if self._causal:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return logits[labels != -100]

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
    equation = "W' = W + (α/r) B A, key columns and hidden elements dropped, + α_KL KL of two passes"
    count = "R * (O + I)"
    hooks = DroppedKeys
    paper_alpha = 16.0


def _without_keys(dropout: Dropout) -> Hook:
    return lambda module, given, named: (
        with_kept_keys(module, given, named, lambda ones: dropout(ones[:, :, :1]) > 0)
        if module.training
        else None
    )


def _without_inputs(dropout: Dropout) -> Hook:
    return lambda module, given, named: ((dropout(given[0]), *given[1:]), named) if module.training else None


def divergence(logits_NC: Tensor, others_NC: Tensor) -> Tensor:
    """½ (KL(p‖q) + KL(q‖p)) of each row (N,), in float32 or wider."""
    dtype = at_least_float32(logits_NC.dtype)
    log_p_NC, log_q_NC = logits_NC.log_softmax(-1, dtype), others_NC.log_softmax(-1, dtype)
    return ((log_p_NC.exp() - log_q_NC.exp()) * (log_p_NC - log_q_NC)).sum(-1) / 2
