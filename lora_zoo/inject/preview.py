"""What an injection would do, without doing it: needs the model's structure only, so `meta` will do."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core import init
from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dropout import ForwardCounter
from lora_zoo.core.host import Host
from lora_zoo.inject.base_model import base_parameters
from lora_zoo.inject.matrices import TargetMatrix, places
from lora_zoo.inject.plan import build, hyperparameters_at, plan_injection
from lora_zoo.inject.roles import ROLES


@dataclass(frozen=True)
class Row:
    """One matrix that would be adapted. `part` is what of `tensor` it is: slice, expert, or "" for all."""

    name: str
    tensor: str
    part: str
    role: str
    kind: str
    shape: tuple[int, int]
    rank: int | None
    alpha: float | None
    trainable: int
    bytes: int


@dataclass(frozen=True)
class Preview:
    """`trainable` of `total` parameters, the adapter's size on disk in bytes, and what stays as it is.

    `fully_trained` maps parameters that train as they are to their sizes, `unmatched` says which targets
    match nothing, `idle` counts the matrices by role that nothing adapts.
    """

    variant: str
    rows: list[Row]
    fully_trained: dict[str, int]
    trainable: int
    total: int
    bytes: int
    unmatched: list[str] = field(default_factory=list)
    idle: dict[str, int] = field(default_factory=dict)


class Outline(Host):
    """A host whose matrix has a shape and no numbers."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.layer)
        W_OI = host.matrix()
        self.kind, self.starts, self.sees_input = host.kind, host.starts, host.sees_input  # type: ignore[misc]
        self.outline = torch.empty(W_OI.shape, dtype=W_OI.dtype, device="meta")

    def tensor(self) -> Tensor:
        return self.outline

    def view(self, stored: Tensor) -> Tensor:
        return stored


def preview(model: nn.Module, *arguments: Any, **asked: Any) -> Preview:
    """What `inject(model, …)` with the same arguments would adapt; `model` is left as it is.

    Raises ValueError for whatever `inject` refuses, but not for targets without a match: see `unmatched`.
    """
    ready = plan_injection(model, *arguments, **asked)
    variant, plan, hyper, patterns = ready
    outlined = [replace(place, host=Outline(place.host)) for place in plan.adapted]
    with init.blank():
        adapters = build(
            ready._replace(plan=plan._replace(adapted=outlined)), seed=0, counter=ForwardCounter()
        )
    rows = [
        _row(place, adapters[place.name], hyperparameters_at(place, hyper, patterns)) for place in outlined
    ]
    every, names = base_parameters(model), set(plan.fully_trained)
    full = {id(every[name]): (name, every[name]) for name in reversed(plan.fully_trained)}
    fully_trained = {name: p.numel() for name, p in reversed(full.values())}
    frozen = {id(p): p.numel() for name, p in every.items() if name not in names}
    added = sum(p.numel() for a in adapters.values() for p in a.parameters())
    return Preview(
        variant.name,
        rows,
        fully_trained,
        trainable=sum(row.trainable for row in rows) + sum(fully_trained.values()),
        total=sum(frozen.values()) + sum(fully_trained.values()) + added,
        bytes=sum(row.bytes for row in rows) + sum(p.numel() * p.element_size() for _, p in full.values()),
        unmatched=list(plan.unmatched),
        idle=_idle(places(model), plan.adapted, names),
    )


def _row(place: TargetMatrix, adapter: Adapter, hyper: dict[str, Any]) -> Row:
    return Row(
        name=place.name,
        tensor=place.tensor,
        part=place.name.removeprefix(place.tensor).strip("."),
        role=place.role,
        kind=place.host.kind,
        shape=place.shape,
        rank=hyper.get("rank"),
        alpha=hyper.get("alpha"),
        trainable=sum(p.numel() for p in adapter.parameters() if p.requires_grad),
        bytes=sum(t.numel() * t.element_size() for t in adapter.state_dict().values()),
    )


def _idle(known: list[TargetMatrix], adapted: list[TargetMatrix], fully_trained: set[str]) -> dict[str, int]:
    busy = {place.name for place in adapted}
    taken = busy | {place.whole for place in known}
    left = [p for p in known if p.name not in taken and p.whole not in busy]
    still = [p for p in left if not {p.tensor, f"{p.tensor}.weight"} & fully_trained]
    count = Counter(place.role or "other" for place in still)
    return {role: count[role] for role in (*ROLES, "other") if count[role]}
