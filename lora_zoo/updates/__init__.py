"""What an adapter learned: the ΔW = W' - W of each matrix, its spectrum, and what it has to do with W.

from lora_zoo import deltas
one = deltas.read("runs/lora-r8-s0")          # a run, an adapter of ours or PEFT's, loralib's file
deltas.spectra(one)                           # a DataFrame, a row a matrix
deltas.comparison(one, deltas.read("runs/lora-r8-s1"), of="A")
deltas.amplification(deltas.read("runs/lora-r8-s0", base=True))

The names below are imported on first use.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "read": "reading",
    "read_each": "reading",
    "checkpoints": "reading",
    "Deltas": "reading",
    "NeedsBase": "reading",
    "of_runs": "recording",
    "runs": "recording",
    "amplification": "tables",
    "changes": "tables",
    "comparison": "tables",
    "evolution": "tables",
    "grid": "tables",
    "intruders": "tables",
    "random_grid": "tables",
    "spectra": "tables",
    "touched": "tables",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_zoo.updates' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
