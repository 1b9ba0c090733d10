"""Depth: the repeated layers of a model that are adapted (`layers=`), and ranks that change with it.

A number, a range (both ends included), an open range, so many at random, or a list of these: 3, -1 (the
last), "2-5", "8-", "random:4".
"""

import math
import re
from collections.abc import Sequence

import torch

from lora_zoo.core.ranks import Slope
from lora_zoo.core.seeding import generator
from lora_zoo.injection.matrices import TargetMatrix

_INSIDE = re.compile(r"(?:(?P<stack>.+?)\.)??(?P<number>\d+)(?:\..*)?")


def layer_of(name: str) -> tuple[str, int] | None:
    """(stack of layers, the layer's number in it) of a matrix's name; None outside of all layers."""
    match = _INSIDE.fullmatch(name)
    return (match["stack"] or "", int(match["number"])) if match else None


def in_layers(
    chosen: list[TargetMatrix],
    known: list[TargetMatrix],
    layers: int | str | Sequence[int | str],
    seed: int = 0,
) -> list[TargetMatrix]:
    """Those of `chosen` that lie in `layers`; negative numbers count from the end of each stack.

    Random layers are drawn by `seed` for each stack. Raises ValueError for a layer that no stack has.
    """
    depth: dict[str, int] = {}
    for matrix in known:
        if inside := layer_of(matrix.name):
            depth[inside[0]] = max(depth.get(inside[0], 0), inside[1] + 1)
    items = [layers] if isinstance(layers, (int, float, str)) else list(layers)
    found = {
        (stack, item): _numbers(item, count, seed, stack) for stack, count in depth.items() for item in items
    }
    wanted = {stack: set[int]().union(*(found[stack, item] for item in items)) for stack in depth}
    for item in items:
        if not any(found[stack, item] for stack in depth):
            raise ValueError(f"layers={item}: the model's layers are 0-{max(depth.values(), default=1) - 1}")
    matrices = ((matrix, layer_of(matrix.name)) for matrix in chosen)
    return [matrix for matrix, inside in matrices if inside and inside[1] in wanted[inside[0]]]


def ranks_by_depth(matrices: Sequence[TargetMatrix], slope: Slope, key: str) -> dict[str, int]:
    """Matrix -> its rank: `slope.first` in the first of the layers, `slope.last` in the last, linear between.

    PRILoRA, arXiv:2401.11316, lets ranks rise so; halves are rounded up. Each stack of layers has its own
    first and last. ValueError for a matrix that lies in no layer.
    """
    places = {matrix.name: layer_of(matrix.name) for matrix in matrices}
    if outside := next((name for name, place in places.items() if place is None), ""):
        raise ValueError(f"{key}: {slope} are ranks by depth, and {outside} lies in no layer; give it a rank")
    inside = {name: place for name, place in places.items() if place is not None}
    ends = {stack: [n for s, n in inside.values() if s == stack] for stack, _ in inside.values()}
    found = {}
    for name, (stack, number) in inside.items():
        low, high = min(ends[stack]), max(ends[stack])
        share = (number - low) / (high - low) if high > low else 0.5
        found[name] = math.floor(slope.first + (slope.last - slope.first) * share + 0.5)
    return found


def _numbers(item: int | str, count: int, seed: int, stack: str) -> set[int]:
    """The layers that one item selects of a stack of `count`."""
    match = re.fullmatch(r"(-?\d+)|(\d+)-(\d*)|random:(\d+)", str(item))
    if not match:
        raise ValueError(f"layers: {item!r} is no layer; write for example [0,2-5], 8-, -1 or random:4")
    if match[4]:
        drawn = torch.randperm(count, generator=generator("layers", seed, stack))[: int(match[4])]
        return set(drawn.tolist()) if int(match[4]) <= count else set()
    if match[1]:
        number = int(match[1])
        return {number % count} if -count <= number < count else set()
    last = int(match[3]) if match[3] else count - 1
    return set(range(int(match[2]), last + 1)) if last < count else set()
