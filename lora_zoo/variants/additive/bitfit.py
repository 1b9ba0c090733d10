"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models (ACL 2022)."""

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import register
from lora_zoo.variants.undecayed import Undecayed


@register("bitfit")
class BitFit(Adapter):
    """§3: the biases train and the matrices stay; a layer without a bias gets one, from zero.

    The paper's own set, all biases of BERT, is `target_modules=all-linear` with the norms' in full:
    `modules_to_save=[classifier,LayerNorm.bias]`.
    """

    paper = "arXiv:2106.10199"
    equation = "W' = W, b' = b + Δb"
    count = "O"
    adds_bias = True
    hooks = Undecayed

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.delta_O = nn.Parameter(context.full(context.shape[:1]))

    def bias(self, b_O: Tensor) -> Tensor:
        return b_O + self.delta_O

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y = host.base(x)
        return (y + host.rows(self.delta_O)).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The update is the same for every input: a shift of the outputs."""
        b_O = torch.zeros_like(self.delta_O)
        assert self.weight(W_OI) is W_OI
        torch.testing.assert_close(self.bias(b_O + 1) - self.bias(b_O), b_O + 1)
        torch.testing.assert_close(self.bias(b_O), self.delta_O)
