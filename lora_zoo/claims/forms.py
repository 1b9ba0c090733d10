"""Forms of claims: each makes, of a few words, the hypotheses that the runs of one model and task decide.

    better("pissa", "lora")                             PiSSA scores higher than LoRA
    lower("lora", "full", of=FORGOTTEN)                 a quantity of LoRA is below that of full fine-tuning
    as_good({"rank": 4}, {"rank": max})                 rank 4 is less than a point below the greatest rank
    alike("dora", "lora")                               the two are within a point of each other
    ratio("lora", "full", below(1), STEP_SECONDS)       a ratio of two cells lies in a range
    lies("dora", below(0), CORRELATION)                 a quantity of one cell lies in a range
    more(("rslora", "lora"), ("dora", "lora"))          the first difference is greater than the second
    slope("lora", "rank", below(0), GRADIENT_NORM)      the exponent of a power law lies in a range
    optimum("task_lr", between(-8, -6))                  log2 of the best value of an axis lies in a range
    each("rank", lambda rank: …)                        a form for each value of an axis that was run

A cell is `{"variant": "lora", "rank": 8}`; a word alone is a variant; `max` and `min` stand for the greatest
and the least value of the axis that was run. Whatever fits no form is a function of the same type.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from lora_zoo.claims.evidence import LR, Axes, Runs, Tune, aligned
from lora_zoo.claims.hypotheses import LOGARITHM, Hypothesis, OnGrid, Range, Sampled, above, below, between
from lora_zoo.claims.measures import SCORE, Quantity, best_by_seed, exponents

Form = Callable[[Runs], Iterator[Hypothesis]]
Cell = str | Axes

RATE: Tune = (LR,)


def better(one: Cell, *others: Cell, of: Quantity = SCORE, by: float = 0, tune: Tune = None) -> Form:
    """`of` is greater (by more than `by`) in `one` than in each of `others`."""
    return difference(one, others, above(by), of, tune)


def lower(one: Cell, *others: Cell, of: Quantity, tune: Tune = None) -> Form:
    """`of` is less in `one` than in each of `others`."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        for other in others:
            yield from difference(other, [one], above(0), of, tune)(runs)

    return form


def as_good(one: Cell, other: Cell, *, within: float = 1, tune: Tune = None) -> Form:
    """`one` scores less than `within` points below `other`."""
    return difference(one, [other], above(-within), SCORE, tune)


def hardly_better(one: Cell, other: Cell, *, within: float = 1) -> Form:
    """`one` scores less than `within` points above `other`."""
    return difference(one, [other], below(within))


def alike(one: Cell, other: Cell, *, within: float = 1, tune: Tune = None) -> Form:
    """`one` and `other` score less than `within` points apart."""
    return difference(one, [other], between(-within, within), SCORE, tune)


def difference(
    one: Cell,
    others: Iterable[Cell],
    claimed: Range,
    of: Quantity = SCORE,
    tune: Tune = None,
) -> Form:
    """`one` less each of `others`, paired by seed, lies in the range."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        for other in others:
            a, b = _axes(one, runs), _axes(other, runs)
            values = runs.difference(a, b, of.of, tune)
            yield Sampled(_label(of, a, "-", b), values, _in_unit(claimed, of, runs), _unit(of, runs))

    return form


def more(one: tuple[Cell, Cell], other: tuple[Cell, Cell], of: Quantity = SCORE) -> Form:
    """The difference between two cells is greater than that between two others."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        pairs = [(_axes(a, runs), _axes(b, runs)) for a, b in (one, other)]
        table = aligned(dict(enumerate(runs.difference(a, b, of.of) for a, b in pairs)))
        label = " - ".join(f"({_label(of, a, '-', b)})" for a, b in pairs)
        yield Sampled(label, table[0] - table[1], above(0), _unit(of, runs))

    return form


def ratio(one: Cell, other: Cell, claimed: Range, of: Quantity) -> Form:
    """`of` of `one` over that of `other`, paired by seed, lies in the range."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        a, b = _axes(one, runs), _axes(other, runs)
        yield of.hypothesis(_label(of, a, "/", b), runs.ratio(a, b, of.of), claimed, "times", LOGARITHM)

    return form


def lies(cell: Cell, claimed: Range, of: Quantity) -> Form:
    """`of` of one cell lies in the range."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        where = _axes(cell, runs)
        label = f"{_words(where)}: {of.name}"
        yield of.hypothesis(label, runs.by_seed(where, of.of), claimed, of.unit, of.scale)

    return form


def slope(cell: Cell, axis: str, claimed: Range, of: Quantity) -> Form:
    """`of` is a power of the axis, with an exponent in the range."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        where = _axes(cell, runs)
        table = aligned({level: runs.by_seed(where | {axis: level}, of.of) for level in runs.levels(axis)})
        unit = f"exponent of {axis}"
        yield Sampled(f"{_words(where)}: {unit} in the {of.name}", exponents(table), claimed, unit)

    return form


def optimum(axis: str, claimed: Range, among: Iterable[Any] = ()) -> Form:
    """log2 of the value of the axis with the best score lies in the range; `among` must have been run."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        for level in among:
            runs.by_seed({axis: level})
        levels = runs.levels(axis)
        best = best_by_seed({level: runs.by_seed({axis: level}) for level in levels})
        name, step = _word(axis), float(np.diff(np.log2(levels)).max())
        yield OnGrid(f"log2 of the best {name}", best, claimed, f"log2 {name}", step)

    return form


def each(axis: str, make: Callable[[Any], Form], among: Callable[[list[Any]], Iterable[Any]] = iter) -> Form:
    """A form for each of the values of the axis that were run, or for what `among` makes of them."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        for level in among(runs.levels(axis)):
            yield from make(level)(runs)

    return form


def _axes(cell: Cell, runs: Runs) -> dict[str, Any]:
    where = {"variant": cell} if isinstance(cell, str) else cell
    return {axis: value(runs.levels(axis)) if callable(value) else value for axis, value in where.items()}


def _in_unit(claimed: Range, of: Quantity, runs: Runs) -> Range:
    point = 1 if of.unit else runs.point
    return Range(claimed.low * point, claimed.high * point)


def _unit(of: Quantity, runs: Runs) -> str:
    return of.unit or runs.metric


_WORDS = {
    "variant": "{}",
    "init": "{}",
    "target_modules": "{{{}}}",
    LR: "rate {}",
    "alpha": "α={}",
    "variant.hyperparameters.loraplus_lr_ratio": "λ={}",
    "config.task.sizes.train": "{} examples",
}
"""Words for a value of an axis; others are called by the axis and the value."""


def _words(where: Axes) -> str:
    values = {
        axis: f"{value:g}" if isinstance(value, int | float) else value for axis, value in where.items()
    }
    return " ".join(_WORDS.get(axis, axis + " {}").format(value) for axis, value in values.items())


def _word(axis: str) -> str:
    return _WORDS.get(axis, axis).partition("=")[0]


def _label(of: Quantity, one: Axes, sign: str, other: Axes) -> str:
    """`q,v: gap, rank 64 - rank 4`: first what both cells share."""
    shared = {axis: value for axis, value in one.items() if other.get(axis) == value}
    a, b = (_words({x: v for x, v in cell.items() if x not in shared}) for cell in (one, other))
    name = f"{of.name}, " if of.name else ""
    return (f"{_words(shared)}: " if shared else "") + f"{name}{a} {sign} {b}"
