"""What can be asked of the benchmark, checked before anything is measured."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from lora_zoo.benchmark.shapes import SHAPES, Shape, find_shape
from lora_zoo.benchmark.timing import Stopwatch, clock_for, settle_for
from lora_zoo.core.errors import unknown
from lora_zoo.core.variants import VARIANTS

WHAT = ("step", "memory", "init", "io", "sweep", "scaling", "targets")
DTYPES = ("float32", "bfloat16", "float16", "float64")
DROPOUT = 0.05


@dataclass(frozen=True)
class Options:
    """One run of the benchmark."""

    what: tuple[str, ...]
    shapes: tuple[Shape, ...]
    """Empty where none was named: a measurement then has its own."""
    variants: tuple[str, ...]
    named: tuple[str, ...]
    """The variants that were named; empty where it was none."""
    rounds: int
    device: torch.device
    dtype: torch.dtype
    threads: int
    quick: bool
    out: Path
    guard: bool = False
    write: bool = False

    def on(self, *usual: str) -> tuple[Shape, ...]:
        """The shapes that were named, or the `usual` ones."""
        return self.shapes or tuple(find_shape(name) for name in usual)

    def stopwatch(self, *, at_most: int = 1000) -> Stopwatch:
        """`at_most` rounds, for what takes long."""
        clock, _ = clock_for(self.device, self.threads)
        warmup = 1 if self.quick or at_most < 1000 else 2
        rounds = min(self.rounds, at_most)
        return Stopwatch(rounds, warmup, clock=clock, settle=settle_for(self.device))


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(arguments: Sequence[str] | None, about: str) -> Options:
    """The options on a command line. ValueError for people where one cannot be."""
    parser = _parser(about)
    given, left = parser.parse_known_args(arguments)
    if left:
        known = [flag for action in parser._actions for flag in action.option_strings if flag[:2] == "--"]
        raise ValueError(unknown("option", left[0].partition("=")[0], known))
    quick, names = given.quick, list(VARIANTS)
    if given.write and not given.guard:
        raise ValueError("--write belongs to --guard: it writes the guard's reference")
    for key, least in (("rounds", 1), ("threads", 1)):
        if getattr(given, key) is not None and getattr(given, key) < least:
            raise ValueError(f"--{key} must be at least {least}; got {getattr(given, key)}")
    return Options(
        what=_chosen("measurement", given.what, WHAT),
        shapes=tuple(find_shape(name) for name in _split(given.shapes)),
        variants=_chosen("variant", given.variants, names),
        named=_split(given.variants),
        rounds=given.rounds or (3 if quick else 15),
        device=_device(given.device),
        dtype=getattr(torch, _chosen("dtype", given.dtype, DTYPES)[0]),
        threads=given.threads,
        quick=quick,
        out=given.out,
        guard=given.guard,
        write=given.write,
    )


def _parser(about: str) -> Parser:
    parser = Parser(prog="python -m lora_zoo.bench", description=about, allow_abbrev=False)
    parser.add_argument("--what", default="", help=f"comma-separated, of {', '.join(WHAT)} (default: all)")
    parser.add_argument("--shapes", default="", help=f"of {', '.join(SHAPES)} (default: all)")
    parser.add_argument("--variants", default="", help="registered variants (default: all)")
    parser.add_argument("--rounds", type=int, help="each contender once a round (default: 15; --quick: 3)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--dtype", default="float32", help=f"the base's: {', '.join(DTYPES)}")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a few rounds on the two reference shapes")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/perf"), help="a folder (default: %(default)s)"
    )
    parser.add_argument(
        "--guard", action="store_true", help="compare with the committed reference; exit code 1 if slower"
    )
    parser.add_argument(
        "--write", action="store_true", help="with --guard: measure the reference anew and write it"
    )
    return parser


def _split(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _chosen(kind: str, text: str, choices: Iterable[str]) -> tuple[str, ...]:
    choices = tuple(choices)
    for word in _split(text):
        if word not in choices:
            raise ValueError(unknown(kind, word, choices))
    return _split(text) or choices


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(unknown("device", name, ("cpu", "cuda", "cuda:0"))) from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(unknown("device", name, ("cpu", "cuda", "cuda:0")))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: this machine has {torch.cuda.device_count()} GPUs that torch can use"
        )
    return device
