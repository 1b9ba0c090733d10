"""Matrices in parameters that their module reads by itself."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_zoo.core.host import EVERY, Host, Rows
from lora_zoo.hosts.find import HOSTS


@HOSTS.register("parameter")
class ParameterHost(Host):
    """A matrix in a parameter that its module reads by itself: nn.MultiheadAttention, stacked experts.

    The module runs as it is, on the effective tensor; W is a matrix (O, I), or one of a stack of them.
    """

    linear = True
    sees_input = False

    def __init__(
        self,
        layer: nn.Module,
        parameter: str,
        part: Rows = EVERY,
        *,
        expert: int | None = None,
        transposed: bool = False,
    ) -> None:
        super().__init__(layer, part)
        self.parameter, self.expert, self.transposed = parameter, expert, transposed

    def tensor(self) -> Tensor:
        if parametrize.is_parametrized(self.layer, self.parameter):
            return self.layer.parametrizations[self.parameter].original  # type: ignore[index, union-attr]
        return getattr(self.layer, self.parameter)

    @property
    def sealed_bias(self) -> str:
        """The bias of torch's attention, or that of experts (GPT-OSS): the module reads it by itself."""
        if isinstance(self.layer, nn.MultiheadAttention):
            name = "in_proj_bias"
        else:
            name = "bias" if self.parameter == "weight" else f"{self.parameter}_bias"
        return name if getattr(self.layer, name, None) is not None else ""

    def view(self, stored: Tensor) -> Tensor:
        W_OI = stored if self.expert is None else stored[self.expert]
        return W_OI.T if self.transposed else W_OI
