"""A measurement as files: a Markdown table, the numbers as JSON, and a figure, with their provenance."""

import argparse
import importlib.metadata
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora_zoo.bench import peft
from lora_zoo.bench.options import Options
from lora_zoo.bench.timing import clock_for
from lora_zoo.runs.environment import environment

Values = dict[str, Any]
"""A table's row: value by name, with `_low` and `_high` for its quartiles."""
FIGURE = Path(__file__).with_name("figure.json")
"""The figure in Vega-Lite, without data and titles; in Okabe and Ito's colours, for the colour-blind too."""


@dataclass(frozen=True)
class Measurement:
    """`keys` tell a row from the others; `columns` maps a head to its cells' text, filled from the row.

    `plotted` maps the values that the figure shows to their labels; without any there is none.
    """

    name: str
    title: str
    about: str
    keys: Sequence[str]
    columns: Mapping[str, str]
    rows: list[Values]
    unit: str = ""
    plotted: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def markdown(self, provenance: Mapping[str, Any]) -> str:
        columns = {key: f"{{{key}}}" for key in self.keys} | dict(self.columns)
        notes = [self.note] if self.note else []
        parts = [f"# {self.title}", self.about, table(columns, self.rows), *notes, made_by(provenance)]
        return "\n\n".join(parts) + "\n"

    def points(self) -> list[Values]:
        """A point of the figure for each value that is plotted and above 0."""
        return [
            {"panel": str(row[self.keys[0]]), "x": ", ".join(str(row[key]) for key in self.keys[1:])}
            | {"series": label, "y": row[name]}
            | {end: row.get(f"{name}_{end}", row[name]) for end in ("low", "high")}
            for row in self.rows
            for name, label in self.plotted.items()
            if row.get(name, 0) > 0
        ]

    def draw(self, path: Path) -> None:
        """A dot for each point, a whisker for its quartiles, a panel for each value of the first key."""
        import vl_convert

        figure = json.loads(FIGURE.read_text())
        encoding, (whisker, _) = figure["spec"]["encoding"], figure["spec"]["layer"]
        encoding["x"]["title"] = ", ".join(self.keys[1:])
        encoding["y"]["title"] = whisker["encoding"]["y"]["title"] = self.unit
        spec = figure | {"title": self.title, "data": {"values": self.points()}}
        path.write_text(vl_convert.vegalite_to_svg(spec))


def table(columns: Mapping[str, str], rows: Sequence[Values]) -> str:
    """A Markdown table; an empty column is left out, an empty cell is "-"."""
    cells = {head: [_cell(text, row) for row in rows] for head, text in columns.items()}
    kept = {head: column for head, column in cells.items() if set(column) != {"-"}}
    lines = [kept.keys(), ["---"] * len(kept), *zip(*kept.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str, row: Values) -> str:
    words = {True: "yes", False: "no"}
    known = {k: words[v] if isinstance(v, bool) else v for k, v in row.items() if v is not None}
    try:
        return text.format_map(known)
    except KeyError:
        return "-"


def provenance(options: Options, command: Sequence[str]) -> dict[str, Any]:
    """The origin of a measurement: command (less its --out), commit, versions, device, threads, rounds."""
    here = environment()
    cuda = options.device.type == "cuda"
    out = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    out.add_argument("--out")
    return {
        "command": shlex.join(["python", "-m", "lora_zoo.bench", *out.parse_known_args(command)[1]]),
        "commit": here["commit"],
        "dirty": here["dirty"],
        "torch": here["packages"]["torch"],
        "transformers": here["packages"]["transformers"],
        "peft": importlib.metadata.version("peft") if peft.installed() else None,
        "device": torch.cuda.get_device_name(options.device) if cuda else f"cpu ({processor()})",
        "dtype": str(options.dtype).removeprefix("torch."),
        "threads": options.threads,
        "rounds": options.rounds,
        "clock": clock_for(options.device, options.threads)[1],
    }


def processor() -> str:
    """The processor's model, where the system knows it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "unknown")


def made_by(provenance: Mapping[str, Any]) -> str:
    """The provenance as the line below a table."""
    of = provenance
    commit = f"`{str(of['commit'])[:10]}`" + (" with uncommitted changes" if of["dirty"] else "")
    peft = f"peft {of['peft']}" if of["peft"] else "peft is not installed, so its column is left out"
    made = f"torch {of['torch']}, transformers {of['transformers']}, {peft}; {of['device']}; {of['dtype']}"
    how = f"threads: {of['threads']}; rounds: {of['rounds']}, {of['clock']}"
    return f"`{of['command']}`; commit {commit}; {made}; {how}."


def write(done: Measurement, out: Path, provenance: Mapping[str, Any]) -> list[Path]:
    """Write the measurement's files into `out` and return them."""
    out.mkdir(parents=True, exist_ok=True)
    text, data, figure = (out / f"{done.name}.{end}" for end in ("md", "json", "svg"))
    image = f"\n![{done.title}]({figure.name})\n" if done.plotted else ""
    text.write_text(done.markdown(provenance) + image)
    data.write_text(json.dumps({"origin": dict(provenance), "rows": done.rows}, indent=1) + "\n")
    if done.plotted:
        done.draw(figure)
    return [text, data, *([figure] if done.plotted else [])]
