"""Tables of runs: an experiment's, laid out as its YAML says, and that of any other sweep.

for table in tables(runs.load("runs")):
    print(table.markdown())                  # also .latex(), .html(), .csv()

A cell is a mean over seeds with its 95 % interval. The best of a task is bold, the second underlined, and ≈
marks all that cannot be told from the best; the paper's own numbers stand in rows of their own.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from lora_zoo.analysis.columns import format_value
from lora_zoo.analysis.comparison import Cells
from lora_zoo.analysis.integrity import sound
from lora_zoo.analysis.protocol import cells
from lora_zoo.report.origin import command, doubts, origin
from lora_zoo.report.plan import NOWHERE, Plan
from lora_zoo.report.typeset import Row, Table, Told
from lora_zoo.runs.keys import axes, column


def tables(frame: pd.DataFrame) -> list[Table]:
    """The main table of each experiment in the frame, and one of the runs of none."""
    return [main_table(part) for _, part in frame.groupby("experiment", sort=False)]


def main_table(frame: pd.DataFrame) -> Table:
    """The table of one experiment's runs, or of one sweep. ValueError where no run may be counted."""
    about = _about(frame)
    counted = sound(frame)
    if counted.empty:
        raise ValueError(f"none of the {len(frame)} runs may be counted: {'; '.join(doubts(frame))}")
    value = _value(counted, about.get("value", "test"))
    rows = list(about.get("rows") or axes(counted) or ["variant"])
    columns = list(about.get("columns", []))
    found = cells(frame, [*rows, *columns], value, about.get("tune", []))
    plan = Plan(about, found, rows, columns, counted)
    body = _grid(plan) if columns else _list(plan)
    return Table(
        name=about.get("name") or "runs",
        title=_title(about, counted, value),
        rule=_rule(found),
        headers=(*map(_label, rows), *(("",) if columns and plan.quoted else ())),
        columns=body.columns,
        rows=body.rows,
        notes=(*_explained(plan), *dict.fromkeys([*found.warnings, *doubts(frame)]), *origin(counted, about)),
        command=command(counted, about),
        records=tuple(_records(plan)),
    )


class _Body(NamedTuple):
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def _grid(plan: Plan) -> _Body:
    """Rows x columns; under each row of ours, the paper's where it has one."""
    across = plan.keys(plan.columns)
    rows = []
    for down in plan.keys(plan.rows):
        keys = [(*down, *words) for words in across]
        ours = ("ours",) if plan.quoted else ()
        rows.append(Row((*down, *ours), tuple(map(plan.entry, keys))))
        if quotes := [quote for key in keys if (quote := plan.quote(key))]:
            rows.append(Row((*down, _paper(quotes)), tuple(map(plan.quote_entry, keys))))
    names = [
        ", ".join(f"{_label(a)} {w}" for a, w in zip(plan.columns, words, strict=True)) for words in across
    ]
    return _Body(tuple(names), tuple(rows))


def _list(plan: Plan) -> _Body:
    """One cell a row, with what it cost; best first where the experiment gives no order."""
    keys = plan.keys(plan.rows)
    if not plan.about:
        sign = {"lower": 1, "higher": -1, "": 0}[plan.cells.better]
        keys.sort(key=lambda words: (_task(plan, words), sign * plan.measured[words].mean))
    costs = {**_chosen(plan), **_costs(plan)}
    paper = [_paper(filter(None, map(plan.quote, keys)))] if plan.quoted else []
    names = [_metric(plan.runs, plan.cells.value), *paper, "n", *costs]
    rows = []
    for words in keys:
        told = [Told(values.get(words, "-")) for values in costs.values()]
        quoted = [plan.quote_entry(words)] if plan.quoted else []
        cell = plan.measured.get(words)
        rows.append(Row(words, (plan.entry(words), *quoted, Told(str(cell.n if cell else 0)), *told)))
    return _Body(tuple(names), tuple(rows))


def _paper(quotes: Iterable[Mapping[str, Any]]) -> str:
    """What the paper's numbers stand under, with what they were measured on."""
    of = _listed(quote.get("of", "") for quote in quotes)
    return f"paper ({of})" if of else "paper"


