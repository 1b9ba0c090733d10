"""The views of recorded runs (DyLoRA's ranks) as rows of a frame, beside the runs themselves."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

WHOLE = "whole"
"""The view that is the trained model itself."""


def by_view(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each view of each run of a frame from `load`, after the run's own, whose `view` is "whole".

    `validation`, `test` and the columns `metrics.…` are the view's; all else, the costs too, is the run's.
    `run` is "1a2b3c4d/rank=2". A view has no outcomes of single examples, and so no `folder`.
    """
    rows = [row for label in frame.index for row in _rows(frame.loc[[label]])]
    found = pd.concat(rows, ignore_index=True) if rows else frame.assign(view=WHOLE)
    found.attrs = dict(frame.attrs)  # that its runs may be counted, where that is known
    return found


def _rows(run: pd.DataFrame) -> Iterator[pd.DataFrame]:
    yield run.assign(view=WHOLE)
    record, judged = run["record"].iloc[0], [c for c in run if str(c).startswith("metrics.")]
    for name, splits in (record.get("views") or {}).items():
        values = {f"metrics.{split}.{m}": v for split, own in splits.items() for m, v in own.items()}
        metric = run["metric"].iloc[0]
        outcomes = {split: _number(splits.get(split, {}).get(metric)) for split in ("validation", "test")}
        own = {column: _number(values.get(str(column))) for column in judged}
        yield run.assign(**outcomes, **own, view=name, run=f"{run['run'].iloc[0]}/{name}", folder=None)


def _number(value: Any) -> float:
    """A metric's value: of one that is no number, JSON has the name."""
    return float("nan") if value is None else float(value)


__all__ = ["by_view"]
