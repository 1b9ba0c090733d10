"""Tables of recorded runs, from folders and archives: shown, and written as Markdown, LaTeX, CSV and HTML."""

import argparse
import sys
from pathlib import Path

from lora_zoo.report import FORMATS, place, write_tables
from lora_zoo.terminal import say


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.report", description=__doc__)
    parser.add_argument("sources", nargs="+", help="folders with runs at any depth, or archives (*.jsonl.gz)")
    parser.add_argument("--out", type=Path, help="folder to write to; default: report, in the folder given")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="also keep the runs in FILE, a *.jsonl.gz")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, default=FORMATS, help="what to write; default: all"
    )
    given = parser.parse_args()
    try:
        report(given)
    except (ValueError, OSError) as mistake:
        say(str(mistake))
        sys.exit(2)


def report(given: argparse.Namespace) -> None:
    """Show and write what the command line asks for."""
    from lora_zoo.report.tables import tables
    from lora_zoo.results import archive, load

    frame = load(*given.sources)
    made = tables(frame)
    for table in made:
        print(table.markdown())
    if given.pack is not None:
        packed = archive(frame, given.pack)
        say(f"{len(frame)} runs packed into {packed}, {packed.stat().st_size:,} bytes")
    say(f"written to {write_tables(made, given.out or place(*given.sources), given.format)}")


if __name__ == "__main__":
    main()
