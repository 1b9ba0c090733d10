"""One HTML file for one or several sweeps: tables, figures, claims, findings, settings and commands.

It needs no network: plotly.js is packed into it once, and its policy forbids the browser any request. What
comes from results is escaped wherever it stands. Without JavaScript, in print and until plotly is
unpacked the figures are the printed ones.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from lora_zoo.report.figures.cells import missing
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.looks import Look
from lora_zoo.report.gallery import Views

BUTTONS = 6  # views chosen by buttons; more by a list
STATIC = 1_500_000  # bytes of printed figures in a page
SWATCHES = {
    "circle": '<circle cx="12" cy="6" r="4"/>',
    "square": '<rect x="8" y="2" width="8" height="8"/>',
    "diamond": '<path d="M12 1l5 5-5 5-5-5z"/>',
    "triangle-up": '<path d="M12 1l5 9H7z"/>',
    "triangle-down": '<path d="M12 11l5-9H7z"/>',
    "cross": '<path d="M10 1h4v3h3v4h-3v3h-4V8H7V4h3z"/>',
    "x": '<path d="M9 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
    "star": '<path d="M12 0l1.8 4H18l-3.2 2.7L16 11l-4-2.6L8 11l1.200-4.300L6 4h4.200z"/>',
}
STROKES = {"solid": "", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2", "longdash": "9 3"}


@dataclass(frozen=True)
class Verdict:
    """A line of the claims' page."""

    name: str
    says: str
    source: str
    status: str
    effect: str
    said: str
    command: str = ""


@dataclass(frozen=True)
class Line:
    """A run in the list of runs."""

    cells: Sequence[str]
    command: str


@dataclass(frozen=True)
class Page:
    """What a report says. `tables` are HTML and trusted, all else is text."""

    title: str
    question: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[str] = ()
    figures: Sequence[Views] = ()
    absent: Sequence[str] = ()
    claims: Sequence[Verdict] = ()
    undecided: Sequence[Verdict] = ()
    """Claims that these runs say nothing about."""
    tally: str = ""
    findings: Sequence[Any] | None = None
    """What integrity found; None where nobody looked."""
    axes: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()
    columns: Sequence[str] = ()
    runs: Sequence[Line] = ()
    footer: str = ""


@dataclass(frozen=True)
class _View:
    id: str
    name: str
    chart: Chart
    static: str

    @property
    def legend(self) -> list[tuple[str, Look, str]]:
        return self.chart.legend


@dataclass(frozen=True)
class _Figure:
    heading: str
    choice: str
    views: Sequence[_View]


