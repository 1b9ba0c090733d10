"""Initialisations of the factors A (R, I) and B (O, R) of a low-rank update, by name.

`init` is an axis of its own: any initialisation combines with any variant that has free factors. A residual
one (PiSSA, MiLoRA, OLoRA) begins away from zero and keeps its first factors, so that the variant works on
W - s B0 A0 + s B A: the model's function is unchanged at step 0 and the stored base is never written to.
Shapes: O out, I in, R rank.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lora_zoo.core.dtypes import uncast
from lora_zoo.core.errors import unknown
from lora_zoo.core.registry import Registry
from lora_zoo.core.seeding import derived_seed, generator
from lora_zoo.core.statistics import Statistics, check_needs


class Factors(NamedTuple):
    A_RI: Tensor
    B_OR: Tensor


@dataclass
class Recoding:
    """Makes a quantised layer's codes anew, from W - s B A: W is from before its quantisation.

    `coder` is the layer's (`hosts.coders.Coder`), `taken` the factors from which its codes were made.
    """

    coder: Any
    original_OI: Tensor
    scale: float
    taken: Factors | None = None

    def rounded(self, W_OI: Tensor) -> Tensor:
        """The values that codes of `W_OI` would have; the layer keeps its own."""
        values: Tensor = self.coder.rounding(W_OI)
        return values.to(W_OI.dtype)

    @torch.no_grad()
    def take(self, factors: Factors) -> None:
        """Give the layer the codes of W - s B A."""
        with uncast(self.original_OI.device):
            A_RI, B_OR = (f.detach().to(self.original_OI) for f in factors)
            self.coder.put(self.coder.encode(self.original_OI - self.scale * (B_OR @ A_RI)))
        self.taken = factors


class RandomSource(NamedTuple):
    """Randomness of one matrix: a generator for each factor, and the number from which they were made.

    `statistics` are those that the initialisation needs; `recoding` is for one that `recodes`.
    """

    A: torch.Generator
    B: torch.Generator
    seed: int
    statistics: Statistics
    recoding: Recoding | None = None


class Draw(Protocol):
    def __call__(self, W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors: ...


Allot = Callable[[Mapping[str, Statistics], Mapping[str, int]], Mapping[str, int]]
"""From statistics and ranks by matrix to other ranks; a matrix of rank 0 gets no adapter."""
Refusal = Callable[[tuple[int, int], int], str]
"""From a shape (O, I) and a rank to the reason why it cannot be, "" if it can."""


@dataclass(frozen=True)
class Init:
    """One initialisation.

    `zero` names the factors that begin at zero ("A", "B", "AB" or none), `source` is the paper. One that
    `moves` leaves W' away from W at step 0. A `control` is what an initialisation must not be, to see why.
    One that `recodes` gives a quantised layer other codes.
    `needs` are the statistics of data that it looks at, from which `allot` may also give other ranks.
    """

    name: str
    draw: Draw
    source: str
    residual: bool = False
    zero: str = ""
    moves: bool = False
    control: bool = False
    recodes: bool = False
    iterations: int = 0
    needs: tuple[str, ...] = ()
    allot: Allot | None = None
    refusal: Refusal = lambda shape, rank: ""

    @property
    def family(self) -> str:
        """The name without the number of iterations."""
        return self.name.removesuffix(f"_{self.iterations}")


@dataclass(frozen=True)
class InitFamily:
    """Initialisations called `<name>_<K>`, of K = 1 to 99 iterations."""

    name: str
    draw: Callable[[int], Draw]
    source: str
    residual: bool = False
    moves: bool = False
    recodes: bool = False
    needs: tuple[str, ...] = ()

    def member(self, iterations: int) -> Init:
        facts = {key: getattr(self, key) for key in ("residual", "moves", "recodes", "needs")}
        name = f"{self.name}_{iterations}"
        return Init(name, self.draw(iterations), self.source, iterations=iterations, **facts)


INITS: Registry[Init | InitFamily] = Registry("init", "lora_zoo.inits")
_BLANK = ContextVar("blank", default=False)  # each job of a pack has a context of its own


def register(
    name: str,
    source: str,
    *,
    residual: bool = False,
    zero: str = "",
    moves: bool = False,
    control: bool = False,
    recodes: bool = False,
    needs: Iterable[str] = (),
    allot: Allot | None = None,
    refusal: Refusal = lambda shape, rank: "",
) -> Callable[[Draw], Draw]:
    """Add the drawing function below to `INITS`, with the facts of `Init`."""

    def keep(draw: Draw) -> Draw:
        made = Init(
            name,
            draw,
            source,
            residual,
            zero,
            moves,
            control,
            recodes,
            needs=check_needs(needs),
            allot=allot,
            refusal=refusal,
        )
        INITS.add(name, made, source=draw)
        return draw

    return keep


def register_family(
    name: str,
    source: str,
    *,
    residual: bool = False,
    moves: bool = False,
    recodes: bool = False,
    needs: Iterable[str] = (),
) -> Callable[[Callable[[int], Draw]], Callable[[int], Draw]]:
    """Add the function below, from a number of iterations to a drawing function, to `INITS`."""

    def keep(draw: Callable[[int], Draw]) -> Callable[[int], Draw]:
        made = InitFamily(name, draw, source, residual, moves, recodes, check_needs(needs))
        INITS.add(name, made, source=draw)
        return draw

    return keep


def find_init(name: str) -> Init:
    """`name` of `INITS`, or `<family>_K`. ValueError otherwise."""
    if member := _found(name):
        return member
    raise ValueError(unknown("init", name, init_names()) + ", or a Python file of your own")


def known_init(name: str) -> bool:
    """True if `find_init` finds it."""
    return _found(name) is not None


def _found(name: str) -> Init | None:
    family, _, iterations = name.rpartition("_")
    numbered = INITS.get(family) if re.fullmatch(r"[1-9]\d?", iterations) else None
    if isinstance(numbered, InitFamily):
        return numbered.member(int(iterations))
    member = INITS.get(name)
    return member if isinstance(member, Init) else None


def init_names(accepts: Callable[[Init], bool] = lambda init: True) -> list[str]:
    """The initialisations that `accepts` lets through, a family by its member of four iterations."""
    members = (m if isinstance(m, Init) else m.member(4) for m in INITS.values())
    return [member.name for member in members if accepts(member)]


def kept_factors(init: str, recoding: Recoding | None, first: Factors) -> Factors | None:
    """Copies of the factors from which codes were made, zeros where none were; None where `init` makes none.

    They are where and as the `first` factors, which train.
    """
    if not find_init(init).recodes:
        return None
    taken = (recoding.taken if recoding else None) or Factors(*map(torch.zeros_like, first))
    return Factors(*(own.detach().to(like, copy=True) for own, like in zip(taken, first, strict=True)))


def initial_factors(
    name: str,
    W_OI: Tensor,
    *,
    rank: int,
    scale: float,
    seed: int,
    matrix: str,
    statistics: Statistics | None = None,
    recoding: Recoding | None = None,
) -> tuple[Factors, bool]:
    """The factors at step 0 on `W_OI`'s device, float32 or wider, and whether they are residual.

    `matrix` is the name of W, which keys the draw together with `seed`. ValueError for a rank that does not
    fit, and without the statistics that the initialisation needs.
    """
    chosen = find_init(name)
    O, I = W_OI.shape
    if not 1 <= rank <= min(O, I):
        raise ValueError(f"rank must lie between 1 and the smaller side of {matrix} ({O} x {I}); got {rank}")
    if reason := chosen.refusal((O, I), rank):
        raise ValueError(f"init={name} on {matrix} ({O} x {I}): {reason}")
    wide = torch.promote_types(W_OI.dtype, torch.float32)
    if _BLANK.get():
        return Factors(
            W_OI.new_zeros(rank, I, dtype=wide), W_OI.new_zeros(O, rank, dtype=wide)
        ), chosen.residual
    number = derived_seed("init", seed, matrix)
    missing = [need for need in chosen.needs if need not in (statistics or {})]
    if missing:
        raise ValueError(f"init={name} looks at data: {matrix} lacks the statistics {', '.join(missing)}")
    if chosen.recodes and recoding is None:
        raise ValueError(f"init={name} makes codes of its own, which this adapter of {matrix} cannot keep")
    source = RandomSource(generator(number, "A"), generator(number, "B"), number, statistics or {}, recoding)
    A_RI, B_OR = chosen.draw(W_OI.detach().to(wide), rank, scale, source)
    A_RI, B_OR = (f.to(W_OI.device, wide).contiguous() for f in (A_RI, B_OR))
    return Factors(A_RI, B_OR), chosen.residual


def statistics_needed(cls: type[Any], hyper: Mapping[str, Any]) -> tuple[str, ...]:
    """The statistics that a variant needs with these hyperparameters; none inside `blank`."""
    init = hyper.get("init")
    of_init = find_init(init).needs if init and init != "auto" else ()
    return () if _BLANK.get() else tuple(dict.fromkeys((*cls.needs, *of_init)))


def is_blank() -> bool:
    """True inside `blank`: nothing needs to be drawn."""
    return _BLANK.get()


@contextlib.contextmanager
def blank() -> Iterator[None]:
    """Inside, every initialisation is zeros of the right shape: for adapters that are about to be loaded."""
    before = _BLANK.set(True)
    try:
        yield
    finally:
        _BLANK.reset(before)
