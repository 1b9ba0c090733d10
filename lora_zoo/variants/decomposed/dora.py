"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al., ICML 2024)."""

from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.low_rank import LowRank


@register("dora")
class DoRA(LowRank):
    """Eq. 5, with m and the norm per output feature (the paper's W is (in, out); its authors confirm)."""

    paper = "arXiv:2402.09353"
    equation = "W' = m (W + (α/r) B A) / ‖W + (α/r) B A‖_row"
    count = "R * (O + I) + O"
    peft = LoraFormat(magnitude="m_O")
    kernel = "dora"
    paper_alpha = "2r"  # table 8

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.m_O = nn.Parameter(self.norm(context.host.matrix()))

    def norm(self, W_OI: Tensor) -> Tensor:
        # §4.3: the norm takes no gradient. A zero row of W has no direction; its gain is 1 instead of 0 / 0.
        norm_O = (W_OI + self.update()).detach().norm(dim=1)
        return norm_O.clamp_min(torch.finfo(norm_O.dtype).tiny)

    def weight(self, W_OI: Tensor) -> Tensor:
        return (self.m_O / self.norm(W_OI))[:, None] * (W_OI + self.update())

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        W_OI = host.matrix()
        gain = host.rows(self.m_O / self.norm(W_OI))
        dropped, base = host.dropped(x, self.dropout), host.product(x)
        y = gain * host.low_rank(dropped, *self.branch())
        # The official code drops what the gain corrects and not the frozen layer's own output.
        y = y + (gain * base if dropped is x else base + (gain - 1) * host.product(dropped))
        return host.plus_bias(y.to(base.dtype))

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        norm_O = self.weight(W_OI).norm(dim=1)
        torch.testing.assert_close(norm_O, self.m_O.abs().to(norm_O.dtype))
