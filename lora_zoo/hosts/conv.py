"""Convolutions in one, two or three dimensions."""

from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.core.host import LayerHost
from lora_zoo.hosts.find import HOSTS


@HOSTS.register("convolution")
class ConvHost(LayerHost):
    """`torch.nn.Conv1d/2d/3d`: W (O, I) with I = channels of a group x kernel; grouped and strided too.

    A rank-R update has the layer's own groups: its A (R, I) serves every group, so that it merges.
    """

    peft_layer, can_have_bias = "convolution", True

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def view(self, stored: Tensor) -> Tensor:
        return stored.flatten(1)

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        kernel = W_OI.view(-1, *self.tensor().shape[1:])
        return self.layer._conv_forward(x.to(W_OI.dtype), kernel, None)  # type: ignore[operator]

    def low_rank(self, x: Tensor, B_OR: Tensor, A_RI: Tensor) -> Tensor:
        groups: int = self.layer.groups  # type: ignore[assignment]
        h = self.times(x, A_RI.repeat(groups, 1))
        pointwise = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[self._space()]
        return pointwise(h, self.rows(B_OR), groups=groups)

    def rows(self, v_O: Tensor) -> Tensor:
        return v_O[(..., *[None] * self._space())]

    def _space(self) -> int:
        return self.tensor().ndim - 2
