"""Hooks that consolidate what was learned wherever the loss says so: Online-LoRA's.

Shapes: N examples of a batch, M of the memory of hard ones.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_zoo.core.hooks import AdapterHooks, Groups, MakeOptimizer, Pass, Progress
from lora_zoo.core.seeding import generator
from lora_zoo.core.train_eval import in_mode
from lora_zoo.variants.continual.loss_plateaus import (
    IGNORED,
    HardExamples,
    LossPlateaus,
    is_of_tokens,
    row_losses,
)


class Stream(nn.Module):
    """The memory of the stream: its losses and its hardest examples."""

    def __init__(self, window: int, hard_examples: int, longest: int, like: Tensor) -> None:
        super().__init__()
        self.losses, self.hard = LossPlateaus(window, like), HardExamples(hard_examples, longest, like)


class TaskFree(AdapterHooks):
    """Consolidates at each plateau of the loss after a peak: nobody tells of tasks.

    Hard examples are learned again with each batch. Ω, the running mean over plateaus of their squared
    gradients (of the likelihood of the model's own best answer), holds back what is learned next:
    (λ/2) Σ Ω p² over the factors. The official code goes through its parameters once for all hard examples,
    so that only the first of them counts; here all do. The bounds of a plateau are its own for each data set;
    these are for losses of words in nats.
    """

    def __init__(
        self,
        adapters: Mapping[str, Any],
        *,
        importance: float = 2000.0,
        mean_below: float = 0.5,
        variance_below: float = 0.02,
        window: int = 5,
        hard_examples: int = 4,
        longest: int = 256,
    ) -> None:
        super().__init__(adapters)
        if importance < 0 or not (mean_below > 0 and variance_below > 0):
            needs = "needs importance >= 0, mean_below > 0 and variance_below > 0"
            raise ValueError(f"online_lora {needs}; got {importance}, {mean_below} and {variance_below}")
        if min(window, hard_examples, longest) < 1:
            given = f"got {window}, {hard_examples} and {longest}"
            raise ValueError(f"online_lora: window, hard_examples and longest must be at least 1; {given}")
        self.importance, self.mean_below, self.variance_below = importance, mean_below, variance_below
        self._batch: dict[str, Tensor] = {}
        self._losses: list[float] = []
        self._steps_of: Optimizer | None = None

    @classmethod
    def gathers(cls, **hyper: Any) -> str:
        return "keeps the hardest of all examples, and consolidates where their loss says so"

    @property
    def stream(self) -> Stream:
        return cast(Stream, self.common)

    @classmethod
    def shared(
        cls,
        shapes: Mapping[str, tuple[int, int]],
        like: Tensor,
        *,
        seed: int,
        **hyper: Any,
    ) -> nn.Module:
        return Stream(hyper["window"], hyper["hard_examples"], hyper["longest"], like)

    def _note(self, model: nn.Module, _: Any, kwargs: dict[str, Any]) -> None:
        if model.training and not self._batch and is_of_tokens(kwargs):
            self._batch = {name: kwargs[name] for name in ("input_ids", "attention_mask", "labels")}

    def optimizer(self, groups: Groups, make: MakeOptimizer) -> Optimizer:
        self._steps_of = make(groups)
        return self._steps_of

    def objective(self, once: Callable[[], Pass], progress: Progress) -> tuple[Tensor, Any, Tensor | float]:
        self._batch = {}
        handle = self.model.register_forward_pre_hook(self._note, with_kwargs=True)
        try:
            loss, outputs = once()
        finally:
            handle.remove()
        self._losses.append(loss.item())
        if not self._batch:
            return loss, outputs, 0.0
        batch, hard = self._batch, self.stream.hard
        old = hard.inputs()
        again_M = row_losses(self.model(**old).logits, old["labels"]) if old else None
        loss_N = row_losses(outputs["logits"].detach(), batch["labels"])
        hard.update(batch, loss_N, None if again_M is None else again_M.detach())
        return loss, outputs, 0.0 if again_M is None else again_M.sum() / len(loss_N)

    def regularizer(self) -> Tensor | float:
        if not (self.importance and int(self.stream.losses.state[4])):
            return 0.0
        each = [
            (omega * p.square()).sum()
            for a in self.adapters.values()
            for omega, p in ((a.OmegaA_RI, a.A_RI), (a.OmegaB_OR, a.B_OR))
        ]
        return self.importance / 2 * torch.stack(each).sum()

    def on_step_end(self, progress: Progress) -> None:
        losses, self._losses = self._losses, []
        bounds = {"mean_below": self.mean_below, "variance_below": self.variance_below}
        if losses and self.stream.losses.step(sum(losses) / len(losses), **bounds):
            self.consolidate()

    def consolidate(self) -> None:
        """Weigh the factors by the hard examples, add each product to what is frozen, and begin anew."""
        count = int(self.stream.losses.state[4])
        self._weigh(max(count, 1))
        for name, adapter in self.adapters.items():
            adapter.consolidate(generator("online_lora", self.seed, name, count))
            for factor in (adapter.A_RI, adapter.B_OR):
                if self._steps_of is not None:
                    self._steps_of.state.pop(factor, None)

    def _weigh(self, count: int) -> None:
        """Ω ← (1/n) Σ_M (∂/∂p)² + (1 - 1/n) Ω at the n-th plateau."""
        inputs = self.stream.hard.inputs()
        adapters = [*self.adapters.values()]
        factors = [p for a in adapters for p in (a.A_RI, a.B_OR)]
        omegas = [omega for a in adapters for omega in (a.OmegaA_RI, a.OmegaB_OR)]
        sums = [torch.zeros_like(p) for p in factors]
        with in_mode(self.model, training=False), torch.enable_grad():
            for row in range(len(inputs.get("labels", ()))):
                one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
                labels = one.pop("labels")
                logits = self.model(**one).logits
                best = torch.where(labels != IGNORED, logits.argmax(-1).roll(1, 1), labels)
                grads = torch.autograd.grad(row_losses(logits, best).sum(), factors)
                sums = [own + grad.square() for own, grad in zip(sums, grads, strict=True)]
        for omega, own in zip(omegas, sums, strict=True):
            omega.mul_(1 - 1 / count).add_(own.to(omega), alpha=1 / count)
