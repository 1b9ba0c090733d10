"""Experiments: a question as one YAML of `conf/experiment/`, whose grid becomes the sweep of a command line.

Beside settings of the run, which Hydra merges, the file holds under `experiment`:

| key | holds |
|---|---|
| title, question, paper | one line each; the paper's arXiv number and table or figure |
| grid | key: values, each swept unless the command line gives the key; $rank is a job's own rank; |
| | seed, lr and task.lr may be auto |
| seeds, rates | keys of the plans of seed=auto and lr=auto, unless the command line gives the key |
| rows, columns | the keys by which the main table is laid out |
| value | the column that is compared; `test` where nothing is said |
| tune | keys that are chosen for each cell, by the mean over seeds on validation |
| deltas | tables of `lora_zoo.updates` that are recorded for each run when the sweep ends |
| adapters | true: `--keep` keeps the adapters, too |
| reference | the paper's own numbers: the cell's keys, value, spread, of (the task there) |
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from lora_zoo.config.aliases import modern_key, modern_word, renamed
from lora_zoo.config.auto import AUTO
from lora_zoo.config.groups import GROUPS, option_file, options
from lora_zoo.config.outside import check_key, check_keys
from lora_zoo.core.errors import unknown

KEYS = (
    *("name", "title", "question", "paper", "grid", "rows", "columns", "value", "tune", "reference"),
    *("deltas", "adapters", "seeds", "rates"),
)
DELTAS = ("spectra", "changes", "amplification", "overlap", "intruders", "evolution")
NEEDED = ("title", "question", "grid", "rows")
_FORMS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("rows", "columns", "tune", "deltas", "reference"), (list, "a list")),
    **dict.fromkeys(("name", "title", "question", "paper", "value"), (str, "a text")),
    **dict.fromkeys(("seeds", "rates"), (dict, "keys and values")),
    "adapters": (bool, "true or false"),
}


def read(value: str) -> dict[str, Any]:
    """The file of the experiment `value`, a name or a file of one's own. ValueError where it is none."""
    name, held = option_file("experiment", value)
    content = renamed(held, modern_key, modern_word)
    if not isinstance(content.get("experiment"), dict):
        raise ValueError(
            f"experiment={value}: the file must hold `experiment:`, as those in conf/experiment do"
        )
    content["experiment"] = {"name": name} | content["experiment"]
    for wrong in chain(_foreign(content), _wrong(content["experiment"])):
        raise ValueError(f"experiment={value}: {wrong}")
    return content


def _foreign(content: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what is no setting of a run, or might run code."""
    for entry in _list(content.get("defaults", [])):
        group, option = next(iter(entry.items())) if isinstance(entry, dict) and entry else (str(entry), "")
        group = group.removeprefix("override /")
        if entry != "_self_" and (group not in GROUPS or option not in options(group)):
            yield f"defaults: {entry!r} is none; write override /variant: {next(iter(options('variant')))}"
    try:
        check_keys({key: held for key, held in content.items() if key != "defaults"})
        for metrics in _list((content.get("task") or {}).get("metrics")):
            check_key("task.metrics", _list(metrics))
    except ValueError as wrong:
        yield str(wrong)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value is not None else []


def _wrong(about: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what is wrong with the part that describes the experiment."""
    yield from (unknown("key of experiment", str(key), KEYS) for key in about if key not in KEYS)
    yield from (f"the file must give experiment.{key}" for key in NEEDED if not about.get(key))
    for key, (form, words) in _FORMS.items():
        if not isinstance(about.get(key), form | None):
            yield f"experiment.{key} must be {words}; got {about[key]!r}"
    for name in about.get("deltas", []):
        if name not in (*DELTAS, "touched"):  # the former name of overlap
            yield "experiment.deltas: " + unknown("table", str(name), DELTAS)
    yield from _wrong_cells(about["grid"], about.get("reference", []))


def _wrong_cells(grid: Any, reference: list[Any]) -> Iterator[str]:
    if not isinstance(grid, dict) or not all(grid_values(grid).values()):
        yield "experiment.grid must give each key a list of values"
        return
    for key, values in grid_values(grid).items():
        try:
            check_key(str(key), values)
        except ValueError as wrong:
            yield f"experiment.grid: {wrong}"
    for row in reference:
        if not isinstance(row, dict) or not isinstance(row.get("value"), (int, float)):
            yield f"a row of experiment.reference needs a number as value; got {row}"


def expanded(overrides: list[str], *, multirun: bool) -> list[str]:
    """The overrides with the grid of their experiment before its name, less the keys that they give.

    ValueError for an experiment that is none, and for one that is to be swept without -m.
    """
    asked = [a for a in overrides if re.match(r"\+*experiment=", a)]
    if not asked:
        return overrides
    value = asked[-1].partition("=")[2]
    if len(asked) > 1 or "," in value:
        raise ValueError(f"{' '.join(asked)}: a sweep is one experiment; run them one after the other")
    about = read(value)["experiment"]
    left = _not_given(grid_values(about["grid"]), overrides)
    if any(len(values) > 1 for values in left.values()) and not multirun:
        raise ValueError(
            f"experiment={value} is a sweep over {', '.join(left)}: add -m, or give each of them one value"
        )
    place = overrides.index(asked[-1])
    groups = [AUTO[key] for key, values in left.items() if key in AUTO and values == ["auto"]]
    plans = {f"{group}.{key}": [held] for group in groups for key, held in about.get(group, {}).items()}
    left |= _not_given(plans, overrides)
    swept = [f"{key}={','.join(map(_typed, values))}" for key, values in left.items()]
    return [*overrides[:place], *swept, *overrides[place:]]


def grid_values(grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each key of a grid; none where they are no list, nor auto where that may stand."""
    listed = {key: ["auto"] if key in AUTO and held == "auto" else held for key, held in grid.items()}
    return {str(key): held if isinstance(held, list) else [] for key, held in listed.items()}


def _not_given(grid: Mapping[str, list[Any]], overrides: list[str]) -> dict[str, list[Any]]:
    given = {a.lstrip("+").partition("=")[0] for a in overrides}
    return {key: values for key, values in grid.items() if key not in given}


def _typed(value: Any) -> str:
    """A value of YAML as Hydra's command line writes it."""
    if isinstance(value, str) and (other := re.fullmatch(r"\$([\w.]+)", value)):
        return f"${{{other[1]}}}"
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
