"""Tables and figures of adapters' updates ΔW, on the screen and in files: `python -m lora_zoo.spectra`."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from lora_zoo.core.errors import unknown
from lora_zoo.formats.description import DESCRIPTION
from lora_zoo.models.base import PEFT, adapter_in
from lora_zoo.report import figures
from lora_zoo.report.figures import Chart, Nothing
from lora_zoo.report.render import csv_of
from lora_zoo.report.subspace_pairs import middle
from lora_zoo.runs.loading import PACKED, RENAMED
from lora_zoo.runs.record import RESULT
from lora_zoo.terminal import say
from lora_zoo.updates.comparisons import comparison, grid
from lora_zoo.updates.reading import adapters_in, label_of, read
from lora_zoo.updates.recording import TABLES, made_of, write

MANY = 40
"""Matrices beyond which the screen shows medians by role; files hold them all."""
LISTS = ("singular_values", "profile", "cosines", "shape")
BY = ["adapter"]
Shown = tuple[str, str, pd.DataFrame]  # kind, label and table
FIGURES: dict[str, Callable[[pd.DataFrame], Chart]] = {
    "spectra": lambda table: figures.decay(table, BY),
    "changes": lambda table: figures.magnitude_direction(table, BY),
    "amplification": lambda table: figures.amplification(table, "layer", BY),
    "overlap": lambda table: figures.overlap(table, BY),
    "evolution": lambda table: figures.evolution(table, BY),
}


def analyse(given: Namespace) -> None:
    """Show, and write with --out, the tables of the command line. ValueError for unusable arguments."""
    names = [RENAMED.get(name.strip(), name.strip()) for name in given.what.split(",") if name.strip()]
    for name in names:
        if name not in (known := [*TABLES, "evolution"]):
            raise ValueError(f"--what: {unknown('table', name, known)}")
    if given.first < 1:
        raise ValueError(f"--first counts directions; got {given.first}")
    enabled = [role for role in given.enable.split(",") if role]
    options = {"model": given.model, "alpha": given.alpha, "enable": enabled}
    sources = _by_label(given.sources)
    found: dict[str, list[pd.DataFrame]] = {}
    compared = _compared(given, sources, options)
    for kind, label, table in (*_alone(given, sources, names, options), *compared):
        _show(f"{kind}: {label}", table, given.all)
        found.setdefault(kind, []).append(table.assign(adapter=label))
    if given.out is not None:
        joined = {kind: pd.concat(tables, ignore_index=True) for kind, tables in found.items()}
        makers = {name: partial(FIGURES[name], table) for name, table in joined.items() if name in FIGURES}
        if "comparison" in joined:
            makers["comparison"] = partial(_overlap_of_two, sources, options, given.factor)
        _write(joined, makers, given.out)


def _by_label(sources: Sequence[Path]) -> dict[str, Path]:
    """Label -> run or adapter; a folder of several gives all of them."""
    found = [path for source in sources for path in _in(source)]
    labels = [label_of(path) for path in found]
    return dict(zip(labels if len(set(labels)) == len(labels) else map(str, found), found, strict=True))


def _in(source: Path) -> list[Path]:
    """The runs, else the adapters, at any depth of a folder; `source` where it is one itself."""
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if source.name.endswith(PACKED):
        raise ValueError(f"{source} is an archive of records; give the folder of the adapters beside it")
    if source.is_file() or any((adapter_in(source) / name).is_file() for name in (DESCRIPTION, PEFT)):
        return [source]
    runs = sorted(path.parent for path in source.rglob(RESULT))
    if kept := [run for run in runs if adapter_in(run) != run]:
        return kept
    if runs:
        raise ValueError(f"{source}: none of the {len(runs)} runs kept an adapter")
    if not (adapters := adapters_in(source)):
        raise FileNotFoundError(
            f"{source} holds no adapter: {DESCRIPTION} or {PEFT} is looked for at any depth"
        )
    return adapters


def _alone(
    given: Namespace, sources: Mapping[str, Path], names: list[str], options: dict[str, Any]
) -> Iterator[Shown]:
    """The tables of each adapter, recorded with its run with --record."""
    for label, source in sources.items():
        made = made_of(source, names, **options)
        yield from ((name, label, table) for name, table in made.items())
        if given.record:
            say(f"recorded in {write(source, made)}")


def _compared(given: Namespace, sources: Mapping[str, Path], options: dict[str, Any]) -> Iterator[Shown]:
    """Compare the first adapter with each other one."""
    (label, source), *others = sources.items()
    if not others:
        return
    one = read(source, **options)
    for other, path in others:
        table = comparison(one, read(path, **options), factor=given.factor, first=given.first)
        yield "comparison", f"{label} / {other}", table.assign(of=given.factor)


def _show(title: str, table: pd.DataFrame, every: bool) -> None:
    """The numbers of a table in Markdown: each matrix, or the medians by role where there are many."""
    shown = table.drop(columns=[name for name in LISTS if name in table])
    if len(shown) > MANY and not every:
        keys = [key for key in ("step", "role") if key in shown]
        numbers = shown.drop(columns=["name", "layer"]).groupby(keys, sort=False).median(numeric_only=True)
        shown = numbers.assign(matrices=shown.groupby(keys, sort=False).size()).reset_index()
        title += f" (medians by role of {len(table)} matrices)"
    drawn = Table(box=box.MARKDOWN)
    for name, column in shown.items():
        numeric = pd.api.types.is_numeric_dtype(column)
        drawn.add_column(str(name), justify="right" if numeric else "left", no_wrap=True)
    for row in shown.itertuples(index=False):
        drawn.add_row(*map(_cell, row))
    console = Console(width=10_000, highlight=False, markup=False, emoji=False)
    with console.capture() as text:
        console.print(drawn)
    lines = (line.rstrip() for line in text.get().splitlines())
    print(f"**{title}**", "", *(line for line in lines if line), "", sep="\n")


def _cell(value: object) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(tables: Mapping[str, pd.DataFrame], makers: Mapping[str, Callable[[], Chart]], out: Path) -> None:
    """Each table as CSV, and the figures that show them as SVG, PDF and PNG."""
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        (out / f"{name}.csv").write_text(csv_of(table), encoding="utf-8")
    drawn = []
    for name, draw in makers.items():
        try:
            draw().save(out / name)
        except Nothing as reason:
            say(f"no figure {name}: {reason}")
        else:
            drawn.append(name)
    files = ", ".join(f"{name}.csv" for name in tables)
    say(f"written to {out}: {files}; figures: {', '.join(drawn) or 'none'}")


def _overlap_of_two(sources: Mapping[str, Path], options: dict[str, Any], factor: str) -> Chart:
    """φ(i, j) of the first two adapters, for the matrices in the middle of those that both have."""
    label, other = list(sources)[:2]
    one, two = (read(sources[name], **options) for name in (label, other))
    grids = {name: grid(one[name], two[name], factor=factor) for name in middle(one, two)}
    found = {name: phi for name, phi in grids.items() if phi.size}
    dimensions = {one[name].shape[int(factor in ("right", "A"))] for name in found}
    same = dimensions.pop() if len(dimensions) == 1 else None
    return figures.subspaces(found, f"Overlap of {label} and {other}", same)
