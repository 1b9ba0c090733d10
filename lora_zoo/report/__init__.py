"""Reports of runs, from their results alone: `write("runs")`, or `python -m lora_zoo.report runs`."""

from importlib import import_module
from pathlib import Path
from typing import Any

FORMATS = ("md", "tex", "csv", "html")
"""Of tables."""


def default_folder(*sources: str | Path) -> Path:
    """The folder of a report of these sources, where none is given."""
    only = Path(sources[0]) if len(sources) == 1 else Path()
    return (only if only.is_dir() else Path()) / "report"


def __getattr__(name: str) -> Any:
    if name not in ("write", "conclude"):
        raise AttributeError(f"module 'lora_zoo.report' has no attribute {name!r}")
    return getattr(import_module("lora_zoo.report.writing"), name)  # on first use: it needs pandas


__all__ = ["FORMATS", "default_folder"]
