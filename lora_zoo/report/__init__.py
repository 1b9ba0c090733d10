"""Reports of runs, from their results alone: `write("runs")`, or `python -m lora_zoo.report runs`."""

from pathlib import Path

from lora_zoo.core.lazy import lazy

FORMATS = ("md", "tex", "csv", "html")
"""Of tables."""


def default_folder(*sources: str | Path) -> Path:
    """The folder of a report of these sources, where none is given."""
    only = Path(sources[0]) if len(sources) == 1 else Path()
    return (only if only.is_dir() else Path()) / "report"


__getattr__ = lazy(__name__, {"write": "writing", "conclude": "writing"})  # on first use: it needs pandas
__all__ = ["FORMATS", "default_folder"]
