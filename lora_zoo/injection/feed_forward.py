"""Feed-forward blocks: modules that hold the matrices of the roles gate, up and down, and no others."""

from collections.abc import Mapping

from torch import nn

from lora_zoo.injection.matrices import find_matrices

FEED_FORWARD = ("gate", "up", "down")


def feed_forward_blocks(model: nn.Module) -> dict[str, str]:
    """Matrix -> the block that it is a part of, by their names.

    "" where the block is no module of its own, as BERT's, whose parts lie among those of the attention.
    """
    roles = {matrix.name: matrix.role for matrix in find_matrices(model) if matrix.role}
    return {name: _block_of(name, roles) for name, role in roles.items() if role in FEED_FORWARD}


def _block_of(name: str, roles: Mapping[str, str]) -> str:
    """The nearest module around a matrix in which there is another one."""
    place = name.rpartition(".")[0]
    while place:
        inside = {role for other, role in roles.items() if other.startswith(f"{place}.")}
        if len(inside) > 1:
            return place if inside <= {*FEED_FORWARD} else ""
        place = place.rpartition(".")[0]
    return ""
