"""Stacked experts in PEFT (`target_parameters`): one A and one B for all experts of a parameter.

Shapes: E experts, O out, I in, R rank. PEFT's A is (E R, I), expert after expert; its B (O, R E), by turns.
Which side of a stack is in and which is out has changed twice, in 0.19.0 and in 0.19.1 (peft#3165).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lora_zoo.core.host import Host
from lora_zoo.formats.peft.forms import PeftFolder, pick, stored
from lora_zoo.injection.base_model import own_parameters
from lora_zoo.injection.matrices import TargetMatrix


def stacked(matrix: TargetMatrix) -> bool:
    """True if `matrix` is a whole matrix of stacked experts."""
    return getattr(matrix.host, "expert", None) is not None and not matrix.whole


def keys(tensors: Sequence[str], host: Host) -> dict[str, str]:
    """Parameter -> the module that holds its factors in PEFT: of several in one, the last is outermost."""
    own = [name for name in own_parameters(host.layer) if any(t.endswith(f".{name}") for t in tensors)]
    module = tensors[0].rpartition(".")[0]
    return {f"{module}.{name}": module + ".base_layer" * (len(own) - 1 - i) for i, name in enumerate(own)}


WRITTEN = "0.21.2"
"""The version of PEFT whose layout is written."""
_RELEASE = re.compile(r"0\.(17|18|19|20|21)\.(\d+)")


def version_of(folder: PeftFolder, what: str) -> tuple[int, int]:
    """Minor and patch number of the PEFT that wrote `folder`. ValueError for one that is not known."""
    given = folder.config.get("peft_version")
    if match := _RELEASE.fullmatch(str(given)):
        return int(match[1]), int(match[2])
    raise ValueError(
        f"peft_version={given}: what PEFT does to {what} depends on the version, and is known of 0.17.0 to "
        "0.21; write the version that trained the adapter into adapter_config.json, as "
        f'"peft_version": "{WRITTEN}"'
    )


def write(host: Any, pairs: Mapping[int, tuple[Tensor, Tensor]], rank: int) -> dict[str, Tensor]:
    """The tensors by PEFT's short names; `pairs` maps experts to (B, A), the scale included."""
    E = len(host.tensor())
    O, I = host.shape
    some = next(iter(pairs.values()))[0]
    A, B = some.new_zeros(E, rank, I), some.new_zeros(E, O, rank)
    for expert, (B_OR, A_RI) in pairs.items():
        A[expert, : len(A_RI)], B[expert, :, : len(A_RI)] = A_RI, B_OR
    if _exchanged(host, (21, 2)):
        A, B = B.mT, A.mT
    return {
        "lora_A.weight": stored(A.flatten(0, 1)),
        "lora_B.weight": stored(B.permute(1, 2, 0).flatten(1)),
    }


def read(
    name: str, host: Any, tensors: Mapping[str, Tensor], rank: int, version: tuple[int, int]
) -> list[tuple[Tensor, Tensor]]:
    """(B, A) of each expert. ValueError for a missing, unexpected or misshapen tensor."""
    E = len(host.tensor())
    O, I = host.shape
    exchanged = _exchanged(host, version)
    O, I = (I, O) if exchanged else (O, I)
    shapes = {"lora_A.weight": (E * rank, I), "lora_B.weight": (O, rank * E)}
    A, B = pick(name, tensors, shapes)
    A_ERI, B_EOR = A.unflatten(0, (E, rank)), B.unflatten(1, (rank, E)).permute(2, 0, 1)
    if exchanged:
        A_ERI, B_EOR = B_EOR.mT, A_ERI.mT
    return [(b.contiguous(), a.contiguous()) for b, a in zip(B_EOR, A_ERI, strict=True)]


def _exchanged(host: Any, version: tuple[int, int]) -> bool:
    """True where PEFT's A reads the side that is out: it takes a stack for (E, I, O), or swaps the two."""
    marked = bool(getattr(host.layer, "is_transposed", False))
    swapped = version >= (19, 0) and (marked if version == (19, 0) else not marked)
    return bool(host.transposed) == swapped


def resolve(folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> dict[str, list[TargetMatrix]]:
    """Module of PEFT's -> the experts that it adapts. ValueError for a parameter that is no stack."""
    found: dict[str, list[TargetMatrix]] = {}
    stacks: dict[str, list[TargetMatrix]] = {}
    for matrix in known.values():
        if stacked(matrix):
            stacks.setdefault(matrix.tensor, []).append(matrix)
    wanted = folder.config.get("target_parameters") or []
    meant = [t for t in stacks if any(t == one or t.endswith(f".{one}") for one in wanted)]
    for one in wanted:
        if not any(t == one or t.endswith(f".{one}") for t in meant):
            raise ValueError(f"target_parameters: {one} is no stack of experts of this model")
    for tensor in meant:
        beside = [t for t in meant if t.rpartition(".")[0] == tensor.rpartition(".")[0]]
        found[keys(beside, stacks[tensor][0].host)[tensor]] = stacks[tensor]
    for module in found:
        if module not in folder.modules:
            raise ValueError(f"{module} is among target_parameters, but its tensors are missing")
    return found
