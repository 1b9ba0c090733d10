"""Many adapters at inference: a mixed batch against a pass for each adapter, and the time of a switch."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.bench import peft
from lora_zoo.bench.options import Options
from lora_zoo.bench.paths import inject_linear, shared_copy
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.timing import Timed, summary, texts
from lora_zoo.injection.adapter_set import AdapterSet, adapters_of
from lora_zoo.injection.inject import Injection

ABOUT = """\
A forward pass of 16 rows that take turns among the adapters (r = 8, all linear layers): as one mixed batch,
inside `adapters_of(model).rows(names)`; as one pass for each adapter on its own rows, switches included; in
PEFT, with `adapter_names`. A prompt has 64 tokens a row; a token is a step of generation without its cache.
A switch is `activate` of another adapter, in PEFT `set_adapter`; a merge is `merge` and `unmerge`."""
ADAPTERS = (2, 8, 16, 50)
LENGTHS = {"prompt": 64, "token": 1}
ROWS = 16
TIMES = (
    Timed("mixed batch, ms", "mixed_ms", "mixed", unit=1e3, digits=".2f"),
    Timed("a pass each / mixed", "alone", "alone", "mixed"),
    Timed("PEFT / mixed", "peft", "peft", "mixed"),
    Timed("mixed / frozen base", "frozen", "mixed", "frozen"),
    Timed("switch, ms", "switch_ms", "switch", unit=1e3, digits=".2f"),
    Timed("PEFT's switch, ms", "peft_switch_ms", "peft switch", unit=1e3, digits=".2f"),
    Timed("merge, unmerge, ms", "merge_ms", "merge", unit=1e3, digits=".1f"),
)
Call = Callable[[], object]


def measure(options: Options) -> Measurement:
    numbers = ADAPTERS[1:4:2] if options.quick else ADAPTERS
    cases = itertools.product(options.cases(("llama-192",), options.named or ("lora",)), numbers)
    rows = [
        {"shape": shape.name, "variant": variant, "batch": batch, "adapters": number} | row
        for (shape, base, variant), number in cases
        for batch, row in measure_one(base, variant, number, options)
    ]
    columns, plotted = texts(TIMES), {"alone": "a pass for each adapter", "peft": "PEFT"}
    keys = ("shape", "variant", "batch", "adapters")
    return Measurement(
        "switching", "Many adapters", ABOUT, keys, columns, rows, "time / mixed batch", plotted
    )


def measure_one(base: nn.Module, variant: str, number: int, options: Options) -> Iterator[tuple[str, Values]]:
    """For each length of batch, a row of a model with so many adapters."""
    model, plain = shared_copy(base).eval(), shared_copy(base).eval()
    every = [inject_linear(model, variant, name=f"a{n}") for n in range(number)]
    names, adapters = [*adapters_of(model)], adapters_of(model)
    turns = [names[row % number] for row in range(ROWS)]
    theirs = in_peft(every[0], base, names) if peft.has(every[0]) else None
    for batch, length in LENGTHS.items():
        ids = torch.randint(3, 256, (ROWS, length), device=options.device)
        calls: dict[str, Call] = {
            "mixed": partial(mixed, adapters, ids, turns),
            "alone": partial(alone, adapters, ids, turns),
            "frozen": partial(plain, ids),
            "switch": switching(adapters.activate, names),
        }
        if every[0].variant.pointwise:
            calls["merge"] = partial(merged, adapters)
        if theirs is not None:
            calls["peft switch"] = switching(theirs.set_adapter, names)
            calls |= (
                {} if refused(theirs, ids, turns) else {"peft": partial(theirs, ids, adapter_names=turns)}
            )
        with torch.no_grad():
            times = options.stopwatch().interleave(
                {name: partial(same, call) for name, call in calls.items()}
            )
        yield batch, summary(TIMES, times)


def same(call: Call) -> Call:
    return call


def mixed(adapters: AdapterSet[Injection], ids: Tensor, turns: Sequence[str]) -> None:
    with adapters.rows(turns):
        adapters.model(ids)


def alone(adapters: AdapterSet[Injection], ids: Tensor, turns: Sequence[str]) -> None:
    for name in dict.fromkeys(turns):
        adapters.activate(name)
        adapters.model(ids[[row for row, own in enumerate(turns) if own == name]])


def merged(adapters: AdapterSet[Injection]) -> None:
    adapters.merge()
    adapters.unmerge()


def switching(activate: Callable[[str], object], names: Sequence[str]) -> Call:
    turn = itertools.cycle(names)
    return lambda: activate(next(turn))


def in_peft(ours: Injection, base: nn.Module, names: Sequence[str]) -> Any:
    """PEFT's model with adapters of these names, with the settings of `ours`."""
    config = peft.config(ours)
    whole = peft.wrap(shared_copy(base), config)
    for name in names:
        whole.add_adapter(name, config)
    whole.set_adapter(names[0])
    whole.delete_adapter("default")
    return whole.eval()


def refused(theirs: Any, ids: Tensor, turns: Sequence[str]) -> bool:
    """True if PEFT takes no mixed batch of such adapters."""
    try:
        theirs(ids, adapter_names=turns)
    except (ValueError, TypeError):
        return True
    return False
