"""Claims as rows of data: the YAML files of the catalogue, checked and made claims of.

    quantities:                   # of this file's own, beside the registered ones (measures.py, catalogue/)
      parameters: {name: parameters, unit: parameters, column: trainable, counted: true}
    paper: '2310.11454'           # what stands here holds for every claim below, up to the next ---
    experiment: bakeoff_rank      # or sweep: the arguments of a command of its own
    claims:
      - id: vera/fewer-parameters
        where: section 4.1, table 2
        says: With less than 0.25 of LoRA's parameters VeRA is less than 2 points below.
        test:                     # a form of forms.py with a range, or several, each of which must hold
          - {ratio: [vera, lora], below: 0.25, of: parameters}
          - {difference: [vera, lora], above: -2}

`each: rank` repeats a test for every rank that was run, put where its cells say `each` (and the next one
where they say `next`); `among: rank <= 16` leaves some out. In place of `test`, a claim that needs no runs
has a `count` (counts.py), the thing that it `waits_for`, or what is `known` of it.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lora_zoo.claims.counts import PrintedCount
from lora_zoo.claims.evidence import Missing
from lora_zoo.claims.forms import FORMS, Form, each
from lora_zoo.claims.hypotheses import Range, above, below, between
from lora_zoo.claims.measures import QUANTITIES, Quantity, quantity
from lora_zoo.claims.registry import Claim, Computed, Measured, NotBuilt, Untestable
from lora_zoo.core.errors import in_one_line, unknown

RANGES: Mapping[str, Callable[..., Range]] = {"above": above, "below": below, "between": between}
REPEATED, PLACES = ("each", "among"), ("each", "next")
TYPES: Mapping[Any, tuple[Any, str]] = {
    str: (str, "a text (perhaps in quotes)"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "true or false"),
    Sequence[str]: (list, "a list"),
}
Known = Mapping[str, Quantity]


def read(path: Path) -> list[Claim]:
    """The claims of a file. ValueError names the file, the claim and the key that is wrong."""
    claims: list[Claim] = []
    known: dict[str, Quantity] = {}
    with _within(str(path)):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            shared = dict(_mapping(document))
            rows = shared.pop("claims", None)
            for name, row in _mapping(shared.pop("quantities", {})).items():
                with _within(name):
                    known[name] = _called(quantity, row)
            for row in _list(rows):
                with _within(str(_mapping(row).get("id", "a claim without an id"))):
                    claims.append(_claim(shared | row, known))
    return claims


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Put the place before the message of a ValueError."""
    try:
        yield
    except (ValueError, yaml.YAMLError) as wrong:
        raise ValueError(f"{place}: {in_one_line(wrong)}") from wrong


def _claim(row: Mapping[str, Any], known: Known) -> Claim:
    kinds = {"test": partial(_measured, known), "count": _counted, "waits_for": _waiting, "known": _on_record}
    return _called(kinds[_one_of(kinds, row)], row)


def _measured(
    known: Known,
    *,
    id: str,
    paper: str,
    where: str,
    says: str,
    test: Any,
    experiment: str = "",
    sweep: str = "",
    against: Sequence[str] = (),
) -> Claim:
    with _within("test"):
        forms = [_form(_mapping(one), known) for one in (test if isinstance(test, list) else [test])]
    return Measured(id, paper, where, against, says, forms, experiment, sweep)


def _counted(*, id: str, paper: str, where: str, says: str, count: Any, against: Sequence[str] = ()) -> Claim:
    with _within("count"):
        compute = _called(PrintedCount, _mapping(count)).verdict
    return Computed(id, paper, where, against, says, compute=compute)


def _waiting(*, id: str, paper: str, says: str, waits_for: str, where: str = "") -> Claim:
    return NotBuilt(id, paper, where, statement=says, waits_for=waits_for)


def _on_record(*, id: str, paper: str, where: str, says: str, known: str) -> Claim:
    return Untestable(id, paper, where, statement=says, known=known)


