"""An experiment's folder for the repository: a README with what was measured, and its runs in one archive.

The part of the README between the markers is made anew each time; what people write around it stays.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo.claims import LedgerEntry, show
from lora_zoo.formats.description import DESCRIPTION, WEIGHTS
from lora_zoo.report.render import Table
from lora_zoo.runs.archives import archive, without_places
from lora_zoo.runs.loading import kept_adapter

ARCHIVE, README = "results.jsonl.gz", "README.md"
MARKERS = "<!-- measured: made by python -m lora_zoo.report … --save-experiment {0} -->", "<!-- /measured -->"
_PART = re.compile(r"<!-- measured:.*?<!-- /measured -->", re.DOTALL)


def save_experiment(frame: pd.DataFrame, table: Table, tested: Sequence[LedgerEntry], folder: Path) -> Path:
    """Write the runs of one experiment, its table and the claims that it tests to `folder`; returns it.

    ValueError for runs of no experiment or of several.
    """
    names = sorted(frame["experiment"].dropna().unique())
    if len(names) != 1 or not names[0]:
        of = ", ".join(map(str, names)) or "no experiment"
        raise ValueError(f"--save-experiment takes the runs of one experiment; these are of {of}")
    about: Mapping[str, Any] = next(about for about in frame["experiment_about"] if about)
    folder.mkdir(parents=True, exist_ok=True)
    archive(frame, folder / ARCHIVE)
    if about.get("adapters"):
        _keep_adapters(frame, folder)
    begin, end = MARKERS[0].format(f"experiments/{folder.resolve().name}"), MARKERS[1]
    part = f"{begin}\n{measured(frame, table, tested)}\n{end}"
    path = folder / README
    if not path.is_file():
        path.write_text(_opening(about) + part + "\n", encoding="utf-8")
        return folder
    text = path.read_text(encoding="utf-8")
    if not _PART.search(text):
        raise ValueError(f"{path} lacks the markers {begin} … {end}, between which the results go")
    path.write_text(_PART.sub(lambda _: part, text), encoding="utf-8")
    return folder


def _keep_adapters(frame: pd.DataFrame, folder: Path) -> None:
    """Copy each run's adapter to where `lora_zoo.runs.load` looks for it, without places on a machine."""
    for record, adapter in zip(frame["record"], frame["adapter"], strict=True):
        kept = kept_adapter(folder, record)
        if adapter is None or Path(adapter).resolve() == kept.resolve():
            continue
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(adapter) / WEIGHTS, kept / WEIGHTS)
        description = json.loads((Path(adapter) / DESCRIPTION).read_text(encoding="utf-8"))
        (kept / DESCRIPTION).write_text(json.dumps(without_places(description), indent=2), encoding="utf-8")


def measured(frame: pd.DataFrame, table: Table, tested: Sequence[LedgerEntry]) -> str:
    """The table, the claims, and the time that the runs took, in Markdown."""
    claims = [*show.grid(tested), ""] if tested else []
    return "\n".join([table.markdown().rstrip(), "", *claims, *_time(frame)])


def _time(frame: pd.DataFrame) -> Iterator[str]:
    """From the first start to the last end, and the runs' own sum: side by side it is the longer."""
    if "started" not in frame or "ended" not in frame:
        return
    began, ended = (pd.to_datetime(frame[name], utc=True) for name in ("started", "ended"))
    took = (ended.max() - began.min()).total_seconds() / 60
    own = frame["total_seconds"].sum() / 60
    yield f"{len(frame)} runs; {took:.0f} minutes from first to last, {own:.0f} minutes of runs in sum."


def _opening(about: Mapping[str, Any]) -> str:
    paper = f"{about['paper']}\n\n" if about.get("paper") else ""
    return f"# {about['title']}\n\n{about['question']}\n\n{paper}"
