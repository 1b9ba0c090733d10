"""Archives of runs: one gzipped JSON line a run, small enough to commit, and free of places on a machine.

An archive holds the records; histories are thinned, spectra, curves and nll of examples rounded, and their
scores packed. The same runs give the same bytes; `runs.load` reads archives as it reads folders.
"""

import gzip
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from lora_zoo.runs.curves import kept_of, packed_nll, packed_scores
from lora_zoo.runs.loading import PACKED, order
from lora_zoo.runs.record import write_atomically

POINTS, OTHERS = 150, 50  # of a history: what was logged in training, and the rest (evaluations)
_DIGITS, _OF_SPECTRA = 6, 4
_WITH_PLACES = ("error", "packed", "environment", "prior", "start_from")
_PATH = re.compile(r"""(?<![\w.~:/…-])/(?:[^\s/'"{},]+/)+(?P<name>[^\s/'"{},:]*)""")


def archive(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write the runs of a frame to `path` (…jsonl.gz), replacing it. ValueError for another name."""
    path = Path(path)
    if not path.name.endswith(PACKED):
        raise ValueError(f"an archive's name ends in {PACKED}, so that it is known again; got {path.name}")
    columns = [frame[name] for name in ("record", "folder", "stale", "contradiction")]
    records = [packed(*row) for row in zip(*columns, strict=True)]
    records.sort(key=lambda record: (order(record), _line(record)))
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.writelines(_line(record).encode() for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return path


def packed(record: Mapping[str, Any], folder: Any, stale: str, contradiction: str) -> dict[str, Any]:
    """A record as an archive keeps it; one that comes from an archive is as it was.

    What is known against the run now is kept, since its folder and data may be on no other machine.
    """
    config = {key: value for key, value in record["config"].items() if key != "out"}
    kept = {key: value for key, value in record.items() if key != "tracking"}  # its folder
    examples = kept_of(record, folder)
    nll = {split: packed_nll(of) for split, of in examples["nll"].items() if of}
    kept |= {
        "config": without_places(config),
        "command": portable(record.get("command", "")),
        **{key: without_places(record[key]) for key in _WITH_PLACES if key in record},
        "history": thinned(record.get("history", [])),
        "updates": [_rounded_update(row) for row in record.get("updates", [])],
        **{key: _rounded(record[key], _OF_SPECTRA) for key in ("deltas",) if key in record},
        "scores": {split: packed_scores(scores) for split, scores in examples["score"].items()},
        **({"nll": nll} if nll else {}),
    }
    if kept["config"] != config:
        kept["moved"] = True
    doubts = {"stale": stale, "contradiction": contradiction}
    return kept | {key: without_places(doubt) for key, doubt in doubts.items() if doubt}


def thinned(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At most 200 of the logs, evenly spaced and in order; the first and last of each sort stay."""
    logged = [number for number, entry in enumerate(history) if "loss" in entry]
    others = [number for number, entry in enumerate(history) if "loss" not in entry]
    kept = sorted(_spaced(logged, POINTS) + _spaced(others, OTHERS))
    last = logged[-1:]  # the frame's `loss`: kept to the last digit
    return [dict(history[n]) if n in last else _rounded(history[n], _DIGITS) for n in kept]


def without_places(value: Any) -> Any:
    """`value`, a text or a tree, in which of every absolute path its last name is left."""
    if isinstance(value, Mapping):
        return {key: without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~/")) and not {"{", "\n"} & set(value):
        return PurePath(value).name or value
    return _PATH.sub(r"\g<name>", value)


def portable(command: str) -> str:
    """A command line without the folder that its results went to, and without places on the machine."""
    words = [word for word in shlex.split(command) if not word.lstrip("+").startswith("out=")]
    return str(without_places(shlex.join(words)))


def _spaced(numbers: Sequence[int], most: int) -> list[int]:
    if len(numbers) <= most:
        return list(numbers)
    step = (len(numbers) - 1) / (most - 1)
    return [numbers[round(i * step)] for i in range(most)]


def _rounded_update(row: Mapping[str, Any]) -> dict[str, Any]:
    sigma = _rounded(row["singular_values"], _OF_SPECTRA)
    return _rounded(row, _DIGITS) | {"singular_values": sigma}


def _rounded(value: Any, digits: int) -> Any:
    """Floats to so many significant digits."""
    if isinstance(value, Mapping):
        return {key: _rounded(entry, digits) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _line(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"{text}\n"
