"""Our dropout lent to another's layer."""

from torch import Tensor, nn

from lora_zoo.core.dropout import Dropout


class Lent(nn.Module):
    """Repeats the mask of a dropout's last call, which does not count as a call."""

    def __init__(self, dropout: Dropout) -> None:
        super().__init__()
        self.__dict__["dropout"] = dropout  # its owner's submodule

    def forward(self, x: Tensor) -> Tensor:
        dropout = self.__dict__["dropout"]
        if dropout.training and dropout.p:
            dropout.calls.next -= 1
        return dropout(x)
