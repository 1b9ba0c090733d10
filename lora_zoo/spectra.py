"""`python -m lora_zoo.spectra RUN_OR_ADAPTER…`: spectra and directions of adapters' updates ΔW = W' - W.

Each argument is a run's folder, an adapter of ours or PEFT's, a checkpoint, a file of loralib's, or a folder
with several of them. Where ΔW is a product of factors, its spectrum comes from them (QR, and an SVD of rank x
rank), and the base is not loaded; DoRA, full fine-tuning and the tables about W need it. Of several adapters
the first is compared with each other one.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_zoo.terminal import on_the_terminal, say

if TYPE_CHECKING:
    import pandas as pd

    from lora_zoo.report.figures import Chart

TABLES = ("spectra", "changes", "amplification", "overlap", "intruders", "evolution")
DIRECTIONS = ("right", "left", "A", "B")
MANY = 40
"""Matrices beyond which the screen shows medians by role; files hold them all."""
LISTS = ("singular_values", "profile", "cosines", "shape")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lora_zoo.spectra", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="RUN_OR_ADAPTER")
    parser.add_argument(
        "--what",
        default="spectra",
        help=(
            "comma-separated, default spectra:\n"
            "  spectra        norm, ranks, energy of each ΔW\n"
            "  changes        ‖ΔW‖ / ‖W‖, DoRA's ΔM and ΔD\n"
            "  amplification  LoRA's table 7: ‖UᵀWVᵀ‖ for U, V of ΔW, of W, at random\n"
            "  overlap        the parts of ‖ΔW‖² along W's first and last directions\n"
            "  intruders      singular vectors of W' that are like none of W's (2410.21228)\n"
            "  evolution      norm, ranks, ΔM and ΔD at each checkpoint of a run"
        ),
    )
    parser.add_argument(
        "--factor",
        choices=DIRECTIONS,
        default="right",
        help="the directions that are compared: right or left singular vectors of ΔW,\n"
        "or of the factors A (LoRA's figures 3 and 4) or B",
    )
    former = parser.add_argument("--of", dest="factor", choices=DIRECTIONS, help=argparse.SUPPRESS)
    former.default = argparse.SUPPRESS
    parser.add_argument("--first", type=int, default=8, help="how many directions are compared (8)")
    parser.add_argument("--all", action="store_true", help="show every matrix, however many there are")
    parser.add_argument("--out", type=Path, help="write the tables as CSV, and figures as SVG, PDF and PNG")
    parser.add_argument(
        "--record",
        action="store_true",
        help="also keep the tables in the runs' folders, where reports, archives and claims find them",
    )
    parser.add_argument("--model", help="the base, where it is not (or not where) the adapter says it is")
    parser.add_argument("--alpha", type=float, help="of loralib's files, which do not hold it")
    parser.add_argument("--enable", default="", help="loralib: the adapted parts of fused layers, e.g. q,v")
    given = parser.parse_args(arguments)
    with on_the_terminal():
        analyse(given)


def analyse(given: argparse.Namespace) -> None:
    """Show, and write with --out, the tables of the command line. ValueError for unusable arguments."""
    import pandas as pd

    names = _names(given.what)
    if given.first < 1:
        raise ValueError(f"--first counts directions; got {given.first}")
    of_file = {"alpha": given.alpha, "enable": [role for role in given.enable.split(",") if role]}
    sources = Sources(_each(given.sources), {"model": given.model, **of_file})
    found: dict[str, list[pd.DataFrame]] = {}
    compared = _compared(sources, given.factor, given.first)
    for kind, label, table in (*_alone(sources, names, given.record), *compared):
        _show(f"{kind}: {label}", table, given.all)
        found.setdefault(kind, []).append(table.assign(adapter=label))
    if given.out is not None:
        joined = {kind: pd.concat(tables, ignore_index=True) for kind, tables in found.items()}
        _write(joined, sources, given.factor, given.out)


class Sources(NamedTuple):
    """Label -> run or adapter, and the arguments that `updates.read` needs for them."""

    paths: dict[str, Path]
    options: dict[str, Any]


def _names(what: str) -> list[str]:
    from lora_zoo.core.errors import unknown
    from lora_zoo.runs.loading import RENAMED

    names = [name.strip() for name in what.split(",") if name.strip()]
    names = [RENAMED.get(name, name) for name in names]
    for name in names:
        if name not in TABLES:
            raise ValueError(f"--what: {unknown('table', name, TABLES)}")
    return names


def _alone(sources: Sources, names: list[str], keep: bool) -> Iterator[tuple[str, str, "pd.DataFrame"]]:
    from lora_zoo.updates.recording import made_of, write

    for label, source in sources.paths.items():
        made = made_of(source, names, **sources.options)
        yield from ((name, label, table) for name, table in made.items())
        if keep:
            say(f"recorded in {write(source, made)}")


def _each(sources: Sequence[Path]) -> dict[str, Path]:
    """Label -> run or adapter; a folder of several gives all of them."""
    from lora_zoo.updates.reading import label_of

    found = [path for source in sources for path in _in(source)]
    labels = [label_of(path) for path in found]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in found]
    return dict(zip(labels, found, strict=True))


def _in(source: Path) -> list[Path]:
    """The runs, else the adapters, at any depth of a folder; `source` where it is one itself."""
    from lora_zoo.formats.native import DESCRIPTION
    from lora_zoo.models.base import PEFT, adapter_in
    from lora_zoo.runs.loading import PACKED
    from lora_zoo.runs.record import RESULT

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
    adapters = sorted(path.parent for name in (DESCRIPTION, PEFT) for path in source.rglob(name))
    if not adapters:
        raise FileNotFoundError(
            f"{source} holds no adapter: {DESCRIPTION} or {PEFT} is looked for at any depth"
        )
    return list(dict.fromkeys(adapters))


def _compared(sources: Sources, factor: str, first: int) -> Iterator[tuple[str, str, "pd.DataFrame"]]:
    """Compare the first adapter with each other one."""
    from lora_zoo.updates.comparisons import comparison
    from lora_zoo.updates.reading import read

    (label, source), *others = sources.paths.items()
    if not others:
        return
    one = read(source, **sources.options)
    for other, path in others:
        table = comparison(one, read(path, **sources.options), of=factor, first=first)
        yield "comparison", f"{label} / {other}", table.assign(of=factor)


def _show(title: str, table: "pd.DataFrame", every: bool) -> None:
    """The numbers of a table in Markdown: each matrix, or the medians by role where there are many."""
    import pandas as pd
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = table.drop(columns=[name for name in LISTS if name in table])
    if len(shown) > MANY and not every:
        keys = [key for key in ("step", "role") if key in shown]
        numbers = shown.drop(columns=["name", "layer"]).groupby(keys, sort=False).median(numeric_only=True)
        shown = numbers.assign(matrices=shown.groupby(keys, sort=False).size()).reset_index()
        title += f" (medians by role of {len(table)} matrices)"
    drawn = Table(box=box.MARKDOWN)
    for name in shown.columns:
        numeric = pd.api.types.is_numeric_dtype(shown[name])
        drawn.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in shown.itertuples(index=False):
        drawn.add_row(*(_format_cell(value) for value in row))
    console = Console(width=10_000, highlight=False, markup=False, emoji=False)
    with console.capture() as text:
        console.print(drawn)
    lines = (line.rstrip() for line in text.get().splitlines())
    print(f"**{title}**", "", *(line for line in lines if line), "", sep="\n")


def _format_cell(value: object) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(tables: dict[str, "pd.DataFrame"], sources: Sources, factor: str, out: Path) -> None:
    """Each table as CSV, and the figures that show them as SVG, PDF and PNG."""
    from lora_zoo.report.figures import Nothing

    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    drawn = []
    for name, draw in _figures(tables, sources, factor).items():
        try:
            draw().save(out / name)
        except Nothing as reason:
            say(f"no figure {name}: {reason}")
        else:
            drawn.append(name)
    files = ", ".join(f"{name}.csv" for name in tables)
    say(f"written to {out}: {files}; figures: {', '.join(drawn) or 'none'}")


def _figures(
    tables: dict[str, "pd.DataFrame"], sources: Sources, factor: str
) -> dict[str, Callable[[], "Chart"]]:
    from lora_zoo.report import figures

    by = ["adapter"]
    makers: dict[str, Callable[[pd.DataFrame], Chart]] = {
        "spectra": lambda table: figures.decay(table, by),
        "changes": lambda table: figures.magnitude_direction(table, by),
        "amplification": lambda table: figures.amplification(table, "layer", by),
        "overlap": lambda table: figures.touched(table, by),
        "evolution": lambda table: figures.evolution(table, by),
        "comparison": lambda _: _overlaps(sources, factor),
    }
    return {name: partial(make, tables[name]) for name, make in makers.items() if name in tables}


def _overlaps(sources: Sources, factor: str) -> "Chart":
    """φ(i, j) of the first two adapters, for the matrices in the middle of those that both have."""
    from lora_zoo.report.figures import subspaces
    from lora_zoo.report.subspace_pairs import middle
    from lora_zoo.updates.comparisons import grid
    from lora_zoo.updates.reading import read

    (label, source), (other, path), *_ = sources.paths.items()
    one, two = read(source, **sources.options), read(path, **sources.options)
    grids = {name: grid(one[name], two[name], of=factor) for name in middle(one, two)}
    found = {name: phi for name, phi in grids.items() if phi.size}
    dimensions = {one[name].shape[int(factor in ("right", "A"))] for name in found}
    same = dimensions.pop() if len(dimensions) == 1 else None
    return subspaces(found, f"Overlap of {label} and {other}", same)


if __name__ == "__main__":
    main()
