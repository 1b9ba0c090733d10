"""Experiments: a question as one YAML of `conf/experiment/`, whose grid becomes the sweep of a command line.

Beside settings of the run, which Hydra merges, the file holds under `experiment`:

| key | holds |
|---|---|
| title, question, paper | one line each; the paper's arXiv number and table or figure |
| grid | key: values, each swept unless the command line gives the key; $rank is a job's own rank |
| rows, columns | the keys by which the main table is laid out |
| value | the column that is compared; `test` where nothing is said |
| tune | keys that are chosen for each cell, by the mean over seeds on validation |
| deltas | tables of `lora_zoo.updates` that are recorded for each run when the sweep ends |
| adapters | true: `--keep` keeps the adapters, too |
| reference | the paper's own numbers: the cell's keys, value, spread, of (the task there) |
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lora_zoo.config.groups import folder, options
from lora_zoo.core.errors import unknown

KEYS = (
    *("name", "title", "question", "paper", "grid", "rows", "columns", "value", "tune", "reference"),
    *("deltas", "adapters"),
)
DELTAS = ("spectra", "changes", "amplification", "overlap", "intruders", "evolution")
NEEDED = ("title", "question", "grid", "rows")
_LISTS = ("rows", "columns", "tune", "deltas", "reference")


def read(value: str) -> dict[str, Any]:
    """The file of the experiment `value`, a name or a file of one's own. ValueError where it is none."""
    path = folder() / "experiment" / f"{value}.yaml"
    if value not in options("experiment"):
        path = Path(value).expanduser()
        if not path.is_file() or path.suffix not in (".yaml", ".yml"):
            known = unknown("experiment", value, options("experiment"))
            raise ValueError(f"{known}, or a YAML file of your own")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))  # as Hydra reads it: 1e-2 is a number
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"experiment={value}: the file is no YAML: {said}") from error
    if not isinstance(content, dict) or not isinstance(content.get("experiment"), dict):
        raise ValueError(
            f"experiment={value}: the file must hold `experiment:`, as those in conf/experiment do"
        )
    content["experiment"] = {"name": path.stem} | content["experiment"]
    for wrong in _wrong(content["experiment"]):
        raise ValueError(f"experiment={value}: {wrong}")
    return content


def _wrong(about: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the part that describes the experiment."""
    yield from (unknown("key of experiment", str(key), KEYS) for key in about if key not in KEYS)
    yield from (f"the file must give experiment.{key}" for key in NEEDED if not about.get(key))
    for key in (key for key in _LISTS if not isinstance(about.get(key, []), list)):
        yield f"experiment.{key} must be a list; got {about[key]!r}"
    for name in about.get("deltas", []):
        if name not in (*DELTAS, "touched"):  # the former name of overlap
            yield "experiment.deltas: " + unknown("table", str(name), DELTAS)
    if not isinstance(about.get("adapters", False), bool):
        yield f"experiment.adapters must be true or false; got {about['adapters']!r}"
    grid = about["grid"]
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        yield "experiment.grid must give each key a list of values"
    for row in about.get("reference", []):
        if not isinstance(row, dict) or not isinstance(row.get("value"), (int, float)):
            yield f"a row of experiment.reference needs a number as value; got {row}"


def expanded(arguments: list[str]) -> list[str]:
    """The arguments with the grid of their experiment before its name, less the keys that they give.

    ValueError for an experiment that is none, and for one that is to be swept without -m.
    """
    asked = [a for a in arguments if re.match(r"\+*experiment=", a)]
    if not asked:
        return arguments
    value = asked[-1].partition("=")[2]
    if len(asked) > 1 or "," in value:
        raise ValueError(f"{' '.join(asked)}: a sweep is one experiment; run them one after the other")
    given = {a.lstrip("+").partition("=")[0] for a in arguments}
    grid = read(value)["experiment"]["grid"]
    left = {key: values for key, values in grid.items() if key not in given}
    if any(len(values) > 1 for values in left.values()) and not {"-m", "--multirun"} & set(arguments):
        raise ValueError(
            f"experiment={value} is a sweep over {', '.join(left)}: add -m, or give each of them one value"
        )
    place = arguments.index(asked[-1])  # beside it, since Hydra takes overrides in one piece
    swept = [f"{key}={','.join(map(_said, values))}" for key, values in left.items()]
    return [*arguments[:place], *swept, *arguments[place:]]


def _said(value: Any) -> str:
    """A value of YAML as Hydra's command line writes it."""
    if isinstance(value, str) and (other := re.fullmatch(r"\$([\w.]+)", value)):
        return f"${{{other[1]}}}"
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


__all__ = ["expanded", "read"]
