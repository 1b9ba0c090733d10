"""SSL and SSB: See Further for Parameter Efficient Fine-tuning by Standing on the Shoulders of
Decomposition (Si et al., 2024)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import register
from lora_zoo.variants.undecayed import Undecayed


class SideScaling(Adapter, ABC):
    """Trained gains on one side of W or both, all 1 at the start; the bias stays as it is."""

    hooks = Undecayed

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.c_I = nn.Parameter(context.full(context.shape[1:], 1.0))

    @abstractmethod
    def outputs(self) -> Tensor | None:
        """The gains of the outputs (O,), None where these have none."""

    def weight(self, W_OI: Tensor) -> Tensor:
        o_O = self.outputs()
        return W_OI * self.c_I if o_O is None else o_O[:, None] * W_OI * self.c_I

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        if not host.dense:
            return super().forward(x, host)
        y, o_O = host.product(self.c_I * x), self.outputs()
        return host.plus_bias(y if o_O is None else (o_O * y).to(y.dtype))

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The ratios W'/W are a matrix of rank 1: every two rows are scaled alike, up to one number."""
        ratio_OI = torch.where(W_OI == 0, 1, self.weight(W_OI) / W_OI)
        first_I, outer_O = ratio_OI[0], ratio_OI[:, :1] / ratio_OI[0, 0]
        torch.testing.assert_close(ratio_OI, outer_O * first_I, rtol=1e-4, atol=1e-5)


@register("ssl")
class SSL(SideScaling):
    """Gains of W's inputs, which in the paper's x W scale the left singular vectors: (IA)³'s for inputs."""

    paper = "arXiv:2407.05417"
    equation = "W' = W diag(c)"
    count = "I"

    def outputs(self) -> Tensor | None:
        return None


@register("ssb")
class SSB(SideScaling):
    """Gains of the inputs and of the outputs, which scale the singular vectors of both sides."""

    paper = "arXiv:2407.05417"
    equation = "W' = diag(o) W diag(c)"
    count = "I + O"

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.o_O = nn.Parameter(context.full(context.shape[:1], 1.0))

    def outputs(self) -> Tensor | None:
        return self.o_O