def html(page: Page) -> str:
    """The page as a file's content. The same results give the same bytes."""
    figures = _drawn(page.figures)
    charts = {view.id: view.chart.interactive() for figure in figures for view in figure.views}
    script, style = _template("page.js"), _template("page.css")
    packed, plotly_hash = _plotly()
    environment = Environment(
        loader=PackageLoader("lora_zoo.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals["swatch"] = swatch
    return environment.get_template("page.html").render(
        page=_shown(page, figures),
        policy=_policy(plotly_hash, _hash(script)),
        buttons=BUTTONS,
        plotly=packed,
        charts=htmlsafe_json_dumps(charts, dumps=_json),
        script=Markup(script),
        style=Markup(style),
    )


def _shown(page: Page, figures: Sequence[_Figure]) -> Mapping[str, Any]:
    return vars(page) | {
        "figures": figures,
        "tables": [_scrolling(table) for table in page.tables],
    }


def _scrolling(table: str) -> Markup:
    """The table's HTML with a box around the table itself, so that a wide one does not widen the page."""
    box = '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>'
    return Markup(table.replace("<table>", box).replace("</table>", "</table></div>"))


def _drawn(figures: Sequence[Views]) -> list[_Figure]:
    """Every chart with its printed form, as long as there is room: the first view of each figure first."""
    left, static = STATIC, {}
    everything = [(g, i, chart) for g, v in enumerate(figures) for i, chart in enumerate(v.charts.values())]
    for group, index, chart in sorted(everything, key=lambda one: one[1]):
        if left > 0:
            static[group, index] = _data_uri(chart)
            left -= len(static[group, index])
    return [
        _Figure(
            views.heading,
            views.choice,
            [
                _View(f"{group}-{index}", name, chart, static.get((group, index), ""))
                for index, (name, chart) in enumerate(views.charts.items())
            ],
        )
        for group, views in enumerate(figures)
    ]


def _data_uri(chart: Chart) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(chart.svg).decode()}"


def _json(tree: Any, **options: Any) -> str:
    return json.dumps(tree, allow_nan=False, separators=(",", ":"), **options)


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js as base64 of gzip, a third of its size, and its hash for the policy."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    return base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode(), _hash(source)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _policy(*scripts: str) -> str:
    """No request to anywhere; no script but those of these hashes, whatever a result may hold."""
    return (
        f"default-src 'none'; script-src {' '.join(scripts)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _template(name: str) -> str:
    return (files("lora_zoo.report") / "templates" / name).read_text(encoding="utf-8")


def swatch(look: Look, mode: str) -> Markup:
    """A small drawing of how a series looks."""
    line = f'<path d="M0 6h24" fill="none" stroke-width="2" stroke-dasharray="{STROKES[look.line[1]]}"/>'
    mark = SWATCHES[look.point[1]]
    inside = (line if "lines" in mode else "") + (mark if "markers" in mode else "")
    colour = f'fill="{look.colour}" stroke="{look.colour}"'
    return Markup(f'<svg width="24" height="12" aria-hidden="true" {colour} stroke-width="0">{inside}</svg>')


def facts(runs: pd.DataFrame) -> dict[str, str]:
    """What the runs are, in a few words each: how many, of what, from which code."""
    states = runs["state"].value_counts()
    said = {
        "Runs": ", ".join(f"{n} {state}" for state, n in states.items()),
        "Variants": _listed(runs, "variant"),
        "Tasks": _listed(runs, "task"),
        "Model": _listed(runs, "model"),
        "Seeds": _listed(runs, "seed"),
        "Metric": _listed(runs, "metric"),
        "Ended": _ended(runs),
        "Machine": _listed(runs, "environment.device"),
        "torch": _listed(runs, "environment.packages.torch"),
        "Commit": _commits(runs),
    }
    return {name: text for name, text in said.items() if text}


def _ended(runs: pd.DataFrame) -> str:
    """When the last run ended."""
    times = pd.to_datetime(runs["ended"], utc=True, errors="coerce").dropna() if "ended" in runs else []
    return f"{max(times):%Y-%m-%d %H:%M} UTC" if len(times) else ""


def _listed(runs: pd.DataFrame, column: str) -> str:
    values = sorted(runs[column].dropna().unique()) if column in runs else []
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _commits(runs: pd.DataFrame) -> str:
    commits = [str(commit)[:10] for commit in runs["commit"].dropna().unique()]
    dirty = " with uncommitted changes" if runs["dirty"].fillna(False).astype(bool).any() else ""
    return ", ".join(commits) + (dirty if commits else "")


SETTING = re.compile(r"^(config\.|variant\.hyperparameters\.)")


def shared_settings(runs: pd.DataFrame) -> dict[str, str]:
    """The settings that have one value in all runs, by their key on the command line."""
    columns = [column for column in runs if SETTING.match(str(column))]
    same = {SETTING.sub("", column): runs[column] for column in columns if _same(runs[column])}
    return {key: _text(values.iloc[0]) for key, values in sorted(same.items()) if not missing(values.iloc[0])}


def _same(values: pd.Series) -> bool:
    return int(values.astype(str).nunique()) == 1


def lines(runs: pd.DataFrame, axes: Sequence[str]) -> tuple[list[str], list[Line]]:
    """The list of runs: its columns, and each run's cells and command."""
    shown = ["run", *axes, "seed", "state", "validation", "test", "trainable", "train_seconds"]
    shown = [column for column in dict.fromkeys(shown) if column in runs]
    commands = runs["command"] if "command" in runs else pd.Series("", runs.index)
    listed = [
        Line([_text(value) for value in row], _text(command))
        for row, command in zip(runs[shown].itertuples(index=False, name=None), commands, strict=True)
    ]
    return [*(column.rpartition(".")[2].replace("_", " ") for column in shown), "command"], listed


def _text(value: Any) -> str:
    if missing(value):
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


__all__ = ["Line", "Page", "Verdict", "facts", "html", "lines", "shared_settings"]
