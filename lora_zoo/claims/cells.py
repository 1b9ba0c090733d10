"""Cells of claims: `{"variant": "lora", "rank": 8}`, or a word alone, which is a variant; and their labels.

"max" and "min" stand for the greatest and the least value of the axis that was run, null for runs without
one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_zoo.claims.evidence import LR, Axes, Missing, Runs

Cell = str | Axes
EXTREMES: Mapping[str, Callable[..., Any]] = {"min": min, "max": max}


def axes_of(cell: Cell, runs: Runs) -> dict[str, Any]:
    where = {"variant": cell} if isinstance(cell, str) else cell
    return {axis: _level(runs, axis, wanted) for axis, wanted in where.items()}


def _level(runs: Runs, axis: str, wanted: Any) -> Any:
    def number(level: Any) -> float:
        try:
            return float(level)
        except ValueError:
            raise Missing(f"{axis}={level} is no number") from None

    return EXTREMES[wanted](runs.levels(axis), key=number) if wanted in EXTREMES else wanted


def checked(cell: Any) -> Cell:
    """The cell. ValueError for what is none."""
    values = cell.values() if isinstance(cell, Mapping) else [cell]
    if isinstance(cell, Mapping | str) and all(isinstance(v, str | int | float | None) for v in values):
        return cell
    raise ValueError(f"a cell is a variant or {{axis: value}}, not {cell!r}")


def pair(given: Any, most: float = 2) -> Sequence[Any]:
    """Two cells (or pairs of cells), or up to `most`. ValueError for anything else."""
    if isinstance(given, list | tuple) and 2 <= len(given) <= most:
        return given
    raise ValueError(f"two cells, or pairs of cells, are needed, not {given!r}")


_WORDS = {
    "variant": "{}",
    "init": "{}",
    "target_modules": "{{{}}}",
    LR: "rate {}",
    "alpha": "α={}",
    "variant.hyperparameters.loraplus_lr_ratio": "λ={}",
    "config.task.sizes.train": "{} examples",
    "config.program.adapter": "adapter {}",
    "config.program.replay": "replay {}",
}
"""Words for a value of an axis; others are called by the axis and the value."""


def words(where: Axes) -> str:
    values = {axis: "none" if value is None else value for axis, value in where.items()}
    values |= {axis: f"{value:g}" for axis, value in where.items() if isinstance(value, int | float)}
    return " ".join(_WORDS.get(axis, axis + " {}").format(value) for axis, value in values.items())


def word(axis: str) -> str:
    return _WORDS.get(axis, axis).partition("=")[0]


def label(name: str, one: Axes, sign: str, other: Axes) -> str:
    """`q,v: gap, rank 64 - rank 4`: first what both cells share."""
    shared = {axis: value for axis, value in one.items() if other.get(axis) == value}
    a, b = (words({x: v for x, v in cell.items() if x not in shared}) for cell in (one, other))
    return (f"{words(shared)}: " if shared else "") + (f"{name}, " if name else "") + f"{a} {sign} {b}"
