"""Claims as rows of data: the YAML files of the catalogue, checked and made claims of.

    quantities:                   # of this file alone, beside those that functions register (measures.py)
      parameters: {name: parameters, unit: parameters, column: trainable, counted: true}
    paper: '2310.11454'           # what stands here holds for every claim below, up to the next ---
    experiment: bakeoff_rank      # or sweep: the arguments of a command of its own
    claims:
      - id: vera/fewer-parameters
        where: section 4.1, table 2
        statement: With less than 0.25 of LoRA's parameters VeRA is less than 2 points below.
        tests:                    # a form of forms.py with a range, or several, each of which must hold
          - {ratio: [vera, lora], below: 0.25, of: parameters}
          - {difference: [vera, lora], above: -2}

`each: rank` repeats a test for every rank that was run, put where its cells say `each` (and the one after it
where they say `next`); `among: rank <= 16` leaves some out, `least: 3` asks for three. In place of `tests`, a
claim without runs has a count to `compute` (counts.py), what it `waits_for`, or what is `known` of it.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lora_zoo.claims.counts import PrintedCount
from lora_zoo.claims.evidence import Tune
from lora_zoo.claims.forms import FORMS, Form, each
from lora_zoo.claims.hypotheses import Range, above, below, between
from lora_zoo.claims.measures import QUANTITIES, Quantity, quantity
from lora_zoo.claims.registry import Claim, Computed, Measured, NotBuilt, Untestable
from lora_zoo.claims.rule import RULES
from lora_zoo.core.errors import in_one_line, unknown

KINDS: Mapping[str, type[Claim]] = {
    "tests": Measured,
    "compute": Computed,
    "waits_for": NotBuilt,
    "known": Untestable,
}
RANGES: Mapping[str, Callable[..., Range]] = {"above": above, "below": below, "between": between}
OWN, PLACES = ("each", "among", "least"), ("each", "next")
TYPES: Mapping[Any, tuple[Any, str]] = {
    str: (str, "a text (in quotes, if need be)"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "true or false"),
    dict: (dict, "keys with values"),
    **dict.fromkeys((Sequence[str], Sequence[Any], Tune), (list, "a list")),
}
WRONG = (ValueError, TypeError, NameError, SyntaxError, AttributeError, yaml.YAMLError)
Keys = Mapping[str, Any]
Known = Mapping[str, Quantity]


def read(path: Path) -> list[Claim]:
    """The claims of a file. ValueError names the file, the claim and the key that is wrong."""
    claims: list[Claim] = []
    known: dict[str, Quantity] = {}
    with _within(path):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            shared = dict(_typed(dict, document, "a document"))
            rows = _typed(Sequence[Any], shared.pop("claims", None), "claims")
            for name, keys in _typed(dict, shared.pop("quantities", {}), "quantities").items():
                with _within(name):
                    known[name] = _called(quantity, keys)
            for row in rows:
                with _within(_typed(dict, row, "a claim").get("id", "a claim without an id")):
                    claims.append(_claim(shared | row, known))
    return claims


@contextmanager
def _within(place: object) -> Iterator[None]:
    """Put the place before the message of what is wrong in it, as ValueError."""
    try:
        yield
    except WRONG as wrong:
        raise ValueError(f"{place}: {in_one_line(wrong)}") from wrong


def _claim(row: Keys, known: Known) -> Claim:
    kind = _one_of(KINDS, row)
    made = row[kind]
    with _within(kind):
        if kind == "tests":
            made = [_form(test, known) for test in (made if isinstance(made, list) else [made])]
            row = dict(row) | {"rule": RULES[_one_of(RULES, [row.get("rule", "every")])]}
        elif kind == "compute":
            made = _called(PrintedCount, made).verdict
    claim: Claim = _called(KINDS[kind], dict(row) | {kind: made})
    if not claim.statement:
        raise ValueError("no statement")
    return claim


def _form(test: Keys, known: Known) -> Form:
    """A form of its keys; with `each`, one for every value of that axis."""
    name, ranged = _one_of(FORMS, _typed(dict, test, "a test")), _one_of(RANGES, test)
    cells, claimed, axis = test[name], _range(ranged, test[ranged]), test.get("each")
    rest = {key: given for key, given in test.items() if key not in (name, ranged, *OWN)}
    rest |= {key: _quantity(rest[key], known) for key in ("of", "to") if key in rest}

    def make(cells: Any) -> Any:
        with _within(name):
            first = next(iter(inspect.signature(FORMS[name]).parameters.values()))
            _typed(first.annotation, cells, first.name)
            return _called(partial(FORMS[name], cells, claimed), rest, beside=(*RANGES, *OWN))

    form: Form = make(cells)
    places = [place for place in PLACES if _put(cells, {place: None}) != cells]
    if not places and not test.keys() & {*OWN}:
        return form
    if not isinstance(axis, str) or "each" not in places:
        raise ValueError("`each: AXIS` and cells that say `each` go together")
    among = _among(axis, test.get("among"), in_pairs="next" in places)
    least = _typed(int, test.get("least", 0), "least")
    return each(axis, lambda levels: make(_put(cells, dict(zip(PLACES, levels, strict=False)))), among, least)


def _put(cells: Any, levels: Keys) -> Any:
    """The cells with a level in the place of each word."""
    if isinstance(cells, list):
        return [_put(cell, levels) for cell in cells]
    if isinstance(cells, dict):
        return {axis: _put(wanted, levels) for axis, wanted in cells.items()}
    return levels.get(cells, cells)


def _among(axis: str, condition: Any, *, in_pairs: bool) -> Callable[[list[Any]], list[tuple[Any, ...]]]:
    """The values of an axis for which the condition is true, each alone, or with the next."""

    def chosen(levels: list[Any]) -> list[tuple[Any, ...]]:
        found = pd.DataFrame({axis: levels}).query(condition)[axis].tolist() if condition else levels
        return list(pairwise(found)) if in_pairs else [(level,) for level in found]

    with _within("among"):
        chosen([1.0, 2.0])
    return chosen


def _quantity(name: Any, known: Known) -> Quantity:
    if not isinstance(name, str) or name not in {*known, *QUANTITIES}:
        raise ValueError(unknown("quantity", name, sorted({*known, *QUANTITIES})))
    return known[name] if name in known else QUANTITIES.find(name)


def _range(name: str, ends: Any) -> Range:
    given = ends if isinstance(ends, list) else [ends]
    with _within(name):
        return RANGES[name](*[_typed(float, end, "an end") for end in given])


def _one_of(choices: Iterable[str], keys: Collection[str]) -> str:
    found = [choice for choice in choices if choice in keys]
    if len(found) != 1:
        raise ValueError(f"give one of {', '.join(choices)}; the keys are {', '.join(map(str, keys))}")
    return found[0]


def _called(function: Callable[..., Any], keys: Keys, *, beside: Iterable[str] = ()) -> Any:
    """`function` of these keys. ValueError for a key that it does not take or lacks, or of another type."""
    parameters = inspect.signature(function).parameters
    for key, given in _typed(dict, keys, "what stands here").items():
        if key not in parameters:
            raise ValueError(unknown("key", key, [*parameters, *beside]))
        _typed(parameters[key].annotation, given, key)
    lacking = [name for name, p in parameters.items() if p.default is p.empty and name not in keys]
    if lacking:
        raise ValueError(f"no {lacking[0]}; the keys are {', '.join(parameters)}")
    return function(**keys)


def _typed(kind: Any, given: Any, name: str) -> Any:
    python, words = TYPES.get(kind, (object, ""))
    if not isinstance(given, python):
        raise ValueError(f"{name} must be {words}, not {given!r}")
    return given
