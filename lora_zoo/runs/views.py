"""The views of recorded runs (DyLoRA's ranks) as rows of a frame, beside the runs themselves."""

from typing import Any

import pandas as pd

WHOLE = "whole"
"""The view that is the trained model itself."""


def by_view(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each view of each run of a frame from `load`, after the run's own, whose `view` is "whole".

    `validation`, `test`, their `…_nll` and the columns `metrics.…` and `likelihood.…` are the view's; all
    else, the costs too, is the run's. `run` is "1a2b3c4d/rank=2". A view has no outcomes of single examples,
    and so no `folder`.
    """
    frame = frame.reset_index(drop=True)
    names = dict.fromkeys(name for record in frame["record"] for name in record.get("views", {}))
    parts = [frame.assign(view=WHOLE), *(_judged_by(frame, name) for name in names)]
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True).copy()  # a block a type


def _judged_by(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The runs that have the view, with its outcomes in the place of their own."""
    runs = frame[[name in record.get("views", {}) for record in frame["record"]]]
    judged = [record["views"][name] for record in runs["record"]]
    likely = [record.get("view_likelihood", {}).get(name, {}) for record in runs["record"]]
    found: dict[str, Any] = {"view": name, "run": runs["run"] + f"/{name}", "folder": None}
    for split in ("validation", "test"):
        pairs = zip(judged, runs["metric"], strict=True)
        found[split] = [_number(splits, split, metric) for splits, metric in pairs]
        found[f"{split}_nll"] = [_number(splits, split, "nll") for splits in likely]
    for column in map(str, runs):
        of, *path = column.split(".", 2)
        if of in ("metrics", "likelihood"):
            splits_of = judged if of == "metrics" else likely
            found[column] = [_number(splits, *path) for splits in splits_of]
    return runs.assign(**found)


def _number(splits: dict[str, Any], split: str, metric: str) -> float:
    """A metric's value, NaN where there is none; of one that is no number, the record has the name."""
    return float(splits.get(split, {}).get(metric, "nan"))


__all__ = ["WHOLE", "by_view"]
