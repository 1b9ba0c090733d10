"""Tables of runs: an experiment's, laid out as its YAML says, and that of any other sweep.

for table in tables(runs.load("runs")):
    print(table.markdown())                  # also .latex(), .html(), .csv()

A cell is a mean over seeds with its 95 % interval. The best of a task is bold, the second underlined, and ≈
marks all that are not significantly different from the best; the paper's own numbers have rows of their own.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from lora_zoo.analysis.columns import format_value, plain
from lora_zoo.analysis.comparison import Cells
from lora_zoo.analysis.continual import continual
from lora_zoo.analysis.integrity import Finding, findings, sound
from lora_zoo.analysis.protocol import cells, found_of
from lora_zoo.report.layout import Layout, Words
from lora_zoo.report.provenance import command, doubts, origin
from lora_zoo.report.render import Row, Table, TableCell
from lora_zoo.report.titles import label_of, written
from lora_zoo.runs.curves import groups
from lora_zoo.runs.keys import axes, column
from lora_zoo.runs.views import WHOLE, by_view

COSTS = {
    "trainable": ("trainable", "{:,.0f}"),
    "saved_bytes": ("activation memory (MB)", "{:,.1f}"),
    "learning_accuracy": ("each task when learned", "{:.3f}"),
    "backward_transfer": ("backward transfer", "{:.3f}"),
    "task_forgetting": ("forgetting of tasks", "{:.3f}"),
    "forward_transfer": ("forward transfer", "{:.3f}"),
    "routing_accuracy": ("routing accuracy", "{:.3f}"),
    "retention_before": ("held-out LM loss, before", "{:.3f}"),
    "retention_after": ("held-out LM loss, after", "{:.3f}"),
    "data.train.information": ("bits in the data", "{:,.0f}"),
    "bits_per_parameter": ("bits per parameter", "{:.3f}"),
    "step_seconds": ("s/step", "{:.3f}"),
    "load_seconds": ("start-up (s)", "{:.1f}"),
}
UNITS = {"saved_bytes": 1e6}
"""The divisor of a column's numbers in a table."""


def tables(frame: pd.DataFrame) -> list[Table]:
    """The main table of each experiment and of the runs of none, those of views and of sequences of tasks."""
    parts = [part for _, part in frame.groupby("experiment", sort=False)]
    examined = [*map(findings, parts)]
    made = [table_of(layout_of(part, own)) for part, own in zip(parts, examined, strict=True)]
    return [*made, *further_tables(parts, examined)]


def further_tables(parts: Sequence[pd.DataFrame], examined: Sequence[Sequence[Finding]]) -> list[Table]:
    """The tables of each experiment's views and of its sequences of tasks, where it has them.

    `examined` are the findings of each part.
    """
    counted = [sound(part, own) for part, own in zip(parts, examined, strict=True)]
    views = [view_table(part) for part in map(_with_views, counted) if len(part)]
    return [*views, *filter(None, map(continual_table, counted))]


