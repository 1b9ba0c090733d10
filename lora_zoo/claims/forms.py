"""Forms of claims: each makes, of a few words, the hypotheses that the runs of one model and task decide.

    difference(["pissa", "lora"], above(0))                PiSSA scores higher than LoRA
    difference([{"rank": 4}, {"rank": "max"}], above(-1))  rank 4 is less than a point below the greatest rank
    difference(["dora", "lora"], between(-1, 1))           the two are within a point of each other
    excess([["rslora", "lora"], ["dora", "lora"]], above(0))   the first difference less the second
    ratio(["lora", "full"], below(1), seconds)             a ratio of two cells lies in a range
    value("dora", below(0), correlation_of_changes)        a quantity of one cell lies in a range
    slope("lora", below(0), "rank", norm)                  the exponent of a power law lies in a range
    correlation("lora", above(0), "rank", number, growth)  two quantities correlate over an axis
    optimum("task_lr", between(-8, -6))                    log2 of the best value of an axis lies in a range
    each("rank", lambda rank: …, list, 2)                  a form for each value of an axis that was run

A cell is `{"variant": "lora", "rank": 8}`; a word alone is a variant; "max" and "min" stand for the greatest
and the least value of the axis that was run. Whatever fits no form is a function of the same type.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lora_zoo.claims.cells import Cell, axes_of, checked, label, pair, word, words
from lora_zoo.claims.evidence import LR, Missing, Runs, Tune, aligned
from lora_zoo.claims.hypotheses import FISHER_Z, LOGARITHM, Hypothesis, OnGrid, Range, Sampled
from lora_zoo.claims.measures import SCORE, Quantity, best_by_seed, exponents

Form = Callable[[Runs], Iterator[Hypothesis]]

RATE: Tune = (LR,)


def difference(cells: Sequence[Cell], claimed: Range, of: Quantity = SCORE, tune: Tune = None) -> Form:
    """The first cell less each of the others, paired by seed, lies in the range."""
    one, *others = map(checked, pair(cells, most=math.inf))

    def form(runs: Runs) -> Iterator[Hypothesis]:
        for other in others:
            a, b = axes_of(one, runs), axes_of(other, runs)
            values = runs.difference(a, b, of.of, tune)
            yield Sampled(label(of.name, a, "-", b), values, _in_unit(claimed, of, runs), _unit(of, runs))

    return form


def excess(pairs: Sequence[Sequence[Cell]], claimed: Range, of: Quantity = SCORE) -> Form:
    """The difference between two cells less that between two others lies in the range."""
    one, other = (list(map(checked, pair(cells))) for cells in pair(pairs))

    def form(runs: Runs) -> Iterator[Hypothesis]:
        pairs = [(axes_of(a, runs), axes_of(b, runs)) for a, b in (one, other)]
        table = aligned(dict(enumerate(runs.difference(a, b, of.of) for a, b in pairs)))
        both = " - ".join(f"({label(of.name, a, '-', b)})" for a, b in pairs)
        yield Sampled(both, table[0] - table[1], _in_unit(claimed, of, runs), _unit(of, runs))

    return form


def ratio(cells: Sequence[Cell], claimed: Range, of: Quantity) -> Form:
    """`of` of one cell over that of another, paired by seed, lies in the range."""
    one, other = map(checked, pair(cells))

    def form(runs: Runs) -> Iterator[Hypothesis]:
        a, b = axes_of(one, runs), axes_of(other, runs)
        yield of.hypothesis(label(of.name, a, "/", b), runs.ratio(a, b, of.of), claimed, "times", LOGARITHM)

    return form


def value(cell: Cell, claimed: Range, of: Quantity) -> Form:
    """`of` of one cell lies in the range."""
    checked(cell)

    def form(runs: Runs) -> Iterator[Hypothesis]:
        where = axes_of(cell, runs)
        values = runs.by_seed(where, of.of)
        yield of.hypothesis(f"{words(where)}: {of.name}", values, claimed, of.unit, of.scale)

    return form


def slope(cell: Cell, claimed: Range, axis: str, of: Quantity) -> Form:
    """`of` is a power of the axis, with an exponent in the range."""
    checked(cell)

    def form(runs: Runs) -> Iterator[Hypothesis]:
        where = axes_of(cell, runs)
        table = aligned({level: runs.by_seed(where | {axis: level}, of.of) for level in runs.levels(axis)})
        unit = f"exponent of {axis}"
        yield Sampled(f"{words(where)}: {unit} in the {of.name}", exponents(table), claimed, unit)

    return form


def correlation(cell: Cell, claimed: Range, axis: str, of: Quantity, to: Quantity) -> Form:
    """Pearson's correlation of two quantities over the values of the axis, by seed, lies in the range."""
    checked(cell)

    def form(runs: Runs) -> Iterator[Hypothesis]:
        where, levels = axes_of(cell, runs), runs.levels(axis)
        one, other = (
            aligned({level: runs.by_seed(where | {axis: level}, quantity.of) for level in levels})
            for quantity in (of, to)
        )
        if len(levels) < 3:
            raise Missing(f"{len(levels)} {axis}s are too few for a correlation")
        found = one.corrwith(other, axis=1).dropna()
        if found.empty:
            raise Missing(f"the values of {axis} do not differ in {of.name} and {to.name}")
        yield Sampled(f"{of.name} and {to.name}", found, claimed, "correlation", FISHER_Z)

    return form


def optimum(axis: str, claimed: Range, needs: Sequence[Any] = ()) -> Form:
    """log2 of the value of the axis with the best score lies in the range; `needs` must have been run."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        for level in needs:
            runs.by_seed({axis: level})
        levels = runs.levels(axis)
        best = best_by_seed({level: runs.by_seed({axis: level}) for level in levels})
        name, step = word(axis), float(np.diff(np.log2(levels)).max())
        yield OnGrid(f"log2 of the best {name}", best, claimed, f"log2 {name}", step)

    return form


FORMS: Mapping[str, Callable[..., Form]] = {
    form.__name__: form for form in (difference, excess, ratio, value, slope, correlation, optimum)
}
"""The forms that a row of the catalogue may name."""


def each(axis: str, make: Callable[[Any], Form], among: Callable[[list[Any]], list[Any]], least: int) -> Form:
    """A form for each of the values of the axis that were run, as `among` has them. Missing below `least`."""

    def form(runs: Runs) -> Iterator[Hypothesis]:
        chosen = among(runs.levels(axis))
        if len(chosen) < least:
            raise Missing(f"fewer than {least} {axis}s to compare were run")
        for level in chosen:
            yield from make(level)(runs)

    return form


def _in_unit(claimed: Range, of: Quantity, runs: Runs) -> Range:
    point = 1 if of.unit else runs.point
    return Range(claimed.low * point, claimed.high * point)


def _unit(of: Quantity, runs: Runs) -> str:
    return of.unit or runs.metric
