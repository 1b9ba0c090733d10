"""Structures of a transformer that can go as a whole: the heads of an attention, the channels of an MLP.

Heads that share their keys and values (GQA) are one group. Shapes: G groups, O out, I in.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn

from lora_zoo.injection.base_model import named_base_modules
from lora_zoo.injection.matrices import TargetMatrix, find_matrices

Kind = Literal["heads", "channels"]
_READERS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "o": ("heads", ("q", "k", "v")),
    "down": ("channels", ("up",)),
}
"""The role that reads a structure -> its kind, and the roles of which each makes a part of it."""


class Structure(NamedTuple):
    """`groups` equal blocks: rows of the matrices that make them (`makers`), columns of the `reader`.

    A group whose columns in the reader are zero has no effect, whatever its rows and their biases are.
    """

    kind: Kind
    groups: int
    makers: tuple[TargetMatrix, ...]
    reader: TargetMatrix

    @property
    def members(self) -> tuple[TargetMatrix, ...]:
        return (*self.makers, self.reader)

    def by_group(self, member: TargetMatrix, values_OI: Tensor) -> Tensor:
        """Values of a member's entries, those of a group in its row: (G, entries)."""
        return (values_OI.T if member is self.reader else values_OI).reshape(self.groups, -1)


def find_structures(model: nn.Module) -> list[Structure]:
    """The structures of the base model that have more than one group, in the model's order.

    Matrices belong together by their roles and the innermost module around them. Experts, and layers that
    are fused in an order that is not known, are in none.
    """
    known, modules, found = find_matrices(model), dict(named_base_modules(model)), list[Structure]()
    for reader in (matrix for matrix in known if matrix.role in _READERS):
        kind, roles = _READERS[reader.role]
        makers, I = _makers(reader, roles, known), reader.shape[1]
        groups = _key_heads(makers, reader, modules) if kind == "heads" and makers else I
        even = not any(side % groups for side in (I, *(maker.shape[0] for maker in makers)))
        if makers and groups > 1 and even:
            found.append(Structure(kind, groups, makers, reader))
    return found


def _makers(
    reader: TargetMatrix, roles: tuple[str, ...], known: list[TargetMatrix]
) -> tuple[TargetMatrix, ...]:
    """The matrices of these roles in the innermost module that has one, and a gate beside `up`.

    () where a role is not there just once, or the channels of an MLP are not as many as its reader's.
    """
    module, inside = reader.name, list[TargetMatrix]()
    while module and not any(matrix.role == roles[0] for matrix in inside):
        module = module.rpartition(".")[0]
        inside = [m for m in known if not module or m.name.startswith(f"{module}.")]
    gated = "up" in roles and any(matrix.role == "gate" for matrix in inside)
    wanted = (*roles, "gate") if gated else roles
    makers = tuple(matrix for role in wanted for matrix in inside if matrix.role == role)
    fit = "up" not in roles or all(maker.shape[0] == reader.shape[1] for maker in makers)
    return makers if fit and [maker.role for maker in makers] == list(wanted) else ()


def _key_heads(
    makers: tuple[TargetMatrix, ...], reader: TargetMatrix, modules: Mapping[str, nn.Module]
) -> int:
    """The heads of the keys, as the configuration around the attention says; 1 where none does."""
    name, heads = reader.name, 0
    while name and not heads:
        name = name.rpartition(".")[0]
        heads = getattr(getattr(modules.get(name), "config", None), "num_attention_heads", None) or 0
    q_rows, k_rows = (maker.shape[0] for maker in makers[:2])
    if not isinstance(heads, int) or not heads or q_rows % heads:
        return 1
    shared = k_rows // (q_rows // heads)
    return shared if shared and heads % shared == 0 and k_rows == shared * (q_rows // heads) else heads
