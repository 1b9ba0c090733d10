"""Reports of recorded runs, from folders and archives.

Tables are shown, and written as Markdown, LaTeX, CSV and HTML; figures as SVG, PDF and PNG; and all of it,
with the claims, the findings and every run's command, as one page that needs no network: report.html. What
`lora_zoo.compose … --evaluate` found in folders given is in it, too. --site writes a leaderboard over many
experiments instead.
"""

import argparse
import sys
from pathlib import Path

from lora_zoo.report import FORMATS, default_folder
from lora_zoo.terminal import say

ALL = (*FORMATS, "figures", "page")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m lora_zoo.report", description=__doc__)
    made.add_argument("sources", nargs="+", help="folders with runs at any depth, or archives (*.jsonl.gz)")
    made.add_argument(
        "--out", type=Path, help="folder to write to; default: report in the only source, or here"
    )
    made.add_argument("--archive", type=Path, metavar="FILE", help="also keep the runs in FILE, a *.jsonl.gz")
    made.add_argument("--pack", dest="archive", type=Path, help=argparse.SUPPRESS)  # until 0.2
    formats = f"of {', '.join(ALL)}; default: all"
    made.add_argument("--format", nargs="+", choices=ALL, default=ALL, metavar="FORMAT", help=formats)
    folder = "also keep an experiment's table, claims and runs in FOLDER"
    made.add_argument("--save-experiment", type=Path, metavar="FOLDER", help=folder)
    made.add_argument("--keep", dest="save_experiment", type=Path, help=argparse.SUPPRESS)  # until 0.2
    site = "only write a leaderboard of these experiments, with a page for each, into OUT"
    made.add_argument("--site", type=Path, metavar="OUT", help=site)
    made.add_argument(
        "--wandb", action="store_true", help="also send it to the runs' group in Weights & Biases"
    )
    return made


def main() -> None:
    try:
        report(parser().parse_args())
    except (ValueError, OSError) as mistake:
        say(str(mistake))
        sys.exit(2)


def report(given: argparse.Namespace) -> None:
    """Show and write what the command line asks for."""
    if given.site is not None:
        from lora_zoo.report.site import write_site

        say(f"written to {write_site(given.sources, given.site)}")
        return
    from lora_zoo.report import to_wandb, writing
    from lora_zoo.report.report import Report
    from lora_zoo.report.save_experiment import save_experiment
    from lora_zoo.runs import archive, load, merges

    made = Report(load(*given.sources), merges(*given.sources))
    for table in made.tables:
        print(table.markdown())
    if given.archive is not None:
        packed = archive(made.frame, given.archive)
        say(f"{len(made.frame)} runs packed into {packed}, {packed.stat().st_size:,} bytes")
    if given.save_experiment is not None:
        kept = save_experiment(made.frame, made.tables[0], made.tested, given.save_experiment)
        say(f"{len(made.frame)} runs kept in {kept}")
    folder = given.out or default_folder(*given.sources)
    writing.write_tables(made, folder, [f for f in given.format if f in FORMATS])
    if "page" in given.format:
        writing.write_page(made, folder)
    pngs = writing.write_figures(made, folder) if given.wandb or "figures" in given.format else {}
    if given.wandb:
        say(to_wandb.send(made, pngs, folder) or "W&B was not reached")
    say(f"written to {folder}")


if __name__ == "__main__":
    main()
