"""Stage programs: trainings one after the other, written as a generator of their stages.

@register("relora")
def relora(context, *, rounds: int = 4): ...        # yields a Stage, is sent what it learned, yields the next

A program's keyword-only arguments are its hyperparameters. It is found by its file in `lora_zoo/programs/`
or by the entry point `lora_zoo.program`.
"""

import inspect
import typing
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from lora_zoo.core.hyperparameters import checked
from lora_zoo.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


Rows = Sequence[Mapping[str, Any]]


class Pruning(NamedTuple):
    """A share of a tensor's entries that become 0: the smallest, or drawn at random."""

    by: Literal["magnitude", "random"]
    share: float


@dataclass(frozen=True)
class Stage:
    """One training of `steps` optimiser steps, with an optimiser, a schedule and a folder of its own.

    `inject` holds arguments of `inject` (rank, targets, seed, …) beside the run's, `variant` another variant
    than the run's. Then its adapter is settled (kept frozen beside what follows), discarded, or is the
    run's: `keep`, together with all that was settled, which ends the program. What a variant without
    adapters (full fine-tuning) has trained settles into W, and the run's adapter is then that variant's.
    """

    steps: int
    inject: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None
    then: Literal["settle", "discard", "keep"] = "settle"
    start: Callable[[Any], None] | None = None
    """Called with its `Injection` before the first step: there it takes over what the program has kept of the
    stage before, and what that one trained in full goes on by itself."""
    rewarm: int | None = None
    """Steps in which the rate rises from 0 to the run's own schedule, which it then follows; None for a
    schedule of the stage's own."""
    rate: float = 1.0
    """A factor on the run's learning rate."""
    pruned: Pruning | None = None
    """What the next stage's optimiser takes over: the moments of tensors of the same name and shape, those
    of adapters pruned so; None for new moments."""
    examples: Callable[[Rows], Sequence[int]] | None = None
    """From the training examples, as the data have them, to the numbers of those that it trains on."""
    name: str = ""
    """The group of `task.groups` that it learns, for the record."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `inject` beside the run's; the seed is not among them."""
        return {key: value for key, value in self.inject.items() if key != "seed"}


@dataclass(frozen=True)
class ProgramContext:
    """The run that a program divides: steps that its stages add up to, its variant and seed.

    `hyper` holds the variant's hyperparameters (rank, init, …) as they were asked for. `examples` gives
    `calibration_examples` training examples in an order that `data_seed` draws, each by itself, as keyword
    arguments of the model.
    """

    steps: int
    variant: str
    hyper: Mapping[str, Any]
    seed: int
    examples: "Callable[[], Iterator[Mapping[str, Tensor]]]"

    def steps_of(self, share: float, *, left: int = 1) -> int:
        """The steps of this share of the run: one at least, and at most all but `left`."""
        return min(max(round(share * self.steps), 1), self.steps - left)


class Program(Protocol):
    """Yields stages; `yield` returns the stage's `Injection`, trained and still in the model."""

    def __call__(self, context: ProgramContext, **hyper: Any) -> Generator[Stage, Any, None]: ...


PROGRAMS: Registry[Program] = Registry("program", "lora_zoo.programs")
register = PROGRAMS.register


def hyperparameters_of(program: Program) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a program by name, with their types."""
    hints = typing.get_type_hints(program)
    every = inspect.signature(program).parameters
    return {n: p.replace(annotation=hints.get(n, Any)) for n, p in every.items() if p.kind is p.KEYWORD_ONLY}


def complete_program(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A choice (`name` and hyperparameters) with all defaults; {} for none. ValueError for a wrong one."""
    if not chosen:
        return {}
    if "name" not in chosen:
        choices, key = ", ".join(PROGRAMS), next(iter(chosen))
        raise ValueError(f"program.{key} is a key of no program; choose one with program= ({choices})")
    name, own = str(chosen["name"]), {key: value for key, value in chosen.items() if key != "name"}
    return {"name": name, **checked(name, hyperparameters_of(PROGRAMS.find(name)), own)}


def started(chosen: Mapping[str, Any], context: ProgramContext) -> Generator[Stage, Any, None]:
    """The generator of a complete choice."""
    own = {key: value for key, value in chosen.items() if key != "name"}
    return PROGRAMS.find(chosen["name"])(context, **own)
