"""PEFT's OFT, which takes blocks of the nearest size that divides a layer's inputs, and its BOFT."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_zoo.formats.peft.forms import HyperAndState, PeftFolder, Unfit
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


@dataclass(frozen=True)
class BOFTFormat(PlainFormat):
    """BOFT of one factor: of more PEFT makes one wherever its CUDA extension is not, whatever a file says."""

    def config(self, injection: Injection) -> dict[str, Any]:
        config = super().config(injection)
        if config["boft_n_butterfly_factor"] > 1:
            raise Unfit("PEFT's BOFT has several factors with a CUDA extension alone")
        return config

    def parse(self, folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> HyperAndState:
        hyper, state = super().parse(folder, known)
        factors = {len(tensor) for name, tensor in state.items() if tensor.ndim == 4}
        return hyper | {"n_butterfly_factor": max(factors, default=1)}, state
