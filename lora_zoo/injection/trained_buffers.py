"""Buffers that training changes, BatchNorm's running statistics above all.

An adapter has its own copies of those that go with fully trained parameters, and lacks the others.
"""

import warnings
from collections.abc import Collection, Iterator

import torch
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


class FrozenStatistics:
    """The running statistics of a base's frozen modules as an adapter met them."""

    def __init__(self, model: nn.Module, own: Collection[str]) -> None:
        self.model = model
        self._met = {
            name: tensor.clone()
            for name, tensor in base_buffers(model).items()
            if name.endswith(("running_mean", "running_var")) and name not in own
        }

    def warn(self) -> None:
        """Warn where they have changed: what is saved of the adapter works with the former ones."""
        now = base_buffers(self.model)
        moved = [name for name, met in self._met.items() if not torch.equal(now[name], met.to(now[name]))]
        if moved:
            module = moved[0].rpartition(".")[0]
            warnings.warn(
                f"{moved[0]} has changed since the adapter entered, and is not saved with it: "
                f"modules_to_save=[{module}] trains and keeps it, {module}.eval() leaves it as it is",
                stacklevel=3,
            )
