"""A measurement as files: a Markdown table, the numbers as JSON, and a figure, each saying what made it."""

import argparse
import importlib.metadata
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora_zoo.benchmark import peft_side
from lora_zoo.benchmark.options import Options
from lora_zoo.benchmark.timing import clock_for
from lora_zoo.runs.environment import environment

Row = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """A figure's content: bars of `y` by `x`, or lines where `x` is a number, one for each `group`.

    A row has its `panel`, `y`, and `y_low` and `y_high` where it has quartiles.
    """

    title: str
    x: str
    group: str
    x_label: str
    y_label: str
    rows: Sequence[Row]
    level: float | None = None
    logarithmic: bool = False


@dataclass(frozen=True)
class Report:
    """`columns` maps what a row calls a value to the head of its column; `rows` hold more than is shown."""

    name: str
    title: str
    about: str
    columns: Mapping[str, str]
    rows: list[Row]
    shown: list[Row] = field(default_factory=list)
    notes: Sequence[str] = ()
    curve: Curve | None = None

    def markdown(self, origin: Mapping[str, Any]) -> str:
        lines = [f"# {self.title}", "", self.about, ""]
        lines += table(self.columns, self.shown or self.rows)
        lines += ["", *(f"{note}\n" for note in self.notes), said(origin)]
        return "\n".join(lines) + "\n"


def table(columns: Mapping[str, str], rows: Sequence[Row]) -> list[str]:
    """Markdown lines; an empty column is left out, an empty cell is "-"."""
    kept = {key: head for key, head in columns.items() if any(row.get(key) is not None for row in rows)}
    lines = ["| " + " | ".join(kept.values()) + " |", "|" + "---|" * len(kept)]
    return lines + ["| " + " | ".join(_cell(row.get(key)) for key in kept) + " |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


def origin(options: Options, command: Sequence[str]) -> dict[str, Any]:
    """What made a report: command, commit, versions, device, threads, rounds and clock."""
    here = environment()
    cuda = options.device.type == "cuda"
    return {
        "command": shlex.join(["python", "-m", "lora_zoo.bench", *_without_place(command)]),
        "commit": here["commit"],
        "dirty": here["dirty"],
        "torch": here["packages"]["torch"],
        "transformers": here["packages"]["transformers"],
        "peft": importlib.metadata.version("peft") if peft_side.installed() else None,
        "device": torch.cuda.get_device_name(options.device) if cuda else f"cpu ({processor()})",
        "dtype": str(options.dtype).removeprefix("torch."),
        "threads": options.threads,
        "rounds": options.rounds,
        "clock": clock_for(options.device, options.threads)[1],
    }


def _without_place(command: Sequence[str]) -> list[str]:
    """The command line less the folder that it wrote to."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out")
    return parser.parse_known_args(command)[1]


def processor() -> str:
    """The processor's model, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def said(origin: Mapping[str, Any]) -> str:
    """`origin` as the line below a table."""
    commit = f"`{str(origin['commit'])[:10]}`" + (" with uncommitted changes" if origin["dirty"] else "")
    peft = f"peft {origin['peft']}" if origin["peft"] else "peft is not installed, so its column is left out"
    made = f"torch {origin['torch']}, transformers {origin['transformers']}, {peft}; {origin['device']}"
    how = f"threads: {origin['threads']}; rounds: {origin['rounds']}, {origin['clock']}"
    return f"`{origin['command']}`; commit {commit}; {made}; {origin['dtype']}; {how}."


def write(report: Report, out: Path, made_by: Mapping[str, Any]) -> list[Path]:
    """Write the report's files into `out` and return them; without matplotlib there is no figure."""
    from lora_zoo.benchmark.figures import draw

    out.mkdir(parents=True, exist_ok=True)
    written = [out / f"{report.name}.md", out / f"{report.name}.json"]
    text = report.markdown(made_by)
    if report.curve and draw(report.curve, out / f"{report.name}.svg"):
        written.append(out / f"{report.name}.svg")
        text += f"\n![{report.curve.title}]({report.name}.svg)\n"
    written[0].write_text(text)
    written[1].write_text(json.dumps({"origin": dict(made_by), "rows": report.rows}, indent=1) + "\n")
    return written
