"""One HTML file for one or several sweeps: tables, figures, claims, findings, settings and commands.

It needs no network: Vega-Lite is packed into it once, and its policy forbids the browser any request, and any
script but its own. What comes from results is escaped wherever it stands. Without JavaScript the figures are
the printed ones.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from lora_zoo.claims import show
from lora_zoo.report.figure_list import Views
from lora_zoo.report.figures.chart import VEGA_LITE
from lora_zoo.report.figures.style import CONFIG
from lora_zoo.report.render import Table
from lora_zoo.report.report import Report

BUTTONS = 6  # views chosen by buttons; more by a list
STATIC = 400_000  # bytes of printed figures in a page, for readers without JavaScript


def html(report: Report, home: str = "") -> str:
    """The page as a file's content. The same results give the same bytes.

    `home` is the page beside it that lists this one.
    """
    figures = [*report.rankings, *report.figures.views]
    charts = [[chart.interactive() for chart in views.charts.values()] for views in figures]
    drawn = {"config": CONFIG | {"background": "transparent"}, "charts": charts}
    script, library = scripts("sort.js", "page.js"), _library()
    return template("page.html").render(
        effect=show.effect,
        totals=show.totals,
        report=report,
        home=home,
        figures=figures,
        printed=_printed(figures),
        buttons=BUTTONS,
        policy=policy(library, script),
        library=_packed(library),
        charts=_packed(json.dumps(drawn, allow_nan=False, separators=(",", ":"))),
        script=Markup(script),
        style=style(),
        scrolling=scrolling,
    )


def scrolling(table: Table) -> Markup:
    """The table's HTML with a box around the table itself, so that a wide one does not widen the page."""
    box = '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table'
    return Markup(table.html().replace("<table", box).replace("</table>", "</table></div>"))


def _printed(figures: Sequence[Views]) -> dict[tuple[int, int], str]:
    """Charts in their printed form, as long as there is room: the first view of each figure first."""
    every = {(g, i): c for g, views in enumerate(figures) for i, c in enumerate(views.charts.values())}
    left, found = STATIC, dict.fromkeys(every, "")
    for view, chart in sorted(every.items(), key=lambda item: item[0][1]):
        if left > 0:
            found[view] = chart.data_uri
            left -= len(found[view])
    return found


@cache
def _library() -> str:
    """Vega, Vega-Lite and the interpreter of expressions, which a strict policy needs."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE))


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def template(name: str) -> Template:
    """A page's template; whatever it shows is escaped."""
    loader = PackageLoader("lora_zoo.report")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template(name)


def style() -> Markup:
    """The style sheet of every page."""
    return Markup(_template("page.css"))


def scripts(*names: str) -> str:
    """These scripts as one."""
    return "\n".join(map(_template, names))


def policy(*scripts: str) -> str:
    """No request to anywhere; no script but these, whatever a result may hold."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    own = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {own}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _template(name: str) -> str:
    return (files("lora_zoo.report") / "templates" / name).read_text(encoding="utf-8")
