"""`python -m lora_zoo.quantization MODEL`: the quantisation error that each initialisation leaves on W."""

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_zoo.config.quantization import SCHEMES
from lora_zoo.config.schema import Model
from lora_zoo.terminal import add_files, on_the_terminal

if TYPE_CHECKING:
    from torch import Tensor

OWN = [name for name, scheme in SCHEMES.items() if scheme.own]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.quantization", description=__doc__)
    parser.add_argument("model", help="pocket, a folder in Hub format, or a name on the Hub")
    parser.add_argument("--scheme", default="reference_nf4", help=f"comma-separated, of {', '.join(OWN)}")
    parser.add_argument("--starts", default="", help="comma-separated initialisations of quantised bases")
    parser.add_argument("--rank", type=int, default=8, help="the rank of the factors (8)")
    parser.add_argument("--double-quant", action="store_true", help="quantise the scales as well")
    parser.add_argument("--out", type=Path, help="write the rows as a CSV file")
    add_files(parser)
    given = parser.parse_args(arguments)
    with on_the_terminal(given.files):
        show(given)


def show(given: argparse.Namespace) -> None:
    """Print the tables. ValueError for an unknown scheme or start, or one that looks at data."""
    from lora_zoo.config.validate import check_quantization
    from lora_zoo.core.errors import unknown
    from lora_zoo.models.quantization import reference_quantizer
    from lora_zoo.updates.quantization_errors import STARTS, error_table, lines, needed

    starts = [name for name in given.starts.split(",") if name] or list(STARTS)
    if needs := needed(starts):
        raise ValueError(
            f"--starts {given.starts}: {', '.join(needs)} are of data; give them to "
            "lora_zoo.updates.quantization_errors.error_table as `statistics`"
        )
    if given.rank < 1:
        raise ValueError(f"--rank must be at least 1; got {given.rank}")
    settings = Model(name="model", path=given.model)
    weights, found = linear_weights(settings), []
    print(f"{len(weights)} linear layers, {sum(W.numel() for W in weights.values()):,} weights")
    for scheme in given.scheme.split(","):
        if scheme not in OWN:
            raise ValueError(unknown("scheme", scheme, OWN))
        own = replace(settings, quantization=scheme, bnb_4bit_use_double_quant=given.double_quant)
        check_quantization(own)
        quantizer = reference_quantizer(own)
        assert quantizer is not None
        rows = error_table(weights, quantizer, rank=given.rank, starts=starts)
        print(f"\n{scheme}, rank {given.rank}", *lines(rows), sep="\n")
        found += [{"scheme": scheme, "rank": given.rank, **row._asdict()} for row in rows]
    if given.out:
        with given.out.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(found[0]))
            table.writeheader()
            table.writerows(found)


def linear_weights(settings: Model) -> "dict[str, Tensor]":
    """W (O, I) of the layers that a quantisation would take, by name."""
    from lora_zoo.injection.quantize import quantizable
    from lora_zoo.models.loading import load_model, own_class
    from lora_zoo.models.quantization import left_out

    loaded = load_model(settings, own_class(settings), {}, None, seed=0)
    keep = left_out(loaded.model, loaded.new_modules)
    return {name: host.matrix().detach() for name, host in quantizable(loaded.model, keep).items()}


if __name__ == "__main__":
    main()
