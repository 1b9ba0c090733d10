"""Two passes of a batch, whose distributions are drawn towards each other.

Shapes: N rows, C classes or tokens.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.core.hooks import AdapterHooks, Pass, Progress


class TwoPasses(AdapterHooks):
    """½ (L₁ + L₂) + `kl_weight` times the mean divergence of both passes, each with dropout of its own.

    `divergence=kl` is the symmetric KL of R-Drop (arXiv:2106.14448, eq. 2), `js` the Jensen-Shannon
    divergence of HiddenCut; with `kl_weight=0` there is one pass. R-Drop's eq. 4 adds both losses where its
    code takes their mean, as here: its α is twice this weight.
    """

    def __init__(
        self,
        adapters: Mapping[str, Any],
        *,
        kl_weight: float = 1.0,
        divergence: Literal["kl", "js"] = "kl",
    ) -> None:
        super().__init__(adapters)
        if kl_weight < 0:
            raise ValueError(f"kl_weight must be 0 or more; got {kl_weight}")
        self.kl_weight, self.divergence = kl_weight, DIVERGENCES[divergence]
        self.batch: dict[str, Any] = {}

    def on_train_begin(self, total: int) -> None:
        """ValueError for a regression."""
        if self.kl_weight and getattr(getattr(self.model, "config", None), "num_labels", 2) == 1:
            raise ValueError("a regression has no distribution; use variant.kl_weight=0")

    @contextlib.contextmanager
    def forward_context(self, progress: Progress) -> Iterator[None]:
        with self.model.register_forward_pre_hook(self._remember, with_kwargs=True):
            yield
        self.batch = {}

    def _remember(self, model: nn.Module, given: Any, named: dict[str, Any]) -> None:
        self.batch = named

    def objective(self, once: Callable[[], Pass], progress: Progress) -> tuple[Tensor, Any, Tensor | float]:
        if not self.kl_weight:
            return super().objective(once, progress)
        (loss, outputs), (again, others) = once(), once()
        apart_N = self.divergence(self._judged(outputs["logits"]), self._judged(others["logits"]))
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


def symmetric_kl(logits_NC: Tensor, others_NC: Tensor) -> Tensor:
    """½ (KL(p‖q) + KL(q‖p)) of each row (N,), in float32 or wider."""
    log_p_NC, log_q_NC = _log_softmax(logits_NC), _log_softmax(others_NC)
    return ((log_p_NC.exp() - log_q_NC.exp()) * (log_p_NC - log_q_NC)).sum(-1) / 2


def jensen_shannon(logits_NC: Tensor, others_NC: Tensor) -> Tensor:
    """½ (KL(p‖m) + KL(q‖m)) of each row (N,), m = (p + q) / 2, in float32 or wider."""
    both = _log_softmax(logits_NC), _log_softmax(others_NC)
    log_m_NC = both[0].logaddexp(both[1]) - math.log(2)
    return sum((log_NC.exp() * (log_NC - log_m_NC)).sum(-1) for log_NC in both) / 2  # type: ignore[return-value]


def _log_softmax(logits_NC: Tensor) -> Tensor:
    return logits_NC.log_softmax(-1, at_least_float32(logits_NC.dtype))


DIVERGENCES = {"kl": symmetric_kl, "js": jensen_shannon}
