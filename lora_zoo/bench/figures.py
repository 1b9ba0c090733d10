"""The benchmark's figures: a dot for each median, a whisker for its quartiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart."""


@dataclass(frozen=True)
class DotPlot:
    """`series` maps what a row calls a value to its label; labels, `x` and `panel` are filled from the row."""

    title: str
    series: Mapping[str, str]
    y_title: str
    x: str = "{variant}"
    x_title: str = "variant"
    panel: str = "{shape}"
    scale: str = "linear"

    def points(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"panel": self.panel.format_map(row), "x": self.x.format_map(row)}
            | {"series": label.format_map(row), "y": row[key]}
            | {end: row.get(f"{key}_{end}", row[key]) for end in ("low", "high")}
            for row in rows
            for key, label in self.series.items()
            if key in row
        ]

    def write(self, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Draw to `path`, an SVG."""
        import altair as alt

        plot = alt.Chart(alt.Data(values=self.points(rows))).encode(
            alt.X("x:N", sort=None, title=self.x_title),
            alt.Y("y:Q", title=self.y_title, scale=alt.Scale(type=self.scale, zero=False)),
            alt.XOffset("series:N", sort=None),
            alt.Color("series:N", sort=None, title=None, scale=alt.Scale(range=COLOURS)),
            alt.Shape("series:N", sort=None, title=None),
        )
        whiskers = plot.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q"))
        layers = (whiskers + plot.mark_point(filled=True)).properties(width=alt.Step(12), height=180)
        panels = layers.facet(alt.Row("panel:N", sort=None, title=None)).resolve_scale(x="independent")
        panels.properties(title=self.title).save(path)
