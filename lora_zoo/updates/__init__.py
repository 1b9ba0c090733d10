"""Weight updates ΔW = W' - W of an adapter: their spectra, directions, and relation to W.

from lora_zoo import updates
one = updates.read("runs/lora-r8-s0")         # a run, an adapter of ours or PEFT's, loralib's file
updates.spectra(one)                          # a DataFrame, a row a matrix
updates.comparison(one, updates.read("runs/lora-r8-s1"), factor="A")
updates.amplification(updates.read("runs/lora-r8-s0", base=True))

The names below are imported on first use.
"""

from lora_zoo.core.lazy import lazy

_MODULES = {
    "reading": ("read", "read_each", "checkpoints", "AdapterUpdates"),
    "without_base": ("NeedsBase",),
    "recording": ("of_runs", "runs"),
    "tables": ("amplification", "changes", "evolution", "intruders", "overlap", "spectra"),
    "comparisons": ("comparison", "grid", "random_grid"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOMES)  # noqa: PLE0605

__getattr__ = lazy(__name__, _HOMES, {"Deltas": "AdapterUpdates", "touched": "overlap"})
