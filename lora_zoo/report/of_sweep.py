"""The end of a sweep on the terminal, read from its records alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_zoo.analysis.statistics import interval
from lora_zoo.runs.degenerate import finding
from lora_zoo.runs.loading import RATES
from lora_zoo.runs.record import RESULT, read_record
from lora_zoo.runs.summary import differing, overrides_of, scale_of


def print_sweep(folder: Path) -> None:
    """A row a cell of the sweep: its mean over seeds with the 95 % t interval; failed runs say why."""
    console = Console()
    found = [run for path in sorted(folder.glob(f"*/{RESULT}")) if (run := read_record(path.parent))]
    runs = [run for run in found if not run.get("config", {}).get("trial")]
    of = " of learning rates" if (folder / RATES).is_file() else ""
    trials = f", and {len(found) - len(runs)} trials{of}" if len(found) > len(runs) else ""
    console.print(_table_of_cells(f"{folder.name}: {len(runs)} runs{trials}", runs))
    for result in (r for r in runs if r["state"] != "done"):
        reason = result.get("error", {}).get("message", "no reason was recorded")
        console.print(
            f"{result['state']}: {result['name']}: {reason}", style="red", markup=False, highlight=False
        )
    for text, count in Counter(filter(None, map(finding, runs))).items():
        line = f"finding: {text} ({count} of {len(runs)} runs)"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
    if not any(run.get("config", {}).get("experiment") for run in runs):
        line = f"next: python -m lora_zoo.report {folder}   (tables, figures and one page)"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table_of_cells(title: str, runs: Sequence[dict[str, Any]]) -> Table:
    given = [overrides_of(run["command"]) for run in runs]
    keys = [key for key in differing(given) if key != "seed"]
    judged = {_metric(run): next(reversed(run["metrics"])) for run in runs if run.get("metrics")}
    metrics = list(dict.fromkeys(map(_metric, runs)))
    one = f"{metrics[0]} ({judged.get(metrics[0], '-')})" if len(metrics) == 1 else ""
    cells: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run, own in zip(runs, given, strict=True):
        cells.setdefault((*(own.get(key, "-") for key in keys), _metric(run)), []).append(run)
    table = Table(title=title, title_justify="left")
    own_columns = [*(key for key in ("rank",) if key not in keys), "scale", "trainable", "s/step"]
    for column in (*keys, *(() if one else ("metric",)), one or "mean", "n", *own_columns):
        right = column not in (*keys, "metric")
        table.add_column(escape(column), justify="right" if right else "left", overflow="fold")
    for names, members in cells.items():
        shown = names[:-1] if one else names
        table.add_row(*map(escape, shown), *_cell_row(members, with_rank="rank" not in keys))
    return table


def _metric(result: Mapping[str, Any]) -> str:
    return str(result.get("metric", "-"))


def _cell_row(runs: Sequence[dict[str, Any]], *, with_rank: bool) -> list[str]:
    """Mean and half an interval, the number of runs, rank, scale, parameters and time of a step of a cell."""
    done = [run for run in runs if run["state"] == "done"]
    values = [float(next(reversed(run["metrics"].values()))[run["metric"]]) for run in done]
    mean = interval(values)
    half = f" ± {mean.high - mean.estimate:.2g}" if len(values) > 1 else ""
    ranks = {str(run.get("variant", {}).get("hyperparameters", {}).get("rank", "-")) for run in runs}
    sizes = {f"{size:,}" for run in runs if (size := run.get("parameters", {}).get("trainable"))}
    steps = [step for run in done if (step := run.get("timings", {}).get("step_median"))]
    return [
        f"{mean.estimate:.4g}{half}" if values else "-",
        str(len(done)) if len(done) == len(runs) else f"{len(done)} of {len(runs)}",
        *([", ".join(sorted(ranks))] if with_rank else []),
        ", ".join(sorted({scale for run in runs if (scale := scale_of(run))})) or "-",
        ", ".join(sorted(sizes)) or "-",
        f"{median(steps):.3g}" if steps else "-",
    ]
