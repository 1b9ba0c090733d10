"""A measurement as files: a Markdown table, the numbers as JSON, and a figure, with their provenance."""

import argparse
import importlib.metadata
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_zoo.bench import peft
from lora_zoo.bench.figures import DotPlot
from lora_zoo.bench.options import Options
from lora_zoo.bench.timing import clock_for
from lora_zoo.results.environment import environment

Values = dict[str, Any]
"""A table's row: value by name, with `_low` and `_high` for its quartiles."""


@dataclass(frozen=True)
class Measurement:
    """`columns` maps a column's head to its cells' text, which is filled from the row."""

    name: str
    title: str
    about: str
    columns: Mapping[str, str]
    rows: list[Values]
    figure: DotPlot | None = None
    note: str = ""

    def markdown(self, provenance: Mapping[str, Any]) -> str:
        notes = [self.note] if self.note else []
        parts = [f"# {self.title}", self.about, table(self.columns, self.rows), *notes, line(provenance)]
        return "\n\n".join(parts) + "\n"


def with_quartiles(name: str) -> str:
    """The text of a cell that shows a value and its quartiles."""
    return f"{{{name}:.2f}} ({{{name}_low:.2f}}-{{{name}_high:.2f}})"


def table(columns: Mapping[str, str], rows: Sequence[Values]) -> str:
    """A Markdown table; an empty column is left out, an empty cell is "-"."""
    cells = [{head: _cell(text, row) for head, text in columns.items()} for row in rows]
    heads = [head for head in columns if any(row[head] != "-" for row in cells)]
    lines = [heads, ["---"] * len(heads), *([row[head] for head in heads] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str, row: Values) -> str:
    words = {True: "yes", False: "no"}
    known = {k: words[v] if isinstance(v, bool) else v for k, v in row.items() if v is not None}
    try:
        return text.format_map(known)
    except KeyError:
        return "-"


def provenance(options: Options, command: Sequence[str]) -> dict[str, Any]:
    """What made a measurement: command (less its --out), commit, versions, device, threads, rounds, clock."""
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


def line(provenance: Mapping[str, Any]) -> str:
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
    image = f"\n![{done.figure.title}]({figure.name})\n" if done.figure else ""
    text.write_text(done.markdown(provenance) + image)
    data.write_text(json.dumps({"origin": dict(provenance), "rows": done.rows}, indent=1) + "\n")
    if done.figure:
        done.figure.write(done.rows, figure)
    return [text, data, *([figure] if done.figure else [])]
