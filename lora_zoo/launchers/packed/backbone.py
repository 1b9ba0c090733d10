"""The backbone: the part of a model below its head, through which several jobs' batches go in one pass.

Each job runs the model's own forward on its own batch; where that calls the backbone, the batches are
joined. The output is cut: each job's head and loss work on leaves, whose gradients then go back through the
backbone together. Rows never meet, so each adapter gets its own gradient.
Shapes: N rows of all jobs, B of one; L the longest batch's positions.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.batched import RowGroup
from lora_zoo.injection.plan import InjectionPlan
from lora_zoo.launchers.packed.joining import Inputs, join, tokens_of


class BackboneOutput(NamedTuple):
    """One output of the backbone, and the leaf that stands for each group's rows of it."""

    whole: Tensor
    leaves: list[Tensor]


class ForwardPass(NamedTuple):
    """A pass whose backward is still to come."""

    row_groups: list[RowGroup]
    cuts: list[BackboneOutput]
    emitted: list[tuple[Tensor, Tensor]]
    """The scalars that adapters emitted, each with the leaf that its job's loss sees."""


class Backbone:
    """The shared part of `model`. `route` redirects its calls while the model trains."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.module: nn.Module = model.base_model  # type: ignore[assignment]
        self.plain: Callable[..., Any] = self.module.forward
        self.signature = inspect.signature(self.plain)
        self.padding = getattr(model.config, "pad_token_id", None) or 0

    def route(self, call: Callable[[Inputs], Any]) -> None:
        """Let `call` answer training passes of the backbone from now on; all others run as they are."""

        @functools.wraps(self.plain)
        def forward(*arguments: Any, **named: Any) -> Any:
            if not (self.module.training and torch.is_grad_enabled()):
                return self.plain(*arguments, **named)
            return call(self._by_name(arguments, named))

        self.module.forward = forward

    def unroute(self) -> None:
        self.module.__dict__.pop("forward", None)

    def refuses(self, plan: InjectionPlan) -> str:
        """Return the reason why a job of this plan cannot share the backbone, "" if it can."""
        within = next(name for name, module in self.model.named_modules() if module is self.module) + "."
        for name in plan.fully_trained:
            if name.startswith(within):
                return f"{name}, which jobs share, is fully trained"
        for matrix in plan.matrices:
            if matrix.name.startswith(within) and not matrix.host.sees_input:
                return f"{matrix.name} is read by its module, which does not tell the jobs' rows apart"
        return ""

    def _by_name(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Inputs:
        bound = self.signature.bind(*arguments, **named).arguments
        rest = [p.name for p in self.signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        for name in rest:
            bound |= bound.pop(name, {})
        return dict(bound)

    def forward(self, names: Sequence[str], batches: Sequence[Inputs]) -> tuple[list[Any], ForwardPass]:
        """Run the adapters called `names`, each on its batch; returns each one's outputs.

        ValueError for batches that cannot be joined.
        """
        row_groups = [
            RowGroup(name, *tokens_of(batch).shape[:2]) for name, batch in zip(names, batches, strict=True)
        ]
        joined = join(row_groups, batches, self.padding)
        with adapters_of(self.model).batched_forward(row_groups):
            outputs = self.plain(**joined)
        passed = ForwardPass(row_groups, [], [])
        for group in row_groups:
            self._cut_emitted(group.name, passed)
        return [_cut(outputs, number, passed) for number in range(len(row_groups))], passed

    def backward(self, passed: ForwardPass) -> None:
        """Send the leaves' gradients back through the backbone; rows without one get none."""
        live = [cut for cut in passed.cuts if any(leaf.grad is not None for leaf in cut.leaves)]
        pairs = [(cut.whole, _gradient(passed.row_groups, cut)) for cut in live]
        pairs += [(whole, leaf.grad) for whole, leaf in passed.emitted if leaf.grad is not None]
        if pairs:
            tensors, gradients = zip(*pairs, strict=True)
            groups = adapters_of(self.model)
            with groups.batched_forward(passed.row_groups):  # gradient checkpointing recomputes passes
                torch.autograd.backward(tensors, gradients)

    def _cut_emitted(self, name: str, passed: ForwardPass) -> None:
        """Put leaves in place of the scalars that the adapters of one job emitted."""
        injection = adapters_of(self.model).get(name)
        if injection is None:
            return
        values = injection.counter.emitted
        leaves = [value.detach().requires_grad_(value.requires_grad) for value in values]
        passed.emitted.extend(zip(values, leaves, strict=True))
        values[:] = leaves


def _cut(value: Any, number: int, passed: ForwardPass) -> Any:
    """Cut one group's part out of an output: leaves in place of tensors, None for caches."""
    if isinstance(value, Tensor):
        whole = next((cut for cut in passed.cuts if cut.whole is value), None)
        if whole is None:
            leaves = [_leaf(passed.row_groups, n, value) for n in range(len(passed.row_groups))]
            whole = BackboneOutput(value, leaves)
            passed.cuts.append(whole)
        return whole.leaves[number]
    if isinstance(value, Mapping):
        return type(value)(**{name: _cut(inner, number, passed) for name, inner in value.items()})
    if isinstance(value, (tuple, list)):
        return type(value)(_cut(inner, number, passed) for inner in value)
    return None


def _leaf(row_groups: Sequence[RowGroup], number: int, whole: Tensor) -> Tensor:
    own = whole[_window(row_groups, number, whole)].detach()
    return own.requires_grad_(whole.requires_grad)


def _window(row_groups: Sequence[RowGroup], number: int, whole: Tensor) -> tuple[slice, ...]:
    """The rows and, where `whole` is (N, L, …), the positions of one group."""
    start = sum(group.rows for group in row_groups[:number])
    rows = slice(start, start + row_groups[number].rows)
    longest = max(group.length for group in row_groups)
    positions = whole.ndim > 2 and whole.shape[1] == longest
    return (rows, slice(row_groups[number].length)) if positions else (rows,)


def _gradient(row_groups: Sequence[RowGroup], cut: BackboneOutput) -> Tensor:
    gradient = torch.zeros_like(cut.whole)
    for number, leaf in enumerate(cut.leaves):
        if leaf.grad is not None:
            gradient[_window(row_groups, number, cut.whole)] = leaf.grad
    return gradient
