"""The runs that may be counted: planted or honest mistakes are found, named, and kept out of every table.

Checks run one after the other, each on what the ones before have left: a copy is not judged for its age.
"""

from collections.abc import Sequence

import pandas as pd

from lora_zoo.analysis.checks import DOUBTS, MISTAKES, Check, Finding
from lora_zoo.runs.frame import LEFT_OUT

LISTED = 20
_SOUND = "lora_zoo: sound"


def findings(frame: pd.DataFrame) -> list[Finding]:
    """All that is wrong with the runs of a frame, worst first. The frame's index must be unique."""
    return _found(frame, (*MISTAKES, *DOUBTS))


def _found(frame: pd.DataFrame, checks: Sequence[Check]) -> list[Finding]:
    if not frame.index.is_unique:
        raise ValueError("the frame's index has a label twice; give it a new one with reset_index(drop=True)")
    found: list[Finding] = []
    for check in checks:
        if frame.empty:
            break
        new = list(check(frame))
        found += new
        if rows := [row for finding in new for row in finding.rows]:
            frame = frame.drop(index=rows)
    return found


def unread(frame: pd.DataFrame) -> list[Finding]:
    """The finding about files that are no records, which `lora_zoo.runs.load` has left out."""
    said = frame.attrs.get(LEFT_OUT, ())
    more = f"; and {len(said) - LISTED} more" if len(said) > LISTED else ""
    return [Finding("damaged", [], "; ".join(said[:LISTED]) + more)] if said else []


def sound(frame: pd.DataFrame, found: Sequence[Finding] | None = None) -> pd.DataFrame:
    """The runs that may be counted: done, at one with themselves, each once, all on the same data.

    `found` are the frame's `findings`, where they are known. The frame is marked in its `attrs`, which pandas
    hands on to its parts: they are not looked through again.
    """
    if frame.attrs.get(_SOUND):
        return frame
    found = _found(frame, MISTAKES) if found is None else found
    rows = [row for finding in found for row in finding.rows]
    kept = frame.drop(index=rows)
    kept.attrs[_SOUND] = True
    return kept


__all__ = ["Finding", "findings", "sound", "unread"]
