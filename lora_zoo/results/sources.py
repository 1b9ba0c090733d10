"""Where records come from: run folders at any depth, and archives of runs."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lora_zoo.results.record import RESULT, SCHEMA
from lora_zoo.wording import in_one_line

ARCHIVE = "results.jsonl.gz"
PACKED = ".jsonl.gz"


class Found(NamedTuple):
    """A run's record, and its folder; None where only the record was kept."""

    record: dict[str, Any]
    folder: Path | None


def found(sources: Iterable[str | Path]) -> list[Found]:
    """Every run of the sources, each file read once, by name. ValueError where there is none.

    A source is a folder or an archive; a folder without runs may hold archives, too.
    """
    files = dict.fromkeys(file.resolve() for source in sources for file in _files(Path(source)))
    return sorted((run for file in files for run in _read(file)), key=lambda run: order(run.record))


def order(record: dict[str, Any]) -> tuple[str, ...]:
    """What runs are sorted by, wherever they come from."""
    return tuple(str(record.get(key, "")) for key in ("name", "identity", "started", "ended"))


def _files(source: Path) -> list[Path]:
    if source.is_file() and (source.name.endswith(PACKED) or source.name == RESULT):
        return [source]
    files = sorted(source.rglob(RESULT)) or sorted(source.rglob(ARCHIVE))
    if not files:
        missing = "" if source.exists() else " (there is no such folder)"
        raise ValueError(f"no {RESULT} and no {ARCHIVE} under {source}{missing}")
    return files


def _read(file: Path) -> Iterator[Found]:
    try:
        if file.name == RESULT:
            yield Found(_record(file.read_text(encoding="utf-8"), str(file)), file.parent)
            return
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield Found(_record(line, f"{file}, line {number}"), None)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {in_one_line(error)}") from error


def _record(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is no record of a run: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "config" not in record:
        raise ValueError(f"{where} is no record of a run (schema {SCHEMA}, with its config)")
    return record
