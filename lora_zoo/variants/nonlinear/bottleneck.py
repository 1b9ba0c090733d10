"""Bottleneck adapters: in series (Houlsby et al., ICML 2019) and parallel (He et al., ICLR 2022).

Shapes: O out, I in, R the bottleneck, H what it reads (the layer's O outputs, or its I inputs).
"""

from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.variants.nonlinear.hidden_layer import Activation, HiddenLayer, Mode


@register("bottleneck")
class Bottleneck(HiddenLayer):
    """§2.1: a network of one hidden layer behind the projections that end attention and feed-forward.

    With `mode=parallel` it stands beside the layer and reads its input (arXiv:2110.04366 puts it beside a
    whole sublayer, with activation=relu, scale=4). `rank` is the bottleneck, AdapterHub's O /
    reduction_factor. D starts from Kaiming's draw, U from zero; with `std` (Houlsby's paper: 0.01, code:
    0.001) both start normal, and the model changes a little at step 0. In series it acts before the block's
    own dropout, in Houlsby's code after it.
    """

    title = "Bottleneck adapter"
    paper = "arXiv:1902.00751"
    count = "R * (O + (O if mode == 'series' else I) + 1) + O"

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 64,
        mode: Mode = "series",
        activation: Activation = "gelu",
        scale: float = 1.0,
        std: float = 0.0,
    ) -> None:
        super().__init__(context, rank=rank, mode=mode, activation=activation, scale=scale)
        if std < 0:
            raise ValueError(f"bottleneck: std must not be negative; got {std}")
        O, H = context.shape[0], self.reads(context.shape, mode)
        kaiming = kaiming_bound(H, 3**-0.5)
        D_RH = context.normal("D", (rank, H), std) if std else context.uniform("D", (rank, H), kaiming)
        self.D_RH = nn.Parameter(D_RH)
        self.U_OR = nn.Parameter(context.normal("U", (rank, O), std).T.contiguous())

    def down(self) -> Tensor:
        return self.D_RH

    def up(self) -> Tensor:
        return self.U_OR
