"""Preview of an injection: matrices, ranks and sizes, from the model's structure alone (`meta` will do)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core import init
from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dropout import ForwardCounter
from lora_zoo.core.host import Host
from lora_zoo.core.hyperparameters import accepted
from lora_zoo.hosts.quantized import numel
from lora_zoo.injection.adapter_tensors import adapter_tensors, parameters, saved
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.matrices import TargetMatrix, find_matrices
from lora_zoo.injection.plan import build, plan_injection
from lora_zoo.injection.roles import ROLES


@dataclass(frozen=True)
class PreviewRow:
    """One matrix that would be adapted. `part` is its part of `tensor`: a slice, an expert, or "" for all."""

    name: str
    tensor: str
    part: str
    role: str
    kind: str
    shape: tuple[int, int]
    rank: int | None
    alpha: float | None
    scale: float | None
    trainable: int
    bytes: int


@dataclass(frozen=True)
class Preview:
    """The matrices that an injection would adapt: `trainable` of `total` parameters, `bytes` on disk.

    `shared` of the trainable parameters belong to all rows together and are in none of them.
    `fully_trained` maps parameters without an adapter that train to their sizes, `unmatched` holds a sentence
    for each target that matches nothing, `idle` counts the matrices by role that nothing adapts. `views` are
    the names of those that a run judges beside the whole model.
    """

    variant: str
    rows: list[PreviewRow]
    fully_trained: dict[str, int]
    trainable: int
    total: int
    bytes: int
    trained_bytes: int = 0
    """The bytes of what trains, as it is held in training."""
    shared: int = 0
    unmatched: list[str] = field(default_factory=list)
    idle: dict[str, int] = field(default_factory=dict)
    views: list[str] = field(default_factory=list)


class ShapeOnlyHost(Host):
    """A host whose matrix has a shape and no numbers."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.layer)
        self.kind, self.sees_input = host.kind, host.sees_input  # type: ignore[misc]
        self.conventional_inits = host.conventional_inits  # type: ignore[misc]
        self.empty = torch.empty(host.shape, dtype=host.like.dtype, device="meta")

    def tensor(self) -> Tensor:
        return self.empty

    def view(self, stored: Tensor) -> Tensor:
        return stored


def preview(model: nn.Module, *arguments: Any, prior: Sequence[str] = (), **options: Any) -> Preview:
    """Preview `inject(model, …)` with the same arguments; `model` is left as it is.

    Raises ValueError for whatever `inject` refuses, but not for targets without a match: see `unmatched`.
    """
    plan = plan_injection(model, *arguments, **options)
    matrices = [replace(matrix, host=ShapeOnlyHost(matrix.host)) for matrix in plan.matrices]
    with init.blank():
        on_shapes = replace(plan, matrices=matrices)
        adapters, shared = build(on_shapes, model, seed=0, counter=ForwardCounter(), prior=prior)
    hooks = plan.variant.hooks(adapters, **accepted(plan.variant.hooks, plan.hyperparameters))
    common = {} if shared is None else {id(t): t for t in saved(shared).values()}
    rows = [
        _row(matrix, adapters[matrix.name], plan.hyperparameters_at(matrix), common) for matrix in matrices
    ]
    together = sum(t.numel() for t in common.values() if t.requires_grad)
    every, names = base_parameters(model), set(plan.fully_trained)
    full = {id(every[name]): (name, every[name]) for name in reversed(plan.fully_trained)}
    own = {id(t): t for t in adapter_tensors(adapters, shared, parameters).values() if t.requires_grad}
    trained = [*own.values(), *(p for _, p in full.values())]
    fully_trained = {name: p.numel() for name, p in reversed(full.values())}
    frozen = {id(p): numel(p) for name, p in every.items() if name not in names}
    added = sum(p.numel() for p in adapter_tensors(adapters, shared, parameters).values())
    return Preview(
        plan.variant.name,
        rows,
        fully_trained,
        trainable=sum(row.trainable for row in rows) + together + sum(fully_trained.values()),
        total=sum(frozen.values()) + sum(fully_trained.values()) + added,
        bytes=sum(row.bytes for row in rows)
        + sum(t.numel() * t.element_size() for t in (*common.values(), *(p for _, p in full.values()))),
        trained_bytes=sum(p.nbytes for p in trained),
        shared=together,
        unmatched=list(plan.unmatched),
        idle=_idle(find_matrices(model), plan.matrices, names),
        views=list(hooks.views()),
    )


def _row(
    matrix: TargetMatrix, adapter: Adapter, hyper: dict[str, Any], common: Mapping[int, Tensor]
) -> PreviewRow:
    own = [tensor for tensor in saved(adapter).values() if id(tensor) not in common]
    return PreviewRow(
        name=matrix.name,
        tensor=matrix.tensor,
        part=matrix.name.removeprefix(matrix.tensor).strip("."),
        role=matrix.role,
        kind=matrix.host.kind,
        shape=matrix.shape,
        rank=hyper.get("rank"),
        alpha=hyper.get("alpha"),
        scale=adapter.scale_with(hyper),
        trainable=sum(tensor.numel() for tensor in own if tensor.requires_grad),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in own),
    )


def _idle(known: list[TargetMatrix], adapted: list[TargetMatrix], fully_trained: set[str]) -> dict[str, int]:
    busy = {matrix.name for matrix in adapted}
    taken = busy | {matrix.whole for matrix in known}
    left = [p for p in known if p.name not in taken and p.whole not in busy]
    still = [p for p in left if not {p.tensor, f"{p.tensor}.weight"} & fully_trained]
    count = Counter(matrix.role or "other" for matrix in still)
    return {role: count[role] for role in (*ROLES, "other") if count[role]}