def _form(row: Mapping[str, Any], known: Known) -> Form:
    """A form of its keys; with `each`, one for every value of that axis."""
    name, ranged = _one_of(FORMS, row), _one_of(RANGES, row)
    cells, claimed, axis = row[name], _range(ranged, row[ranged]), row.get("each")
    rest = {key: value for key, value in row.items() if key not in (name, ranged, *REPEATED)}
    rest |= {key: _quantity(rest[key], known) for key in ("of", "to") if key in rest}

    def make(cells: Any) -> Form:
        form: Form = _called(partial(FORMS[name], cells, claimed), rest, beside=(*RANGES, *REPEATED))
        return form

    form = make(cells)
    places = [place for place in PLACES if _put(cells, {place: None}) != cells]
    if axis is None and not places and "among" not in row:
        return form
    if not isinstance(axis, str) or "each" not in places:
        raise ValueError("`each: AXIS` and cells that say `each` go together")
    among = _among(axis, row.get("among"), in_pairs="next" in places)
    return each(axis, lambda levels: make(_put(cells, dict(zip(PLACES, levels, strict=False)))), among)


def _put(cells: Any, levels: Mapping[str, Any]) -> Any:
    """The cells with a level in the place of each word."""
    if isinstance(cells, list):
        return [_put(cell, levels) for cell in cells]
    if isinstance(cells, dict):
        return {axis: _put(wanted, levels) for axis, wanted in cells.items()}
    return levels.get(cells, cells)


def _among(
    axis: str, condition: str | None, *, in_pairs: bool
) -> Callable[[list[Any]], list[tuple[Any, ...]]]:
    """The values of an axis for which the condition is true, each alone, or with the next."""

    def chosen(levels: list[Any]) -> list[tuple[Any, ...]]:
        try:
            found = pd.DataFrame({axis: levels}).query(condition)[axis].tolist() if condition else levels
        except (SyntaxError, NameError, AttributeError, TypeError, ValueError) as wrong:
            raise Missing(f"among {condition!r}: {in_one_line(wrong)}") from wrong
        return list(pairwise(found)) if in_pairs else [(level,) for level in found]

    try:
        chosen([1.0, 2.0])
    except Missing as wrong:
        raise ValueError(wrong) from wrong
    return chosen


def _quantity(name: Any, known: Known) -> Quantity:
    if not isinstance(name, str) or name not in {*known, *QUANTITIES}:
        raise ValueError(unknown("quantity", name, sorted({*known, *QUANTITIES})))
    return known[name] if name in known else QUANTITIES.find(name)


def _range(name: str, ends: Any) -> Range:
    given = ends if isinstance(ends, list) else [ends]
    wanted = 2 if name == "between" else 1
    if len(given) != wanted or not all(isinstance(end, int | float) for end in given):
        raise ValueError(f"{name} takes {'two numbers' if wanted > 1 else 'a number'}, not {ends!r}")
    return RANGES[name](*given)


def _one_of(choices: Iterable[str], row: Mapping[str, Any]) -> str:
    found = [choice for choice in choices if choice in row]
    if len(found) != 1:
        raise ValueError(f"give one of {', '.join(choices)}; there are {', '.join(row)}")
    return found[0]


def _called(function: Callable[..., Any], keys: Mapping[str, Any], *, beside: Iterable[str] = ()) -> Any:
    """`function` of these keys. ValueError for a key that it does not take or lacks, or of another type."""
    parameters = inspect.signature(function).parameters
    for key, given in keys.items():
        if key not in parameters:
            raise ValueError(unknown("key", key, [*parameters, *beside]))
        kind, words = TYPES.get(parameters[key].annotation, (object, ""))
        if not isinstance(given, kind):
            raise ValueError(f"{key} must be {words}, not {given!r}")
    lacking = [name for name, p in parameters.items() if p.default is p.empty and name not in keys]
    if lacking:
        raise ValueError(f"no {lacking[0]}; the keys are {', '.join(parameters)}")
    return function(**keys)


def _mapping(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"keys and values are needed, not {given!r}")
    return given


def _list(given: Any) -> list[Any]:
    if not isinstance(given, list):
        raise ValueError(f"a list is needed, not {given!r}")
    return given
