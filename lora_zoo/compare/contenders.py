"""Contenders of a comparison: what is compared, checked and sized before anything is trained.

lora                     a registered variant
./mine.py  ./mine.py:B   a variant of a file
init=eva                 an initialisation, of LoRA
'dora init=./mine.py'    a variant with keys of its own, as on the command line of a run
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_zoo.config import command_line, compose
from lora_zoo.config.spec import RunSpec
from lora_zoo.core.init import INITS
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.preview import Preview
from lora_zoo.runs.identity import specify
from lora_zoo.sweeps.cells import key_of, without_keys
from lora_zoo.training.dry_run import previewed

OWN = re.compile(r"(?:variant|init|alpha|lora_dropout|program|calibration_examples)$|(?:variant|program)\.")
"""Keys that a contender may have to itself."""
KEPT = re.compile(
    r"(?:seed|data_seed|lr|budget|out|variant|experiment|dry_run|resume|merge|prior|start_from|threads|eval_splits)$|hydra"
)
"""Keys that the comparison gives itself."""
USUAL = ("eval_before_training=false", "tracking=none")


@dataclass(frozen=True)
class Contender:
    """One contender at one size, and all that its runs share but rate and seed."""

    label: str
    overrides: tuple[str, ...]
    identity: str
    """Of its run at the centre of the rates, seed 0."""
    lr: float
    """The centre of its rates."""
    rank: int | None
    adapter: int
    """Trainable parameters of its adapters, heads not counted."""
    trainable: int
    steps: int | None
    """Optimiser steps; None where `epochs` are given."""
    epochs: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The candidate against references at one size; `at` is rank or parameters."""

    at: str
    candidate: Contender
    references: tuple[Contender, ...]
    absent: tuple[str, ...] = ()
    """Sentences on references that cannot be had at this size."""

    @property
    def cells(self) -> tuple[Contender, ...]:
        return (self.candidate, *self.references)


def split_names(text: str) -> list[str]:
    """`a,'dora init=x',c` at the commas that stand in no bracket."""
    return [part.strip() for part in re.split(r",(?![^\[{(]*[\]})])", text) if part.strip()]


def overrides_of(text: str) -> list[str]:
    """A contender as overrides of a run. ValueError for one that means nothing, or takes too much."""
    words = shlex.split(text)
    if not words:
        raise ValueError("a contender is missing: name a variant, FILE.py or init=NAME")
    first, *more = words
    named = [] if "=" in first else [f"+variant={first}"]
    if named and first in INITS and first not in VARIANTS:
        raise ValueError(f"{first} is an initialisation: write init={first}, or 'dora init={first}'")
    own = [*more] if named else words
    for word in own:
        if not OWN.match(key_of(word)):
            raise ValueError(
                f"{text!r}: {word} is none of a contender's own keys (variant, init, alpha, lora_dropout, "
                "variant.KEY, program); what all contenders share stands after the candidate"
            )
    return named + own


def check_common(overrides: Sequence[str]) -> None:
    """Raise ValueError for a key that the comparison gives itself, for flags, and for several values."""
    for word in overrides:
        key, equals, _ = word.lstrip("+~").partition("=")
        if not equals or word.startswith("-"):
            raise ValueError(f"{word!r} is no KEY=VALUE of a run (rank=8, steps=100, target_modules=[q,v])")
        if key == "task.lr":
            raise ValueError("task.lr: the rates are tuned; --rates FACTOR,FACTOR says which are tried")
        if KEPT.match(key):
            raise ValueError(f"{key}: the comparison gives it itself; leave it out here")


def check_contenders(
    candidate: str, references: Sequence[str], common: Sequence[str], sizes: Sequence[str]
) -> list[Comparison]:
    """The comparisons, at equal rank and at equal parameters as far as `sizes` ask for them.

    ValueError where a contender, the task or the model cannot be run as given.
    """
    check_common(common)
    texts = [candidate, *references]
    if len(texts) < 2:
        raise ValueError(
            "--against names nothing; give a variant, FILE.py or init=NAME, commas between several"
        )
    at_rank = [_cell(text, common) for text in texts]
    labels = [cell.label for cell in at_rank]
    for position, cell in enumerate(at_rank):
        if cell.label in labels[:position] or cell.identity in [c.identity for c in at_rank[:position]]:
            other = next(c for c in at_rank if cell.label == c.label or c.identity == cell.identity)
            raise ValueError(f"{cell.label} and {other.label} are one and the same run; compare two things")
    found = [*_comparisons(texts, at_rank, common, sizes)]
    if not any(comparison.references for comparison in found):
        raise ValueError(f"nothing to compare at equal parameters: {'; '.join(found[0].absent)}")
    return found


def _comparisons(
    texts: Sequence[str], at_rank: list[Contender], common: Sequence[str], sizes: Sequence[str]
) -> Iterator[Comparison]:
    if "rank" in sizes:
        yield Comparison("rank", at_rank[0], tuple(at_rank[1:]))
    if "parameters" not in sizes:
        return
    wanted, absent = at_rank[1].adapter, list[str]()
    found: list[Contender] = []
    for text, cell in zip(texts, at_rank, strict=True):
        try:
            found.append(cell if cell.adapter == wanted else _sized(text, common, wanted))
        except ValueError as refusal:
            absent.append(f"{cell.label}: {refusal}")
    if len(found) > 1 and found[0].label == at_rank[0].label:
        yield Comparison("parameters", found[0], tuple(found[1:]), tuple(absent))
    else:
        yield Comparison("parameters", at_rank[0], (), tuple(absent))


def _sized(text: str, common: Sequence[str], wanted: int) -> Contender:
    return _cell(text, [*without_keys(common, ["rank"]), f"budget={wanted}"])


def _cell(text: str, common: Sequence[str]) -> Contender:
    own = overrides_of(text)
    try:
        spec = specified([*own, *common])
        found = previewed(spec)
    except ValueError as mistake:
        raise ValueError(str(mistake) if text in str(mistake) else f"{text}: {mistake}") from mistake
    if found.unmatched:
        raise ValueError(f"{text}: {found.unmatched[0]}")
    settings = spec.settings
    epochs = None if settings.steps else (settings.epochs or settings.task.epochs)
    steps = None if epochs else (settings.steps or settings.task.steps)
    return Contender(
        label=" ".join([spec.variant.name, *(w.lstrip("+") for w in own if key_of(w) != "variant")]),
        overrides=(*own, *common),
        identity=spec.identity,
        lr=settings.lr,
        rank=next((row.rank for row in found.rows if row.rank is not None), None),
        adapter=_adapter(found),
        trainable=found.trainable,
        steps=steps,
        epochs=epochs,
    )


def _adapter(found: Preview) -> int:
    return found.trainable - sum(found.fully_trained.values())


def specified(overrides: Sequence[str]) -> RunSpec:
    """The run of these overrides. ValueError (a Mistake) where they cannot be run."""
    ready = command_line.overrides(command_line.rewritten(with_usual(overrides)))
    return specify(compose.check(ready, multirun=False)[0], ready)


def with_usual(overrides: Sequence[str]) -> list[str]:
    """The overrides, after those that a comparison gives where they do not."""
    return [*without_keys(USUAL, [key_of(word) for word in overrides]), *overrides]
