"""The benchmark's options, checked before anything is measured."""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lora_zoo.bench.paths import adapts_matrices
from lora_zoo.bench.shapes import SHAPES, Shape
from lora_zoo.bench.timing import Stopwatch, clock_for
from lora_zoo.core.errors import unknown
from lora_zoo.core.variants import VARIANTS

WHAT = ("step", "inference", "memory", "init", "io", "sweep", "scaling", "dropbp", "switching", "targets")
DTYPES = ("float32", "bfloat16", "float16", "float64")
DROPOUT = 0.05


@dataclass
class Options:
    """One run of the benchmark. Empty `shapes` and `named` stand for a measurement's own."""

    what: tuple[str, ...] = WHAT
    shapes: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    rounds: int = 0
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    threads: int = 1
    quick: bool = False
    out: Path = Path("experiments/perf")
    guard: bool = False
    write: bool = False
    variants: tuple[str, ...] = ()

    @property
    def adapters(self) -> list[str]:
        """The variants that adapt matrices: no baselines."""
        return [name for name in self.variants if adapts_matrices(name)]

    def cases(self, shapes: Iterable[str], names: Sequence[str]) -> Iterator[tuple[Shape, nn.Module, str]]:
        """Each shape that was named (or `shapes`), its frozen base, and each of the variants `names`."""
        for shape in map(SHAPES.__getitem__, self.shapes or shapes):
            base = shape.model(self.dtype, self.device)
            yield from ((shape, base, name) for name in names)

    def stopwatch(self, *, at_most: int = 1000) -> Stopwatch:
        """`at_most` rounds, for what takes long."""
        return Stopwatch(
            min(self.rounds, at_most),
            warmup=1 if self.quick or at_most < 1000 else 2,
            clock=clock_for(self.device, self.threads)[0],
            synchronize=torch.cuda.synchronize if self.device.type == "cuda" else bool,
        )


def parse(arguments: Sequence[str], about: str | None) -> Options:
    """The options on a command line; argparse ends the process with code 2 where they cannot be."""
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.bench", description=about, allow_abbrev=False)
    add = parser.add_argument
    add("--what", type=_names("measurement", WHAT), help=f"comma-separated, of {', '.join(WHAT)} (all)")
    add("--shapes", type=_names("shape", SHAPES), help=f"of {', '.join(SHAPES)} (all)")
    variant_names = _names("variant", VARIANTS)
    add("--variants", dest="named", metavar="VARIANTS", type=variant_names, help="registered variants (all)")
    add("--rounds", type=_count, help="each path once a round (15; --quick: 3)")
    add("--device", type=_device, help="cpu, cuda or cuda:N (cpu)")
    add("--dtype", type=_dtype, help=f"the base's: {', '.join(DTYPES)} (float32)")
    add("--threads", type=_count, help="of torch (1)")
    add("--quick", action="store_true", help="a few rounds on the two reference shapes")
    add("--out", type=Path, help=f"a folder ({Options.out})")
    add("--guard", action="store_true", help="compare with the committed reference; exit code 1 if slower")
    add("--write", action="store_true", help="with --guard: measure the reference anew and write it")
    options = parser.parse_args(arguments, Options())
    if options.write and not options.guard:
        parser.error("--write belongs to --guard: it writes the guard's reference")
    options.what = options.what or WHAT
    options.variants = options.named or tuple(VARIANTS)
    options.rounds = options.rounds or (3 if options.quick else 15)
    return options


def _names(kind: str, choices: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
        for word in words:
            if word not in choices:
                raise argparse.ArgumentTypeError(unknown(kind, word, choices))
        return words

    return names


def _dtype(text: str) -> torch.dtype:
    (name,) = _names("dtype", DTYPES)(text)
    return getattr(torch, name)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return int(text)


def _device(text: str) -> torch.device:
    if not re.fullmatch(r"(cpu|cuda)(:\d+)?", text):
        raise argparse.ArgumentTypeError(unknown("device", text, ("cpu", "cuda", "cuda:0")))
    device, gpus = torch.device(text), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise argparse.ArgumentTypeError(f"{text}: this machine has {gpus} GPUs that torch can use")
    return device
