"""AutoLoRA: Automatically Tuning Matrix Ranks in Low-Rank Adaptation Based on Meta Learning (Zhang et al.,
NAACL 2024): the search, of which the program `autolora` makes ranks.
"""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.hooks import Groups, split
from lora_zoo.core.variants import register
from lora_zoo.variants.adaptive.gated import Gated
from lora_zoo.variants.adaptive.two_levels import TwoLevels
from lora_zoo.variants.low_rank import Additive


class Selection(TwoLevels):
    """§3.2: A and B learn on one part of the training data, the selection variables on the other.

    These do not decay, and Adam's means of them are those of the official code.
    """

    who, upper = "autolora_search", "g_R"

    def param_groups(self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> Groups:
        own = {"weight_decay": 0.0, "betas": (0.5, 0.999)}
        return split(named, f".{self.upper}", own, lr=lr, weight_decay=weight_decay)


@register("autolora_search")
class AutoLoRASearch(Gated, Additive):
    """Eq. 3-4: LoRA as a weighted sum of its rank-1 products, with weights that add up to 1 in each matrix.

    The selection variables begin at 1, alike. `alpha` is the official script's 16 at rank 8.
    """

    title = "AutoLoRA search"
    paper = "arXiv:2403.09113"
    equation = "W' = W + (α/r) B diag(softmax(g)) A, g learned on data of its own"
    count = "R * (O + I + 1)"
    defaults: ClassVar[Mapping[str, Any]] = {"outer_share": 0.3}
    paper_alpha = "2r"
    hooks = Selection

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.g_R = nn.Parameter(context.full((self.rank,), 1.0))

    def components(self) -> int:
        """None: without one of them the weights of the others would be greater."""
        return 0

    def gates(self) -> Tensor:
        """The weights of the components (R), which add up to 1."""
        return self.g_R.softmax(0)

    def selected(self) -> Tensor:
        """§3.3: the components whose weight is 1/r or more (R, bool); never none, as the greatest is."""
        return self.gates() * self.rank >= 1 - 1e-6  # all of equal ones, however they are rounded

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """With equal selection variables it is LoRA at 1/r of its scale, and each component is selected."""
        super().law(W_OI)
        even = copy.deepcopy(self)
        even.g_R.fill_(self.g_R[0])
        torch.testing.assert_close(even.weight(W_OI), W_OI + self.scale / self.rank * self.B_OR @ self.A_RI)
        assert bool(even.selected().all()) and bool(self.selected().any())
