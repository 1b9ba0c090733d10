"""An adapter that was read from disk for one model."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lora_zoo.injection.plan import InjectionPlan


class SavedAdapter(NamedTuple):
    """A plan for the model and the adapter's tensors by our names."""

    plan: InjectionPlan
    state: dict[str, Tensor]
    source: Path
    name: str = "default"
    seed: int = 0
    init_from_base: bool = False
    """True if residual factors are computed from the base, and not in `state`."""
