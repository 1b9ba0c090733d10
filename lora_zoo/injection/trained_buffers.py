"""Buffers that go with fully trained parameters (BatchNorm's running statistics): an adapter has its own."""

from collections.abc import Collection, Iterator

from torch import Tensor, nn

from lora_zoo.injection.base_model import base_buffers, base_parameters
from lora_zoo.injection.wrappers import put


def names_of_buffers(model: nn.Module, fully_trained: Collection[str]) -> list[str]:
    """The buffers of every module of which all parameters are `fully_trained`, inner modules included."""
    trained = set(fully_trained)
    frozen = base_parameters(model).keys() - trained if trained else set()

    def under(module: str, names: Collection[str]) -> bool:
        return any(not module or name.startswith(f"{module}.") for name in names)

    return [
        name
        for name in (base_buffers(model) if trained else ())
        if any(under(module, trained) and not under(module, frozen) for module in _around(name))
    ]


def _around(name: str) -> Iterator[str]:
    """The modules around a buffer, the whole model first."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts)))


class TrainedBuffers:
    """An adapter's own copies of buffers, which take turns with the base's in the model."""

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        every = base_buffers(model)
        self.model, self.shown = model, False
        self._aside = {name: every[name].clone() for name in names}

    def show(self, shown: bool) -> None:
        """Put the own copies into the model, or the base's back."""
        if shown != self.shown:
            self._aside = {name: put(self.model, name, tensor) for name, tensor in self._aside.items()}
            self.shown = shown

    def own(self) -> dict[str, Tensor]:
        """The adapter's own tensors, which training changes."""
        every = base_buffers(self.model) if self.shown and self._aside else {}
        return {name: every.get(name, tensor) for name, tensor in self._aside.items()}
