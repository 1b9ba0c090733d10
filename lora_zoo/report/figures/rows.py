"""The rows of panels on two numeric axes: lines, and means of groups with their intervals."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lora_zoo.analysis.protocol import interval_of
from lora_zoo.report.figures.groups import Group, grouped, needs

COLUMNS = ("series", "x", "y", "low", "high", "note")


def line(name: str, x: Any, y: Any, low: Any = np.nan, high: Any = np.nan, *, note: Any = "") -> pd.DataFrame:
    """Rows of a panel: one series."""
    columns = {"series": name, "x": x, "y": y, "low": low, "high": high, "note": note}
    return pd.DataFrame(columns, index=range(len(x)))


def stack(lines: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Rows of a panel: several series."""
    found = [rows for rows in lines if len(rows)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)


def means(found: Iterable[Group], x: str, value: str) -> pd.DataFrame:
    """Rows of a panel: means of `value` over each group's rows at each x, with their 95 % intervals."""
    return stack(_means(group, x, value) for group in found)


def _means(group: Group, x: str, value: str) -> pd.DataFrame:
    parts = [(float(key[0]), interval_of(part, value)) for key, part in grouped(group.runs, [x])]
    numbers = [(at, i.estimate, i.low, i.high) for at, i in parts]
    notes = [f"n = {i.n}" for _, i in parts]
    return line(group.name, *map(list, zip(*numbers, strict=True)), note=notes)


class ByLayer(NamedTuple):
    """Updates with a role and a layer everywhere, as words; the layers in order; the count of the runs."""

    table: pd.DataFrame
    layers: list[str]
    over: str


def by_layer(updates: pd.DataFrame) -> ByLayer:
    """The updates by role and layer; a matrix outside of the layers stands by its own name, in layer –."""
    needs(updates, "name")
    known = updates.reindex(columns=[*dict.fromkeys([*updates, "role", "layer"])])
    role = known["role"].where(known["role"].notna() & (known["role"] != ""), known["name"])
    table = known.assign(role=role, layer=[str(int(n)) if pd.notna(n) else "–" for n in known["layer"]])
    layers = sorted(table["layer"].unique(), key=lambda layer: (layer == "–", layer.zfill(9)))
    n = updates["run"].nunique()
    return ByLayer(table, layers, f"{n} runs" if n > 1 else "one run")
