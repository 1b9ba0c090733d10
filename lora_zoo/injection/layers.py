"""`layers=`: which of a model's repeated layers are adapted.

A number, a range (both ends included), an open range or a list of these: 3, -1 (the last), "2-5", "8-".
"""

import re
from collections.abc import Sequence

from lora_zoo.injection.matrices import TargetMatrix

_INSIDE = re.compile(r"(?:(?P<stack>.+?)\.)??(?P<number>\d+)(?:\..*)?")


def layer_of(name: str) -> tuple[str, int] | None:
    """(stack of layers, the layer's number in it) of a matrix's name; None outside of all layers."""
    match = _INSIDE.fullmatch(name)
    return (match["stack"] or "", int(match["number"])) if match else None


def in_layers(
    chosen: list[TargetMatrix], known: list[TargetMatrix], layers: int | str | Sequence[int | str]
) -> list[TargetMatrix]:
    """Those of `chosen` that lie in `layers`; negative numbers count from the end of each stack.

    Raises ValueError for a layer that no stack has.
    """
    depth: dict[str, int] = {}
    for matrix in known:
        if inside := layer_of(matrix.name):
            depth[inside[0]] = max(depth.get(inside[0], 0), inside[1] + 1)
    items = [layers] if isinstance(layers, (int, float, str)) else list(layers)
    wanted = {stack: {n for item in items for n in _numbers(item, count)} for stack, count in depth.items()}
    for item in items:
        if not any(_numbers(item, count) for count in depth.values()):
            raise ValueError(f"layers={item}: the model's layers are 0-{max(depth.values(), default=1) - 1}")
    matrices = ((matrix, layer_of(matrix.name)) for matrix in chosen)
    return [matrix for matrix, inside in matrices if inside and inside[1] in wanted[inside[0]]]


def _numbers(item: int | str, count: int) -> set[int]:
    """The layers that one item selects of a stack of `count`."""
    match = re.fullmatch(r"(-?\d+)|(\d+)-(\d*)", str(item))
    if not match:
        raise ValueError(f"layers: {item!r} is no layer; write for example [0,2-5], 8- or -1")
    if match[1]:
        number = int(match[1])
        return {number % count} if -count <= number < count else set()
    last = int(match[3]) if match[3] else count - 1
    return set(range(int(match[2]), last + 1)) if last < count else set()