def _with_views(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that were judged in more than one view."""
    kept = frame["record"].map(lambda record: bool(record.get("views"))) if "record" in frame else []
    return frame[kept] if any(kept) else frame.iloc[:0]


def continual_table(frame: pd.DataFrame) -> Table | None:
    """Average accuracy, transfer and forgetting of runs that learned tasks in sequence; None without any."""
    if "record" not in frame or groups(frame).empty:
        return None
    told = continual(sound(frame))
    if told.empty:
        return None
    runs = frame.merge(told, on="run")
    about: Mapping[str, Any] = next(filter(None, frame["experiment_about"]), {})
    by = [*about.get("rows", ()), *about.get("columns", ())]
    asked = {"value": "average_accuracy"} | ({"rows": by} if by else {})
    made = main_table(runs.assign(experiment="", experiment_about=[asked] * len(runs)))
    title = f"A sequence of tasks: mean over tasks at the end, {len(runs)} runs"
    return replace(made, name=f"{about.get('name') or 'runs'}_continual", title=title)


def view_table(frame: pd.DataFrame) -> Table:
    """The table of these runs by view (DyLoRA's ranks) and by what they differ in.

    ValueError where no run may be counted.
    """
    split = by_view(sound(frame))
    made = main_table(split.assign(experiment="", experiment_about=[{}] * len(split)))
    about: Mapping[str, Any] = next(filter(None, frame["experiment_about"]), {})
    title = f"The {len(split)} views of {len(split[split['view'] == WHOLE])} runs"
    return replace(made, name=f"{about.get('name') or 'runs'}_views", title=title)


def main_table(frame: pd.DataFrame) -> Table:
    """The table of one experiment's runs, or of one sweep. ValueError where no run may be counted."""
    return table_of(layout_of(frame))


def layout_of(frame: pd.DataFrame, examined: Sequence[Finding] | None = None) -> Layout:
    """The cells of one experiment's runs, or of one sweep. ValueError where no run may be counted.

    `examined` are the frame's findings, where they are known.
    """
    about: Mapping[str, Any] = next(filter(None, reversed(list(frame["experiment_about"]))), {})
    examined = findings(frame) if examined is None else examined
    counted = sound(frame, examined)
    wrong = doubts(frame, examined)
    if counted.empty:
        raise ValueError(f"none of the {len(frame)} runs may be counted: {'; '.join(wrong)}")
    value = _value(counted, about.get("value", "test"))
    rows, columns = list(about.get("rows") or axes(counted) or ["variant"]), list(about.get("columns", []))
    found = cells(frame, [*rows, *columns], value, about.get("tune", []), found=examined)
    return Layout(about, found, rows, columns, counted, wrong)


def table_of(layout: Layout) -> Table:
    """The table of cells that are laid out, with what must be said of them."""
    about, found, counted = layout.about, layout.found, layout.runs
    names, body = _grid(layout) if layout.columns else _list(layout)
    return Table(
        name=about.get("name") or "runs",
        title=str(about.get("title") or f"{metric_of(counted, found.value)} of {len(counted)} runs"),
        rule=f"{found.rule[:1].upper()}{found.rule[1:]}.",
        headers=(*map(label_of, layout.rows), *(("",) if layout.columns and layout.quoted else ())),
        columns=tuple(names),
        rows=tuple(body),
        notes=(
            *_legend(layout),
            *_stops(found),
            *_searches(counted),
            *dict.fromkeys([*found.warnings, *layout.doubts]),
            *origin(counted),
        ),
        command=command(counted, about),
        records=tuple(_records(layout)),
    )


def _grid(layout: Layout) -> tuple[list[str], list[Row]]:
    """Rows x columns; under each row of ours, the paper's where it has one."""
    across, rows = layout.keys(layout.columns), []
    for down in layout.keys(layout.rows):
        keys = [(*down, *words) for words in across]
        ours = ("ours",) if layout.quoted else ()
        header = layout.header(down)
        rows.append(Row((*header, *ours), tuple(map(layout.cell, keys))))
        if quotes := [quote for key in keys if (quote := layout.quote(key))]:
            rows.append(Row((*header, _paper(quotes)), tuple(map(layout.quoted_cell, keys))))
    axes_words = [zip(layout.columns, words, strict=True) for words in across]
    names = [", ".join(written(axis, w, alone=False) for axis, w in pairs) for pairs in axes_words]
    return names, rows


def _list(layout: Layout) -> tuple[list[str], list[Row]]:
    """One cell a row, with what it cost; best first where the experiment gives no order."""
    keys = layout.keys(layout.rows)
    if not layout.about:
        sign = {"lower": 1, "higher": -1, "": 0}[layout.found.better]
        keys.sort(key=lambda words: (layout.task(words), sign * layout.measured[words].mean))
    costs = {**_chosen(layout), **_found(layout), **_scales(layout), **_costs(layout)}
    paper = [_paper(filter(None, map(layout.quote, keys)))] if layout.quoted else []
    rows = []
    for words in keys:
        quoted = [layout.quoted_cell(words)] if layout.quoted else []
        n = layout.measured[words].n if words in layout.measured else 0
        more = [str(n), *(values.get(words, "-") for values in costs.values())]
        rows.append(Row(layout.header(words), (layout.cell(words), *quoted, *map(TableCell, more))))
    return [metric_of(layout.runs, layout.found.value), *paper, "n", *costs], rows


def _paper(quotes: Iterable[Mapping[str, Any]]) -> str:
    """The header of the paper's numbers, with what they were measured on."""
    of = _join(quote.get("of", "") for quote in quotes)
    return f"paper ({of})" if of else "paper"


def _chosen(layout: Layout) -> dict[str, dict[Words, str]]:
    """Title: {cell: the tuned value and how many were tried}."""
    found: dict[str, dict[Words, str]] = {}
    for words, cell in layout.measured.items():
        for axis, value in cell.chosen.items():
            own = found.setdefault(f"{label_of(axis)} (n tried)", {})
            own[words] = f"{format_value(value)} ({cell.tries})"
    return found


def _found(layout: Layout) -> dict[str, dict[Words, str]]:
    """Title: {cell: the value that lr=auto or a search has found}, of each key."""
    found = found_of(layout.runs)
    runs = layout.runs.set_index("run")
    return {
        f"{label_of(key)} (found)": {
            words: format_value(plain(runs.loc[cell.runs, column(layout.runs, key)].iloc[0]))
            for words, cell in layout.measured.items()
        }
        for key in (found.keys.split(", ") if found else ())
    }


def _scales(layout: Layout) -> dict[str, dict[Words, str]]:
    """Title: {cell: the scale s of its updates}, where any has one."""
    runs = layout.runs.set_index("run")
    if "scale" not in runs or runs["scale"].isna().all():
        return {}
    known = {words: runs.loc[cell.runs, "scale"].dropna() for words, cell in layout.measured.items()}
    return {"scale": {words: _join(map(_short, s)) for words, s in known.items() if len(s)}}


def _shared(values: Mapping[Words, str], by: Sequence[str]) -> str:
    """Values as one for all cells, or by those of the one axis that decides them, or else of each cell."""
    if len(same := set(values.values())) == 1:
        return f"{same.pop()} in every cell"
    for place, axis in enumerate(by):
        of_axis = dict.fromkeys((words[place], value) for words, value in values.items())
        if len(of_axis) == len({key for key, _ in of_axis}):
            at = {value: [key for key, its in of_axis if its == value] for _, value in of_axis}
            return "; ".join(f"{value} at {label_of(axis)} {_join(keys)}" for value, keys in at.items())
    return "; ".join(f"{' '.join(words)}: {value}" for words, value in values.items())


def _short(scale: Any) -> str:
    return scale if isinstance(scale, str) else f"{scale:.4g}"


def _costs(layout: Layout) -> dict[str, dict[Words, str]]:
    """Title: {cell: the median over its runs}, for what is known of any run."""
    runs, value = layout.runs.set_index("run"), layout.found.value
    found: dict[str, dict[Words, str]] = {}
    against = {
        f"zero_shot_{value}": ("before training", "{:.3f}"),
        f"majority_{value}": ("commonest class", "{:.3f}"),
    }
    for name, (title, form) in {**against, **COSTS}.items():
        if name != value and name in runs and runs[name].notna().any():
            column = runs[name] / UNITS.get(name, 1)
            medians = {words: column[cell.runs].median() for words, cell in layout.measured.items()}
            found[title] = {words: form.format(m) for words, m in medians.items() if not math.isnan(m)}
    return found


def _legend(layout: Layout) -> Iterator[str]:
    """The legend of the cells, and the number of runs behind each."""
    counts = sorted({cell.n for cell in layout.found.cells})
    each = f"{'in brackets' if layout.columns else 'n'}: the number of runs of a cell"
    runs = f"n = {counts[0]} runs in every cell" if len(counts) == 1 else each
    tied = "≈: not significantly different from the best"
    yield f"bold: best mean of a task, none where several share it; underlined: second; {tied}; {runs}"
    majority = f"majority_{layout.found.value}"
    if layout.columns and majority in layout.runs and layout.runs[majority].notna().any():
        for task, value in layout.runs.groupby("task")[majority].median().dropna().items():
            yield f"{task}: the commonest class alone reaches {layout.form.number(value)}"
    if layout.columns and (scales := _scales(layout).get("scale")):
        yield f"scale s of the updates: {_shared(scales, layout.by)}"
    if layout.form.scale != 1:
        yield "ours in percent, as the paper's"
    if layout.quoted:
        paper = layout.about.get("paper", "the paper")
        yield f"paper: {paper}, its own model and data, ± as it gives it; not run here"
    metrics = layout.runs.groupby("task")["metric"].first()
    if metrics.nunique() > 1 and layout.found.value in ("test", "validation"):
        yield "; ".join(f"{task}: {metric}" for task, metric in metrics.items())


def _stops(found: Cells) -> Iterator[str]:
    """The rule that stopped each cell of a sweep with seed=auto."""
    parts = found.within("task") if "task" in found.by else {"": found}
    for task, part in parts.items():
        about = f"seeds of {task}" if len(parts) > 1 else "seeds"
        yield from (f"{about}: {stop}" for stop in part.stops())


def _searches(counted: pd.DataFrame) -> Iterator[str]:
    """The settings that lr=auto or a search found, and what was spent on them."""
    if settings := found_of(counted):
        yield from (f"{settings.keys}: {found}" for found in settings.found)


def _records(layout: Layout) -> Iterator[dict[str, Any]]:
    for words, cell in layout.measured.items():
        mark, tied = layout.marks.get(words, ("", False))
        quote, interval = layout.quote(words) or {}, cell.interval
        yield {
            **dict(zip(layout.by, words, strict=True)),
            **{f"chosen {axis}": format_value(value) for axis, value in cell.chosen.items()},
            **{"value": layout.found.value, "mean": cell.mean, "low": interval.low, "high": interval.high},
            **{"n": cell.n, "tries": cell.tries, "trainable": cell.trainable},
            **{"mark": mark, "tied": tied or mark == "best"},
            **{"paper": quote.get("value"), "paper_spread": quote.get("spread"), "of": quote.get("of")},
            "runs": " ".join(cell.runs),
        }


def _value(counted: pd.DataFrame, wanted: str) -> str:
    """The column to compare; validation where the runs were never judged on test."""
    name = column(counted, wanted)
    lacking = name == "test" and counted["test"].isna().all()
    return "validation" if lacking and counted["validation"].notna().any() else name


def metric_of(runs: pd.DataFrame, value: str) -> str:
    names = _join(runs["metric"].dropna())
    return f"{names} ({value})" if value in ("test", "validation") else label_of(value)


def _join(words: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(word) for word in words if word))
