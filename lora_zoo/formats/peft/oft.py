"""PEFT's OFT, which takes blocks of the nearest size that divides a layer's inputs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_zoo.formats.peft.forms import HyperAndState, PeftFolder
from lora_zoo.formats.peft.plain import PlainFormat
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix

TERMS, NEUMANN = "num_cayley_neumann_terms", "use_cayley_neumann"


@dataclass(frozen=True)
class OFTFormat(PlainFormat):
    """A block size that all layers have; what the configuration says of it holds only where it divides."""

    @property
    def options(self) -> Collection[str]:
        return (*super().options, TERMS, NEUMANN, "eps")  # eps acts in the refused `coft` alone

    def config(self, injection: Injection) -> dict[str, Any]:
        terms = injection.hyper[TERMS]
        return super().config(injection) | {NEUMANN: bool(terms), TERMS: terms or 5}

    def parse(self, folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> HyperAndState:
        config = {**folder.config, "r": 0}  # the tensors tell the blocks
        hyper, state = super().parse(PeftFolder(folder.file, config, folder.modules), known)
        sizes = {known[name.rpartition(".")[0]].shape[1] // max(1, len(t)) for name, t in state.items()}
        if len(sizes) != 1:
            raise ValueError(f"its layers have blocks of {sorted(sizes)}; only one size for all is supported")
        terms = config.get(TERMS, 5) if config.get(NEUMANN, True) else 0
        return hyper | {"block_size": sizes.pop(), TERMS: terms}, state
