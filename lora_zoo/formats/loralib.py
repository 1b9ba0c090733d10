"""loralib's checkpoints: `….lora_A` and `….lora_B` in a file of tensors, from any device.

The file holds no alpha and no names of enabled parts. Shapes: O out, I in, R rank, N enabled parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.core.dtypes import wide
from lora_zoo.formats.peft.forms import reader_of, spread
from lora_zoo.formats.peft.low_rank import factored, no_wider
from lora_zoo.formats.safe_files import tensors_in
from lora_zoo.inject.base_model import base_buffers, base_parameters
from lora_zoo.inject.matrices import TargetMatrix, places
from lora_zoo.inject.plan import InjectionPlan, Plan, check


class LoralibUpdate(NamedTuple):
    """s B A on one place."""

    place: TargetMatrix
    scale: float
    B_OR: Tensor
    A_RI: Tensor


def from_loralib(
    model: nn.Module, path: Path, *, alpha: float | None = None, enable: Sequence[str] = ()
) -> tuple[InjectionPlan, dict[str, Tensor], bool]:
    """What to inject into `model`, and its tensors by our names; `enable`: roles, as `enable_lora`.

    Other tensors are parameters that trained beside LoRA, where they differ from the base's. Raises
    ValueError, naming file and tensor, for what does not fit the model.
    """
    tensors = tensors_in(path)
    if not any(name.endswith(".lora_A") for name in tensors):
        raise ValueError(f"{path} holds no ….lora_A: it is no checkpoint of loralib's")
    if alpha is None:
        raise ValueError(f"{path}: loralib's files do not hold alpha, for the scale alpha/r; give alpha")
    pairs: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last in {"lora_A", "lora_B"}:
            pairs.setdefault(module, {})[last] = tensor
        else:
            rest[name] = tensor
    try:
        pieces = list(_pieces(model, pairs, alpha, enable))
        fully_trained = _beside(model, rest)
    except ValueError as mistake:
        raise ValueError(f"{path}: {mistake}") from None
    cls, _ = reader_of({"peft_type": "LORA"})
    hyper, patterns = spread(
        rank={p.place.name: len(p.A_RI) for p in pieces},
        alpha={p.place.name: p.scale * len(p.A_RI) for p in pieces},
    )
    plan = Plan([piece.place for piece in pieces], list(fully_trained))
    state = {f"{p.place.name}.B_OR": p.B_OR for p in pieces} | {
        f"{p.place.name}.A_RI": p.A_RI for p in pieces
    }
    return InjectionPlan(cls, plan, check(cls, hyper), patterns), state | fully_trained, False


def _pieces(
    model: nn.Module, pairs: Mapping[str, Mapping[str, Tensor]], alpha: float, enable: Sequence[str]
) -> Iterator[LoralibUpdate]:
    known = places(model)
    by_name = {place.name: place for place in known}
    for module, pair in pairs.items():
        if module not in by_name or by_name[module].whole:
            raise ValueError(f"{module} is adapted, but this model has no such layer")
        _check_matrices(module, pair)
        A, B, place = pair["lora_A"], pair["lora_B"], by_name[module]
        if place.host.kind == "convolution":
            yield _convolution(place, A, B, alpha)
        elif B.shape == (place.shape[0], len(A)) and A.shape[1] == place.shape[1]:
            yield _piece(place, alpha, B, A)
        else:
            chosen = _enabled(place, [p for p in known if p.whole == module], A, B, enable)
            for part, B_OR, A_RI in zip(chosen, B.chunk(len(chosen)), A.chunk(len(chosen)), strict=True):
                yield _piece(part, alpha, B_OR, A_RI)


def _check_matrices(module: str, pair: Mapping[str, Tensor]) -> None:
    for name in ("lora_A", "lora_B"):
        if name not in pair:
            raise ValueError(f"{module}.{name} is missing")
        if pair[name].ndim != 2 or not pair[name].numel():
            raise ValueError(f"{module}.{name} is {tuple(pair[name].shape)}, no matrix")


def _piece(place: TargetMatrix, alpha: float, B: Tensor, A: Tensor) -> LoralibUpdate:
    return LoralibUpdate(place, alpha / len(A), *no_wider(B, A))


def _enabled(
    place: TargetMatrix, parts: list[TargetMatrix], A: Tensor, B: Tensor, enable: Sequence[str]
) -> list[TargetMatrix]:
    """The enabled parts of loralib's MergedLinear, in order: A is (N R, I) and B (N O / parts, R).

    The file tells their number alone; two of three are q and v, as in the paper, unless `enable` says else.
    """
    (O, I), R = place.shape, B.shape[1]
    N = len(A) // R
    if not parts or A.shape != (N * R, I) or len(B) * len(parts) != O * N or not 1 <= N <= len(parts):
        raise ValueError(
            f"{place.name}.lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} do not fit ({O}, {I})"
        )
    height, rows = O // len(parts), torch.arange(O)
    ordered = sorted(parts, key=lambda part: int(rows[part.host.part][0]))
    for number, part in enumerate(ordered):
        if not torch.equal(rows[part.host.part], rows[number * height : (number + 1) * height]):
            raise ValueError(f"{place.name}: loralib's parts are equal and in one piece, this layer's not")
    roles = list(enable) or ([part.role for part in parts] if len(parts) == N else ["q", "v"])
    chosen = [part for part in ordered if part.role in roles]
    if len(chosen) != N:
        have = ", ".join(part.role for part in ordered)
        raise ValueError(f"{place.name} has {N} of its parts ({have}) adapted; enable must name these")
    return chosen


def _convolution(place: TargetMatrix, A: Tensor, B: Tensor, alpha: float) -> LoralibUpdate:
    """loralib's factors are (R k, C k) and (O / groups k, R k): a matrix (O, I) of a rank of its own."""
    weight = place.host.tensor()
    R, odd = divmod(len(A), weight.shape[-1])
    if odd or len(A) != B.shape[1] or len(B) * A.shape[1] != weight.numel():
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (A, B, weight))
        raise ValueError(f"{place.name}: lora_A, lora_B and the layer do not fit each other: {shapes}")
    dW_OI = (B.double() @ A.double()).view(place.shape).float()
    B_OR, A_RI, _ = factored(dW_OI, min(place.shape))
    return LoralibUpdate(place, alpha / R, B_OR, A_RI)


def _beside(model: nn.Module, rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that are not the base's. ValueError for a tensor that the model has not."""
    every, buffers, found = base_parameters(model), base_buffers(model), {}
    for name, tensor in rest.items():
        there = every.get(name, buffers.get(name))
        if there is None:
            raise ValueError(f"{name} is not a parameter of this model")
        if there.shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(there.shape)}")
        if name in every and not torch.equal(wide(there).cpu(), tensor.to(wide(there).dtype)):
            found[name] = tensor
    return found
