"""Draw the README's picture, docs/bakeoff_rank.svg, from the table of experiments/bakeoff_rank.

python docs/picture.py
"""

import re
from pathlib import Path

import vl_convert

from lora_zoo.docs_evidence import rows

HERE = Path(__file__).parent
CELL = re.compile(r"([\d.]+) ± ([\d.]+)\D*\((\d+)\)")
"""A mean, half its interval, and the number of runs: `0.652 ± 0.043 (5)`."""


def main() -> None:
    table = [row for row in rows("bakeoff_rank/README.md") if row.head[0] == "variant"]
    data = []
    for head, cells in table:
        for task, cell in zip(head[1:], cells[1:], strict=True):
            if found := CELL.search(cell):
                mean, half, n = float(found[1]), float(found[2]), found[3]
                data.append({"variant": f"{cells[0]}", "task": task, "mean": mean, "n": f"n={n}"})
                data[-1] |= {"low": max(mean - half, 0), "high": min(mean + half, 1)}
    (HERE / "bakeoff_rank.svg").write_text(vl_convert.vegalite_to_svg(specification(data)))


def specification(data: list[dict[str, object]]) -> dict[str, object]:
    """A dot with its interval for each variant, in the order of the means, a panel for each task."""
    order = {"field": "mean", "op": "mean", "order": "descending"}
    y = {"field": "variant", "type": "nominal", "sort": order, "title": None}
    x = {"type": "quantitative", "scale": {"domain": [0, 1]}, "title": "exact match (test)"}
    layers = [
        {"mark": {"type": "rule"}, "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "size": 50}, "encoding": {"x": x | {"field": "mean"}}},
        {
            "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 9, "color": "#777"},
            "encoding": {"x": x | {"field": "high"}, "text": {"field": "n"}},
        },
    ]
    panel = {"width": 250, "height": 210, "encoding": {"y": y}, "layer": layers}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "data": {"values": data},
        "facet": {"column": {"field": "task", "title": None}},
        "spec": panel,
        "config": {"point": {"color": "#1f5fa8"}, "rule": {"color": "#1f5fa8"}},
    }


if __name__ == "__main__":
    main()
