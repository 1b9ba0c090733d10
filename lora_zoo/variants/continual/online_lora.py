"""Online-LoRA: Task-Free Online Continual Learning via Low Rank Adaptation (Wei et al., WACV 2025).

Shapes: O out, I in, R rank.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.init import Init
from lora_zoo.core.seeding import kaiming_bound, uniform
from lora_zoo.core.variants import register
from lora_zoo.variants.continual.task_free import TaskFree
from lora_zoo.variants.low_rank import LowRank


@register("online_lora")
class OnlineLoRA(LowRank):
    """§3: one LoRA after another in one adapter, each merged where the loss says that it has learned.

    The product is merged and only B begins at zero, so that the function stays as it is and the new factors
    learn; the official code adds the As and the Bs, and sets both to zero.
    """

    dW_OI: Tensor
    title = "Online-LoRA"
    paper = "arXiv:2411.05663"
    by_row = "keeps rows of hard examples"
    equation = "W' = W + Σ_{j<t} s B_j A_j + s B_t A_t; loss + that of hard examples + (λ/2) Σ Ω p²"
    count = "R * (O + I)"
    hooks = TaskFree
    defaults = {"rank": 4}  # noqa: RUF012 - a fact, which nobody changes

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.register_buffer("dW_OI", context.full(context.shape))
        self.register_buffer("OmegaA_RI", torch.zeros_like(self.A_RI))
        self.register_buffer("OmegaB_OR", torch.zeros_like(self.B_OR))

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.zero == "B"

    def weight(self, W_OI: Tensor) -> Tensor:
        return W_OI + self.dW_OI + self.update()

    @torch.no_grad()
    def consolidate(self, source: torch.Generator) -> None:
        """Add s B A to what is frozen, draw A anew and set B to zero, in place."""
        self.dW_OI.add_(self.update())
        R, I = self.A_RI.shape
        self.A_RI.copy_(uniform(R, I, kaiming_bound(I, 1 / math.sqrt(3)), source))
        self.B_OR.zero_()

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The weight keeps what is consolidated, and a new B = 0 adds nothing."""
        before = self.weight(W_OI)
        kept = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        self.consolidate(torch.Generator().manual_seed(0))
        torch.testing.assert_close(self.weight(W_OI), before)
        assert not self.B_OR.any()
        self.load_state_dict(kept)
