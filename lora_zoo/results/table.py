"""`python -m lora_zoo.results.table DIR…`: measured results as a Markdown table, with what made them below.

A row is one configuration, a cell the mean over its seeds with the sample standard deviation and the number
of runs; what all runs share is said once, under the table.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo.results.record import RESULT

_OWN = ("variant.hyperparameters.rank", "variant.hyperparameters.init")
_SHOWN = ("variant.name", *_OWN, "config.target_modules", "config.lr", "config.model.name")


def load(*folders: str | Path) -> pd.DataFrame:
    """Every run under `folders`, one row each, nested keys joined by dots. ValueError where there is none."""
    paths = sorted({path for folder in folders for path in Path(folder).rglob(RESULT)})
    if not paths:
        raise ValueError(f"no {RESULT} under {', '.join(map(str, folders))}")
    rows = [json.loads(path.read_text()) | {"folder": str(path.parent)} for path in paths]
    return pd.json_normalize(rows)


def markdown(frame: pd.DataFrame, split: str = "test") -> str:
    """The finished runs of `frame` by configuration, best first; unfinished ones are counted below."""
    done = frame[frame["state"] == "done"].copy()
    metric = str(done["metric"].iloc[0])
    value = f"metrics.{split}.{metric}"
    for column in _SHOWN:
        done[column] = done[column].map(_said) if column in done else "-"
    keys = [c for c in _SHOWN if done[c].nunique() > 1 or c == "variant.name"]
    groups = done.groupby(["config.task.name", *keys], sort=False)
    rows = [_row(name[1:], group, value) for name, group in sorted(groups, key=lambda g: -g[1][value].mean())]
    head = [k.rpartition(".")[2] if k != "variant.name" else "variant" for k in keys]
    head += [f"{metric} ({split})", "before training", "n", "trainable", "s/step"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows, "", _origin(done, frame)]
    return "\n".join(lines)


def _row(name: Sequence[Any], group: pd.DataFrame, value: str) -> str:
    spread = f" ± {group[value].std():.3f}" if len(group) > 1 else ""
    before = group[value.replace("metrics.", "zero_shot.", 1)].mean()
    cells = [*name, f"{group[value].mean():.3f}{spread}", f"{before:.3f}", len(group)]
    step = group["timings.step_median"].median() if "timings.step_median" in group else float("nan")
    cells += [f"{int(group['parameters.trainable'].iloc[0]):,}", "-" if pd.isna(step) else f"{step:.3f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def _origin(done: pd.DataFrame, frame: pd.DataFrame) -> str:
    """Task, model, scale, seeds, commit and command behind the table."""
    shared = {
        "task": done["config.task.name"].unique(),
        "model": done["config.model.name"].unique(),
        "steps": done["timings.steps"].dropna().astype(int).unique(),
        "batch": done["config.batch_size"].unique(),
        "seeds": sorted(done["seed"].unique()),
        "commit": [str(c)[:10] for c in done["environment.commit"].unique()],
        "threads": done["environment.threads"].astype(int).unique(),
    }
    said = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in shared.items())
    dirty = " (with uncommitted changes)" if done["environment.dirty"].any() else ""
    unfinished = len(frame) - len(done)
    more = f" {unfinished} runs did not finish and are not in the table." if unfinished else ""
    return f"{said}{dirty}. A run: `{done['command'].iloc[0]}`.{more}"


def _said(value: Any) -> Any:
    """A value as a cell; "-" for a hyperparameter that a variant has not."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if pd.isna(value):
        return "-"
    return int(value) if isinstance(value, float) and value.is_integer() else value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.results.table", description=__doc__)
    parser.add_argument("folders", nargs="+", help="folders with runs, at any depth")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    given = parser.parse_args()
    try:
        frame = load(*given.folders)
    except ValueError as mistake:
        parser.error(str(mistake))
    for _, part in frame.groupby("config.task.name"):
        print(markdown(part, given.split), end="\n\n")


if __name__ == "__main__":
    main()
