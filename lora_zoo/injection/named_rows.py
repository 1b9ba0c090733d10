"""Inference on a batch whose rows have adapters of their own, by name.

Shapes: N names; M = N k rows of a pass, k copies of each beside each other (beams, or sequences to return);
L its positions.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.composition import Composition
from lora_zoo.core.kernel import hooked
from lora_zoo.injection.batched import BatchRows, RowGroup
from lora_zoo.injection.entries import Entries
from lora_zoo.injection.wrappers import LayerWrapper, put

BASE = "__base__"
"""The name of rows that have no adapter, as in PEFT."""
_FIRST = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
"""The arguments of a pass that say how many rows and positions it has."""


class NamedRows(BatchRows):
    """The rows called `names`, in any order; the groups are those of the pass in hand."""

    def __init__(
        self, names: Sequence[str], active: Mapping[str, Sequence[str]], composition: Composition
    ) -> None:
        super().__init__((), active, composition)
        if not names:
            raise ValueError("rows: at least one name is needed; got none")
        self.names, self.generates, self._passed = tuple(names), False, (0, 0, torch.device("cpu"))
        self._regroup(len(names), 1, torch.device("cpu"))

    @contextlib.contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Inside, follow the passes of `model` and of its encoder, which `generate` calls by itself."""
        own: Any = model
        encoder = own.get_encoder() if hasattr(model, "get_encoder") else model
        modules = {id(module): module for module in (model, encoder)}.values()
        hooks = [module.register_forward_pre_hook(self._begin, with_kwargs=True) for module in modules]
        former = vars(model).get("generate")
        if hasattr(model, "generate"):
            vars(model)["generate"] = self._generating(own.generate)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            vars(model).pop("generate", None)
            vars(model).update({} if former is None else {"generate": former})

    def _generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def generated(*given: Any, **named: Any) -> Any:
            if (first := _first(given, named, ("inputs",))) is not None:
                self._check(len(first))
            self.generates = True
            try:
                return generate(*given, **named)
            finally:
                self.generates = False

        return generated

    def _begin(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = _first(given, named)
        if first is None:
            return
        M = len(first)
        if not self.generates or M % len(self.names):
            self._check(M)
        tokens = first.ndim == 3 or (first.ndim == 2 and not first.is_floating_point())
        self._regroup(M, first.shape[1] if tokens else 1, first.device)

    def _check(self, M: int) -> None:
        if len(self.names) != M:
            raise ValueError(f"rows: one name for each of {M} rows is needed; got {len(self.names)}")

    def at_once(self, live: Sequence[Mapping[str, Entries]], x: Tensor, base: Tensor) -> Tensor | None:
        """base + Bₙ Aₙ x by two batched products, where each adapter is a product of thin factors.

        They are of one rank, of the whole of a dense layer without another bias, and there are none above
        priors.
        """
        found = [_factors(own) for own in live]
        pairs = [pair for pair in found if pair]
        if None in found or len({A_RI.shape[0] for _, A_RI in pairs}) != 1:
            return None
        none = tuple(map(torch.zeros_like, pairs[0]))
        every = zip(*(pair or none for pair in found if pair is not None), strict=True)
        group_M = self.group.to(x.device)
        B_MOR, A_MRI = (torch.stack(each)[group_M] for each in every)
        x_MLI = self.rows(x).to(A_MRI.dtype)
        x_MLI = x_MLI[:, None] if x_MLI.ndim == 2 else x_MLI.flatten(1, -2)
        return base + (x_MLI @ A_MRI.mT @ B_MOR.mT).reshape(base.shape).to(base.dtype)

    def _regroup(self, M: int, L: int, device: torch.device) -> None:
        if (M, L, device) == self._passed:
            return
        copies, self._passed = M // len(self.names), (M, L, device)
        by_name: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            by_name.setdefault(name, []).extend(range(number * copies, (number + 1) * copies))
        self.groups = tuple(RowGroup(name, len(own), L) for name, own in by_name.items())
        order = torch.tensor([number for own in by_name.values() for number in own])
        numbers = torch.arange(len(self.groups))
        self.group = numbers.repeat_interleave(torch.tensor([g.rows for g in self.groups]))[order.argsort()]
        self.group = self.group.to(device)
        apart = not torch.equal(order, torch.arange(M))
        self.order = order.to(device) if apart else None
        self.back = order.argsort().to(device) if apart else None


def _factors(own: Mapping[str, Entries]) -> tuple[Tensor, Tensor] | tuple[()] | None:
    """(B, A) of the one adapter of a group, () where it has none, None where it is no such product."""
    if not own:
        return ()
    ((host, adapter), *more) = next(iter(own.values()))
    plain = host.whole and host.dense and not hooked(adapter) and not adapter.changes_bias_of(host)
    if more or len(own) > 1 or not plain or not adapter.pointwise:
        return None
    return adapter.factors()


def _first(given: Sequence[Any], named: Mapping[str, Any], before: Sequence[str] = ()) -> Tensor | None:
    """The tensor of a call that has its rows."""
    found = [*map(named.get, (*before, *_FIRST)), *given, *named.values()]
    return next((value for value in found if isinstance(value, Tensor) and value.ndim), None)


@contextlib.contextmanager
def own_tensors(
    model: nn.Module, batch: BatchRows, own: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[None]:
    """Inside, a module with parameters that an adapter trained in full gives that one's rows its tensors.

    `own` maps adapters to such tensors by name in the model. ValueError for a module that another adapts.
    """
    paths = dict.fromkeys(name.rpartition(".")[0] for tensors in own.values() for name in tensors)
    modules = {path: model.get_submodule(path) for path in paths}
    for path, module in modules.items():
        if isinstance(module, LayerWrapper):
            raise ValueError(f"rows: {path} is trained in full by one adapter and adapted by another")
    former = [(module, vars(module).get("forward")) for module in modules.values()]
    try:
        for path, module in modules.items():
            of_path = {
                adapter: {name: t for name, t in tensors.items() if name.rpartition(".")[0] == path}
                for adapter, tensors in own.items()
            }
            vars(module)["forward"] = partial(_by_rows, model, path, module.forward, batch, of_path)
        yield
    finally:
        for module, forward in former:
            vars(module).pop("forward", None)
            vars(module).update({} if forward is None else {"forward": forward})


def _by_rows(
    model: nn.Module,
    path: str,
    forward: Callable[..., Tensor],
    batch: BatchRows,
    own: Mapping[str, Mapping[str, Tensor]],
    *given: Any,
    **named: Any,
) -> Tensor:
    """The output of a module, group by group. ValueError where it is called with more than one tensor."""
    if len(given) != 1 or named:
        raise ValueError(f"rows: {path} is trained in full and called with more than one tensor")

    def output(group: RowGroup, x: Tensor) -> Tensor:
        tensors = {k: t for name in batch.active.get(group.name, ()) for k, t in own.get(name, {}).items()}
        base = {name: put(model, name, tensor) for name, tensor in tensors.items()}
        try:
            return forward(x)
        finally:
            for name, tensor in base.items():
                put(model, name, tensor)

    x = batch.rows(given[0])
    parts = batch.gathered(x).split([group.rows for group in batch.groups])
    found = [output(group, part) for group, part in zip(batch.groups, parts, strict=True)]
    joined = batch.scattered(torch.cat(found))
    return joined if len(x) == len(given[0]) else joined.flatten(0, 1)
