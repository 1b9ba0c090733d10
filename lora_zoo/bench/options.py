"""The benchmark's options, checked before anything is measured."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lora_zoo.adapters.registry import unknown, variants
from lora_zoo.bench.shapes import SHAPES, Shape, find_shape
from lora_zoo.bench.step_path import adapts_matrices
from lora_zoo.bench.timing import Stopwatch, stopwatch_for

WHAT = ("step", "memory", "init", "io", "sweep", "scaling", "targets")
DTYPES = ("float32", "bfloat16", "float16", "float64")
DROPOUT = 0.05


@dataclass(frozen=True)
class Options:
    """One run of the benchmark. `shapes` and `named` are those that were named, `variants` those or all."""

    what: tuple[str, ...]
    shapes: tuple[Shape, ...]
    variants: tuple[str, ...]
    named: tuple[str, ...]
    rounds: int
    device: torch.device
    dtype: torch.dtype
    threads: int
    quick: bool
    out: Path
    guard: bool
    write: bool

    @property
    def adapters(self) -> list[str]:
        """The variants that adapt matrices: no baselines."""
        return [name for name in self.variants if adapts_matrices(name)]

    def cases(self, shapes: Iterable[str], names: Sequence[str]) -> Iterator[tuple[Shape, nn.Module, str]]:
        """Each shape that was named (or `shapes`), its frozen base, and each of the variants `names`."""
        for shape in self.shapes or map(find_shape, shapes):
            base = shape.model(self.dtype, self.device)
            yield from ((shape, base, name) for name in names)

    def stopwatch(self, *, at_most: int = 1000) -> Stopwatch:
        """`at_most` rounds, for what takes long."""
        warmup = 1 if self.quick or at_most < 1000 else 2
        return stopwatch_for(self.device, self.threads, rounds=min(self.rounds, at_most), warmup=warmup)


def parse(arguments: Sequence[str], about: str | None) -> Options:
    """The options on a command line. ValueError where they cannot be."""
    given = _parser(about).parse_args(arguments)
    named = _words("variant", given.variants, variants())
    if given.write and not given.guard:
        raise ValueError("--write belongs to --guard: it writes the guard's reference")
    for key, value in (("rounds", given.rounds), ("threads", given.threads)):
        if value is not None and value < 1:
            raise ValueError(f"--{key} must be at least 1; got {value}")
    return Options(
        what=_words("measurement", given.what, WHAT) or WHAT,
        shapes=tuple(map(find_shape, _words("shape", given.shapes, SHAPES))),
        variants=named or tuple(variants()),
        named=named,
        rounds=given.rounds or (3 if given.quick else 15),
        device=_device(given.device),
        dtype=getattr(torch, (_words("dtype", given.dtype, DTYPES) or DTYPES)[0]),
        threads=given.threads,
        quick=given.quick,
        out=given.out,
        guard=given.guard,
        write=given.write,
    )


def _parser(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.bench", description=about, allow_abbrev=False)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--what", default="", help=f"comma-separated, of {', '.join(WHAT)} (default: all)")
    add("--shapes", default="", help=f"of {', '.join(SHAPES)} (default: all)")
    add("--variants", default="", help="registered variants (default: all)")
    add("--rounds", type=int, help="each path once a round (default: 15; --quick: 3)")
    add("--device", default="cpu", help=f"cpu, cuda or cuda:N {default}")
    add("--dtype", default="float32", help=f"the base's: {', '.join(DTYPES)} {default}")
    add("--threads", type=int, default=1, help=f"of torch {default}")
    add("--quick", action="store_true", help="a few rounds on the two reference shapes")
    add("--out", type=Path, default=Path("experiments/perf"), help=f"a folder {default}")
    add("--guard", action="store_true", help="compare with the committed reference; exit code 1 if slower")
    add("--write", action="store_true", help="with --guard: measure the reference anew and write it")
    return parser


def _words(kind: str, text: str, choices: Iterable[str]) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words:
        if word not in choices:
            raise ValueError(unknown(kind, word, choices))
    return words


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(unknown("device", name, ("cpu", "cuda", "cuda:0")))
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"--device {name}: this machine has {gpus} GPUs that torch can use")
    return device