def _chosen(plan: Plan) -> dict[str, dict[tuple[str, ...], str]]:
    """Title: {cell: the tuned value and how many were tried}."""
    tuned = dict.fromkeys(axis for cell in plan.cells.cells for axis in cell.chosen)
    return {
        f"{_label(axis)} (n tried)": {
            words: f"{format_value(cell.chosen[axis])} ({cell.tries})"
            for words, cell in plan.measured.items()
            if axis in cell.chosen
        }
        for axis in tuned
    }


_COSTS = {
    "trainable": ("trainable", "{:,.0f}"),
    "saved_bytes": ("activation memory (bytes)", "{:,.0f}"),
    "retention_before": ("held-out LM loss, before", "{:.3f}"),
    "retention_after": ("held-out LM loss, after", "{:.3f}"),
    "step_seconds": ("s/step", "{:.3f}"),
}


def _costs(plan: Plan) -> dict[str, dict[tuple[str, ...], str]]:
    """Title: {cell: the median over its runs}, for what is known of any run."""
    runs = plan.runs.set_index("run")
    shown = {f"zero_shot_{plan.cells.value}": ("before training", "{:.3f}"), **_COSTS}
    found: dict[str, dict[tuple[str, ...], str]] = {}
    for name, (title, form) in shown.items():
        if name != plan.cells.value and name in runs and runs[name].notna().any():
            medians = {words: runs.loc[cell.runs, name].median() for words, cell in plan.measured.items()}
            found[title] = {words: form.format(m) for words, m in medians.items() if not math.isnan(m)}
    return found


def _explained(plan: Plan) -> list[str]:
    """How to read the cells, and how many runs are behind each."""
    counts = sorted({cell.n for cell in plan.cells.cells})
    each = "in brackets" if plan.columns else "n"
    runs = (
        f"n = {counts[0]} runs in every cell" if len(counts) == 1 else f"{each}: the number of runs of a cell"
    )
    notes = [f"bold: best mean of a task; underlined: second; ≈: cannot be told from the best; {runs}"]
    if plan.look.scale != 1:
        notes.append("ours in percent, as the paper's")
    if plan.quoted:
        paper = plan.about.get("paper", "the paper")
        notes.append(f"paper: {paper}, its own model and data, ± as it gives it; not run here")
    metrics = plan.runs.groupby("task")["metric"].first()
    if metrics.nunique() > 1 and plan.cells.value in ("test", "validation"):
        notes.append("; ".join(f"{task}: {metric}" for task, metric in metrics.items()))
    return notes


def _records(plan: Plan) -> Iterable[dict[str, Any]]:
    for words, cell in plan.measured.items():
        place, interval = plan.places.get(words, NOWHERE), cell.interval
        quote = plan.quote(words) or {}
        yield {
            **dict(zip(plan.by, words, strict=True)),
            **{f"chosen {axis}": format_value(value) for axis, value in cell.chosen.items()},
            **{"value": plan.cells.value, "mean": cell.mean, "low": interval.low, "high": interval.high},
            **{"n": cell.n, "tries": cell.tries, "trainable": cell.trainable},
            **{"mark": place.mark, "tied": place.tied or place.mark == "best"},
            **{"paper": quote.get("value"), "paper_spread": quote.get("spread"), "of": quote.get("of")},
            "runs": " ".join(cell.runs),
        }


def _about(frame: pd.DataFrame) -> Mapping[str, Any]:
    return next((about for about in reversed(list(frame["experiment_about"])) if about), {})


def _value(counted: pd.DataFrame, wanted: str) -> str:
    """The column to compare; validation where the runs were never judged on test."""
    name = column(counted, wanted)
    lacking = name == "test" and counted["test"].isna().all()
    return "validation" if lacking and counted["validation"].notna().any() else name


def _title(about: Mapping[str, Any], counted: pd.DataFrame, value: str) -> str:
    return str(about.get("title") or f"{_metric(counted, value)} of {len(counted)} runs")


def _metric(runs: pd.DataFrame, value: str) -> str:
    names = _listed(runs["metric"].dropna())
    return f"{names} ({value})" if value in ("test", "validation") else _label(value)


def _rule(found: Cells) -> str:
    return found.rule[:1].upper() + found.rule[1:] + "."


def _label(axis: str) -> str:
    for prefix in ("variant.hyperparameters.", "config.", "variant."):
        axis = axis.removeprefix(prefix)
    return axis


def _task(plan: Plan, words: tuple[str, ...]) -> str:
    return words[plan.by.index("task")] if "task" in plan.by else ""


def _listed(words: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(word) for word in words if word))
