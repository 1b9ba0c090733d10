"""Read loralib's checkpoints: `….lora_A` and `….lora_B` in a file of tensors, from any device.

The file holds no alpha and no names of enabled parts. Shapes: O out, I in, R rank, N enabled parts.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_zoo.core.dtypes import wide
from lora_zoo.formats.peft.forms import SavedAdapter, reader_of, spread
from lora_zoo.formats.peft.updates import LowRankUpdate, factored, no_wider
from lora_zoo.formats.safe_files import tensors_in
from lora_zoo.injection.base_model import base_buffers, base_parameters, own_names
from lora_zoo.injection.matrices import TargetMatrix, find_matrices
from lora_zoo.injection.plan import InjectionPlan, complete_hyperparameters
from lora_zoo.injection.trained_buffers import names_of_buffers

NAMES = ("lora_A", "lora_B")
"""The tensors of an adapted module."""


def from_loralib(
    model: nn.Module, path: Path, *, alpha: float | None = None, enable: Sequence[str] = ()
) -> SavedAdapter:
    """Read the file at `path` for `model`; `enable`: roles of the adapted parts of fused layers.

    Other tensors are fully trained parameters, where they differ from the base's. Raises ValueError, naming
    file and tensor, for a file that does not fit the model.
    """
    tensors = own_names(model, tensors_in(path))
    if not any(name.endswith(".lora_A") for name in tensors):
        raise ValueError(f"{path} holds no ….lora_A: it is no checkpoint of loralib's")
    if alpha is None:
        raise ValueError(f"{path}: loralib's files do not hold alpha, for the scale alpha/r; give alpha")
    pairs: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last in NAMES:
            pairs.setdefault(module, {})[last] = tensor
        else:
            rest[name] = tensor
    try:
        updates = list(_updates(model, pairs, alpha, enable))
        fully_trained = _fully_trained(model, rest, pairs.keys())
    except ValueError as mistake:
        raise ValueError(f"{path}: {mistake}") from None
    cls, _ = reader_of({"peft_type": "LORA"})
    hyper, patterns = spread(
        rank={u.matrix.name: len(u.A_RI) for u in updates},
        alpha={u.matrix.name: u.scale * len(u.A_RI) for u in updates},
    )
    hyper, matrices = complete_hyperparameters(cls, hyper), [u.matrix for u in updates]
    names = [name for name in fully_trained if name in base_parameters(model)]
    state = {f"{u.matrix.name}.B_OR": u.B_OR for u in updates}
    state |= {f"{u.matrix.name}.A_RI": u.A_RI for u in updates}
    plan = InjectionPlan(cls, hyper, matrices, names, patterns=patterns)
    return SavedAdapter(plan, state | fully_trained, path)


def _updates(
    model: nn.Module, pairs: Mapping[str, Mapping[str, Tensor]], alpha: float, enable: Sequence[str]
) -> Iterator[LowRankUpdate]:
    known = find_matrices(model)
    by_name = {matrix.name: matrix for matrix in known}
    for module, pair in pairs.items():
        if module not in by_name or by_name[module].whole:
            raise ValueError(f"{module} is adapted, but this model has no such layer")
        _check_matrices(module, pair)
        A, B, matrix = pair["lora_A"], pair["lora_B"], by_name[module]
        if matrix.host.peft_layer == "convolution":
            yield _convolution(matrix, A, B, alpha)
        elif B.shape == (matrix.shape[0], len(A)) and A.shape[1] == matrix.shape[1]:
            yield _update(matrix, alpha, B, A)
        else:
            chosen = _enabled(matrix, [p for p in known if p.whole == module], A, B, enable)
            for part, B_OR, A_RI in zip(chosen, B.chunk(len(chosen)), A.chunk(len(chosen)), strict=True):
                yield _update(part, alpha, B_OR, A_RI)


def _check_matrices(module: str, pair: Mapping[str, Tensor]) -> None:
    for name in NAMES:
        if name not in pair:
            raise ValueError(f"{module}.{name} is missing")
        if pair[name].ndim != 2 or not pair[name].numel():
            raise ValueError(f"{module}.{name} is {tuple(pair[name].shape)}, no matrix")


def _update(matrix: TargetMatrix, alpha: float, B: Tensor, A: Tensor) -> LowRankUpdate:
    return LowRankUpdate(matrix, *no_wider(B, A), alpha / len(A))


def _enabled(
    matrix: TargetMatrix, parts: list[TargetMatrix], A: Tensor, B: Tensor, enable: Sequence[str]
) -> list[TargetMatrix]:
    """The enabled parts of loralib's MergedLinear, in order: A is (N R, I) and B (N O / parts, R).

    The file holds their number alone; where it is not that of all parts, `enable` has to name them.
    """
    (O, I), R = matrix.shape, B.shape[1]
    N = len(A) // R
    if not parts or A.shape != (N * R, I) or len(B) * len(parts) != O * N or not 1 <= N <= len(parts):
        raise ValueError(
            f"{matrix.name}.lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} do not fit ({O}, {I})"
        )
    height, rows = O // len(parts), torch.arange(O)
    ordered = sorted(parts, key=lambda part: int(rows[part.host.part][0]))
    for number, part in enumerate(ordered):
        if not torch.equal(rows[part.host.part], rows[number * height : (number + 1) * height]):
            raise ValueError(f"{matrix.name}: loralib's parts are equal and in one piece, this layer's not")
    roles = list(enable) or [part.role for part in parts]
    chosen = [part for part in ordered if part.role in roles]
    if len(chosen) != N:
        have = ", ".join(part.role for part in ordered)
        raise ValueError(
            f"{matrix.name} has {N} of its parts ({have}) adapted, and the file does not say which; enable "
            "must name these (--enable q,v for q and v, as in LoRA's paper)"
        )
    return chosen


def _convolution(matrix: TargetMatrix, A: Tensor, B: Tensor, alpha: float) -> LowRankUpdate:
    """The update (O, I) of a convolution, whose factors in loralib are (R k, C k) and (O / groups k, R k)."""
    weight = matrix.host.tensor()
    R, odd = divmod(len(A), weight.shape[-1])
    if odd or len(A) != B.shape[1] or len(B) * A.shape[1] != weight.numel():
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (A, B, weight))
        raise ValueError(f"{matrix.name}: lora_A, lora_B and the layer do not fit each other: {shapes}")
    dW_OI = (B.double() @ A.double()).view(matrix.shape).float()
    B_OR, A_RI, _ = factored(dW_OI, min(matrix.shape))
    return LowRankUpdate(matrix, B_OR, A_RI, alpha / R)


def distance(base: Tensor, tensor: Tensor) -> float:
    """The relative distance of a stored W from the base's."""
    W = wide(base).cpu().double()
    return float((tensor.double() - W).norm() / W.norm().clamp_min(torch.finfo(W.dtype).tiny))


def _fully_trained(
    model: nn.Module, rest: Mapping[str, Tensor], adapted: Collection[str]
) -> dict[str, Tensor]:
    """The parameters that differ from the base's, and their buffers. ValueError for an unknown tensor."""
    every, buffers, found = base_parameters(model), base_buffers(model), {}
    for name, tensor in rest.items():
        base = every.get(name, buffers.get(name))
        if base is None:
            raise ValueError(f"{name} is not a parameter of this model")
        if base.shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(base.shape)}")
        if name not in every or torch.equal(wide(base).cpu(), tensor.to(wide(base).dtype)):
            continue
        if name.removesuffix(".weight") in adapted:
            raise ValueError(
                f"{name} is frozen beside its lora_A and differs from this model's by "
                f"{distance(base, tensor):.0e} of its norm: another base, or loralib's evaluation, which "
                "rounds it; load the file's weights into the model first, or save lora_state_dict(model)"
            )
        found[name] = tensor
    return found | {name: rest.get(name, buffers[name]) for name in names_of_buffers(model, found)}
