"""Tables of ΔW kept with a run's record, which outlives the adapter: `deltas.json` in the run's folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo.core.errors import unknown
from lora_zoo.runs.curves import updates
from lora_zoo.runs.frame import load
from lora_zoo.runs.loading import ARCHIVE, DELTAS, RENAMED, recorded, tables_of
from lora_zoo.runs.record import RESULT, write_atomically
from lora_zoo.updates import tables
from lora_zoo.updates.reading import AdapterUpdates, adapters_in, read

TABLES: dict[str, Callable[[AdapterUpdates], pd.DataFrame]] = {
    "spectra": tables.spectra,
    "changes": tables.changes,
    "amplification": tables.amplification,
    "overlap": tables.overlap,
    "intruders": tables.intruders,
}
"""Tables of one adapter; `evolution` beside them is made of a run's checkpoints."""
FACTORS_SUFFICE = ("spectra",)
"""Tables that need the base only where the adapter does."""
IN_EVERY_RECORD = ("spectra", "changes")
"""Tables whose columns are, but for a few, among the `updates` of a run's record."""


def record(run: str | Path, names: Sequence[str], *, model: str | None = None) -> Path:
    """Make those of the tables `names` that a run's `deltas.json` lacks, from its adapter; returns the file.

    Raises as `read` does, and ValueError for an unknown table and a folder that is no run's.
    """
    kept = tables_of(recorded(Path(run)))
    wanted = [name for name in names if RENAMED.get(name, name) not in kept]
    return write(run, made_of(run, wanted, model=model) if wanted else {})


def write(run: str | Path, made: Mapping[str, pd.DataFrame]) -> Path:
    """Add tables by name to a run's `deltas.json`; returns the file."""
    run = Path(run)
    if not (run / RESULT).is_file():
        raise ValueError(f"{run} is no run's folder with {RESULT}: there is no record to keep tables with")
    tables = tables_of(recorded(run)) | {name: _rows(table) for name, table in made.items()}
    write_atomically(run / DELTAS, json.dumps(tables) + "\n")
    return run / DELTAS


def made_of(
    source: str | Path, names: Sequence[str], *, model: str | None = None, **of_file: Any
) -> dict[str, pd.DataFrame]:
    """The tables `names` of one run or adapter; `of_file`: `read`'s arguments for loralib's files.

    Raises as `read` does, and ValueError for an unknown table.
    """
    names = [RENAMED.get(name, name) for name in names]
    for name in names:
        if name not in (*TABLES, "evolution"):
            raise ValueError(unknown("table", name, [*TABLES, "evolution"]))
    found: dict[str, pd.DataFrame] = {}
    own = [name for name in names if name in TABLES]
    if own:
        updates = read(source, base=bool(set(own) - set(FACTORS_SUFFICE)), model=model, **of_file)
        found = {name: TABLES[name](updates) for name in own}
    if "evolution" in names:
        found["evolution"] = tables.evolution(source, model=model)
    return found


def runs(source: str | Path) -> pd.DataFrame:
    """The runs of a folder as `lora_zoo.runs.load` gives them; of adapters alone, the columns that ΔW needs.

    `seed` numbers such adapters within their variant and rank. ValueError where there is neither.
    """
    source = Path(source)
    if source.is_file() or any(source.rglob(RESULT)) or any(source.rglob(ARCHIVE)):
        return load(source)
    rows = []
    for folder in sorted(adapters_in(source)):
        updates = read(folder)
        known = {"variant": updates.variant, "rank": updates.rank, "alpha": updates.alpha}
        rows.append({"run": str(folder), "name": updates.label, **known})
    if not rows:
        raise ValueError(f"{source} holds neither runs nor adapters")
    found = pd.DataFrame(rows).assign(state="done", folder=None, adapter=[row["run"] for row in rows])
    found["record"] = [{} for _ in rows]
    return found.assign(seed=found.groupby(["variant", "rank"], dropna=False).cumcount())


def of_runs(
    frame: pd.DataFrame, table: str, settings: Sequence[str] = ("variant", "rank", "seed")
) -> pd.DataFrame:
    """A table of all runs of a frame, as recorded or else made of the adapter, with `run` and the `settings`.

    Of runs without either, `spectra` and `changes` use the updates in every record; other tables leave them
    out. ValueError where nothing remains.
    """
    found, table = [], RENAMED.get(table, table)
    for _, run in frame[frame["state"] == "done"].iterrows():
        rows = tables_of(run["record"]).get(table)
        source = run["folder"] if table == "evolution" else run["adapter"]
        if rows is None and source is not None:
            rows = made_of(source, [table])[table]
        elif rows is None and table in IN_EVERY_RECORD:
            rows = updates(run.to_frame().T)
        if rows is not None and len(rows):
            found.append(pd.DataFrame(rows).assign(run=run["run"], **{name: run[name] for name in settings}))
    if not found:
        raise ValueError(f"no run has recorded the table {table!r}, and none has an adapter to make it of")
    return pd.concat(found, ignore_index=True)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows
