"""`python -m lora_zoo.spectra RUN_OR_ADAPTER…`: spectra and directions of adapters' updates ΔW = W' - W.

Each argument is a run's folder, an adapter of ours or PEFT's, a checkpoint, a file of loralib's, or a folder
with several of them. Where ΔW is a product of factors, its spectrum comes from them (QR, and an SVD of rank x
rank), and the base is not loaded; DoRA, full fine-tuning and the tables about W need it. Of several adapters
the first is compared with each other one.
"""

import argparse
from pathlib import Path

from lora_zoo.terminal import add_files, on_the_terminal

DIRECTIONS = ("right", "left", "A", "B")


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
            "  overlap        the fraction of ‖ΔW‖² along W's first and last directions\n"
            "  intruders      singular vectors of W' unlike any of W's (2410.21228)\n"
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
    parser.add_argument("--first", type=int, default=8, help="the number of directions to compare (8)")
    parser.add_argument("--all", action="store_true", help="show every matrix, however many there are")
    parser.add_argument("--out", type=Path, help="write the tables as CSV, and figures as SVG, PDF and PNG")
    parser.add_argument(
        "--record",
        action="store_true",
        help="also keep the tables in the runs' folders, where reports, archives and claims find them",
    )
    parser.add_argument("--model", help="the base; default: the one that the adapter names")
    parser.add_argument("--alpha", type=float, help="alpha of a loralib file, which does not hold it")
    parser.add_argument("--enable", default="", help="loralib: the adapted parts of fused layers, e.g. q,v")
    add_files(parser)
    given = parser.parse_args(arguments)
    with on_the_terminal(given.files):
        from lora_zoo.report.of_adapters import analyse  # after --help: it needs torch

        analyse(given)


if __name__ == "__main__":
    main()
