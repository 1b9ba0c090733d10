"""Read records: from run folders at any depth, and from archives of runs."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lora_zoo.config.aliases import modern
from lora_zoo.core.errors import in_one_line
from lora_zoo.runs.record import RESULT, SCHEMA

ARCHIVE = "results.jsonl.gz"
DELTAS = "deltas.json"
RENAMED = {"touched": "overlap"}
"""Former names of the tables in `deltas.json`, which older records have -> their names."""
PACKED = ".jsonl.gz"
EXPERIMENT = ".experiment.json"
"""What the experiment of a sweep says, in the folder of one that refers to runs of other sweeps."""


class Found(NamedTuple):
    """A run's record, its folder, None where only the record was kept, and the folder of its adapter."""

    record: dict[str, Any]
    folder: Path | None
    adapter: Path | None = None


def found(sources: Iterable[str | Path]) -> list[Found]:
    """Every run of the sources, each file read once, by name. ValueError where there is none.

    A source is a folder or an archive; a folder without runs may hold archives, too.
    """
    files: dict[Path, Path] = {}
    for file in (file for source in sources for file in _files(Path(source))):
        files.setdefault(file.resolve(), file)
    runs = (run for real, file in files.items() for run in _read(real, file.parent))
    return sorted(runs, key=lambda run: order(run.record))


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


def _read(file: Path, place: Path) -> Iterator[Found]:
    """The runs of a file; `place` is where it was found, a link where a sweep refers to a run of another."""
    try:
        if file.name == RESULT:
            record = _record(file.read_text(encoding="utf-8"), str(file))
            if place.is_symlink() and (place.parent / EXPERIMENT).is_file():
                about = json.loads((place.parent / EXPERIMENT).read_text(encoding="utf-8"))
                record["config"] = record["config"] | {"experiment": about}
            yield Found(record | recorded(file.parent), file.parent, _adapter(file.parent / "adapter"))
            return
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                record = _record(line, f"{file}, line {number}")
                yield Found(record, None, _adapter(kept_adapter(file.parent, record)))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {in_one_line(error)}") from error


def recorded(folder: Path) -> dict[str, Any]:
    """The tables that `lora_zoo.updates` recorded in a run's folder: {"deltas": tables}."""
    path = folder / DELTAS
    if not path.is_file():
        return {}
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {in_one_line(error)}") from error
    if not isinstance(tables, dict) or not all(isinstance(table, list) for table in tables.values()):
        raise ValueError(f"{path} holds no tables")
    return {"deltas": tables}


def tables_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of ΔW that a record holds, by their present names."""
    return {RENAMED.get(name, name): rows for name, rows in record.get("deltas", {}).items()}


def kept_adapter(archive: Path, record: Mapping[str, Any]) -> Path:
    """The path of a run's adapter beside the archive in the folder `archive`, if it was kept."""
    return archive / "adapters" / f"{record.get('name')}-{record.get('identity')}"


def _adapter(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _record(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is no record of a run: {error}") from error
    return checked(record, where)


def checked(record: Any, where: str) -> dict[str, Any]:
    """A record from anywhere, if it is one, with today's keys in its configuration. ValueError else."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "config" not in record:
        raise ValueError(f"{where} is no record of a run (schema {SCHEMA}, with its config)")
    return record | {"config": modern(record["config"])}
