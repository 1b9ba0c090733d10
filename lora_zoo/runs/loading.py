"""Read records: from run folders at any depth, and from archives of runs."""

import functools
import gzip
import itertools
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lora_zoo.config.aliases import modern
from lora_zoo.core.bounded_json import LARGEST, is_file_name, parse_json, read_json
from lora_zoo.core.errors import in_one_line
from lora_zoo.runs.form import check_form
from lora_zoo.runs.record import RESULT, SCHEMA

ARCHIVE = "results.jsonl.gz"
DELTAS = "deltas.json"
RENAMED = {"touched": "overlap"}
"""Former names of the tables in `deltas.json`, which older records have -> their names."""
PACKED = ".jsonl.gz"
EXPERIMENT = ".experiment.json"
"""What the experiment of a sweep says, in the folder of one that refers to runs of other sweeps."""
SEEDS = ".seeds.json"
"""The plan by which a sweep with seed=auto added its seeds, in the sweep's folder."""
RATES = ".rates.json"
"""The plan by which a sweep with lr=auto chose its learning rates, and the rates, likewise."""
SEARCH = ".search.json"
"""The plan by which a sweep with hydra/sweeper=optuna searched for each cell, and what it found, likewise."""
_PLANS = {"seeds": SEEDS, "rates": RATES, "search": SEARCH}
CELLS = "cells"
"""The findings for each cell of a folder's sweeps, by its overrides, in such a plan."""
_OF_SWEEP = ("seconds", "stops", CELLS)  # of these files, what says nothing of a single run
MOST, DAMAGED = 1 << 32, 100
"""Of one archive: bytes of text, and damaged lines after which it is not read on."""
_log = logging.getLogger("lora_zoo")


class Found(NamedTuple):
    """A run's record, its folder, None where only the record was kept, and the folder of its adapter."""

    record: dict[str, Any]
    folder: Path | None
    adapter: Path | None = None


class FoundRuns(NamedTuple):
    """The runs of some sources by name, and a sentence for each file or line that is none."""

    runs: list[Found]
    left_out: list[str]


def found(sources: Iterable[str | Path]) -> FoundRuns:
    """Every run of the sources, each file read once, by name. ValueError where there is none.

    A source is a folder or an archive; a folder without runs may hold archives, too. What is damaged is left
    out, and said.
    """
    files: dict[Path, Path] = {}
    for file in (file for source in sources for file in _files(Path(source))):
        files.setdefault(file.resolve(), file)
    plans = functools.cache(_plans)  # of a sweep, once for all its runs
    read = [run for real, file in files.items() for run in _read(real, file.parent, plans)]
    left_out = [run for run in read if isinstance(run, str)]
    runs = sorted((run for run in read if isinstance(run, Found)), key=lambda run: order(run.record))
    if not runs:
        raise ValueError("; ".join(left_out[:3]) if left_out else f"{next(iter(files))} holds no run")
    for said in left_out:
        _log.warning("left out: %s", said)
    return FoundRuns(runs, left_out)


def order(record: dict[str, Any]) -> tuple[str, ...]:
    """The sort key of runs, wherever they come from."""
    return tuple(str(record.get(key, "")) for key in ("name", "identity", "started", "ended"))


def _files(source: Path) -> list[Path]:
    if source.is_file() and (source.name.endswith(PACKED) or source.name == RESULT):
        return [source]
    # A sweep's own runs, those among them that it only refers to, and runs at any depth.
    files = sorted({*source.rglob(RESULT), *source.glob(f"*/{RESULT}")}) or sorted(source.rglob(ARCHIVE))
    if not files:
        missing = "" if source.exists() else " (there is no such folder)"
        raise ValueError(f"no {RESULT} and no {ARCHIVE} under {source}{missing}")
    return files


def _read(file: Path, place: Path, plans: Callable[[Path], dict[str, Any]]) -> Iterator[Found | str]:
    """The runs of a file; in the place of what is none, the sentence that says so.

    `place` is where it was found: a link where a sweep refers to a run of another.
    """
    try:
        if file.name == RESULT:
            record = checked(read_json(file), str(file))
            if place.is_symlink() and (place.parent / EXPERIMENT).is_file():
                about = read_json(place.parent / EXPERIMENT)
                record["config"] = record["config"] | {"experiment": about}
            record["config"] = record["config"] | plans(place.parent)
            yield Found(record | recorded(file.parent), file.parent, _adapter(file.parent / "adapter"))
        else:
            yield from _lines(file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        yield f"{file} cannot be read: {in_one_line(error)}"
    except ValueError as error:
        yield str(error) if str(file) in str(error) else f"{file} is no record of a run: {error}"


def _plans(sweep: Path) -> dict[str, Any]:
    """The plans that a sweep's folder holds, by the key of a run's configuration."""
    known = {key: read_json(sweep / name) for key, name in _PLANS.items() if (sweep / name).is_file()}
    return {key: {k: v for k, v in plan.items() if k not in _OF_SWEEP} for key, plan in known.items()}


def _lines(file: Path) -> Iterator[Found | str]:
    if not file.is_file():
        raise ValueError(f"{file} is no regular file")
    with gzip.open(file, "rb") as lines:
        size, damaged = 0, 0
        for number in itertools.count(1):
            line = lines.readline(LARGEST + 1)
            size += len(line)
            if size > MOST or damaged > DAMAGED:
                raise ValueError(f"{file} is read up to line {number}: more would be too much")
            if not line:
                return
            where = f"{file}, line {number}"
            try:
                record = checked(parse_json(line.decode()), where)
                yield Found(record, None, _adapter(kept_adapter(file.parent, record)))
            except ValueError as error:
                damaged += 1
                yield str(error) if where in str(error) else f"{where} is no record of a run: {error}"


def recorded(folder: Path) -> dict[str, Any]:
    """The tables that `lora_zoo.updates` recorded in a run's folder: {"deltas": tables}."""
    path = folder / DELTAS
    if not path.is_file():
        return {}
    try:
        tables = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {in_one_line(error)}") from error
    if not isinstance(tables, dict) or not all(isinstance(table, list) for table in tables.values()):
        raise ValueError(f"{path} holds no tables")
    return {"deltas": tables}


def tables_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of ΔW that a record holds, by their present names."""
    return {RENAMED.get(name, name): rows for name, rows in record.get("deltas", {}).items()}


def kept_adapter(archive: Path, record: Mapping[str, Any]) -> Path:
    """The path of a run's adapter beside the archive in the folder `archive`, if it was kept.

    ValueError for a name that leads elsewhere.
    """
    name = f"{record.get('name')}-{record.get('identity')}"
    if not is_file_name(name):
        raise ValueError(f"{name[:80]!r} is no name of a folder")
    return archive / "adapters" / name


def _adapter(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def checked(record: Any, where: str) -> dict[str, Any]:
    """A record from anywhere, if it is one, with today's keys in its configuration. ValueError else."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "config" not in record:
        raise ValueError(f"{where} is no record of a run (schema {SCHEMA}, with its config)")
    try:
        if isinstance(record["config"], dict):
            record = record | {"config": modern(record["config"])}
        check_form(record)
    except (ValueError, TypeError, AttributeError) as wrong:
        raise ValueError(f"{where} is no record of a run: {in_one_line(wrong)}") from wrong
    return record
