"""The trunk: the part of a model below its head, through which the batches of several jobs go in one pass.

Each job runs the model's own forward on its own batch; where that calls the trunk, the batches are joined
along their rows, padded on the right to the longest. What comes out is cut: each job's head and loss work on
leaves, whose gradients then go back through the trunk together. Rows never meet, so each adapter gets its own
gradient.
Shapes: N rows of all jobs, B of one; L the longest batch's positions.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.inject.adapter_set import adapters_of
from lora_zoo.inject.base_model import base_buffers
from lora_zoo.inject.batched import RowGroup
from lora_zoo.inject.plan import InjectionPlan
from lora_zoo.models.train_eval import training

Inputs = dict[str, Any]
ALONE = ("num_items_in_batch",)  # the loss's business, which some models hand down


class BackboneOutput(NamedTuple):
    """One output of the trunk, and the leaf that stands for each group's rows of it."""

    whole: Tensor
    leaves: list[Tensor]


class ForwardPass(NamedTuple):
    """A pass whose backward is still to come."""

    row_groups: list[RowGroup]
    cuts: list[BackboneOutput]


class Backbone:
    """The shared part of `model`; `calls` decides what a call of it does while the model trains."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.module: nn.Module = model.base_model  # type: ignore[assignment]
        self.plain: Callable[..., Any] = self.module.forward
        self.signature = inspect.signature(self.plain)
        self.padding = getattr(model.config, "pad_token_id", None) or 0

    def route(self, call: Callable[[Inputs], Any]) -> None:
        """From now on training passes of the trunk ask `call`; all others run as they are."""

        @functools.wraps(self.plain)
        def forward(*arguments: Any, **named: Any) -> Any:
            if not (self.module.training and torch.is_grad_enabled()):
                return self.plain(*arguments, **named)
            return call(self._named(arguments, named))

        self.module.forward = forward

    def unroute(self) -> None:
        self.module.__dict__.pop("forward", None)

    def refuses(self, plan: InjectionPlan) -> str:
        """Why a job of this plan needs the trunk to itself; "" where it can share it."""
        within = next(name for name, module in self.model.named_modules() if module is self.module) + "."
        for name in plan.fully_trained:
            if name.startswith(within):
                return f"{name}, which jobs share, is trained in full"
        for matrix in plan.matrices:
            if matrix.name.startswith(within) and not matrix.host.sees_input:
                return f"{matrix.name} is read by its module, which does not tell the jobs' rows apart"
        return ""

    def _named(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Inputs:
        bound = self.signature.bind(*arguments, **named).arguments
        rest = [p.name for p in self.signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        for name in rest:
            bound |= bound.pop(name, {})
        return dict(bound)

    def forward(self, names: Sequence[str], batches: Sequence[Inputs]) -> tuple[list[Any], ForwardPass]:
        """Run the adapters called `names`, each on its batch; returns each one's outputs.

        ValueError for batches that cannot be joined.
        """
        row_groups = [RowGroup(name, *_shape(batch)) for name, batch in zip(names, batches, strict=True)]
        joined = join(row_groups, batches, self.padding)
        with adapters_of(self.model).batched_forward(row_groups):
            outputs = self.plain(**joined)
        passed = ForwardPass(row_groups, [])
        return [_cut(outputs, number, passed) for number in range(len(row_groups))], passed

    def backward(self, passed: ForwardPass) -> None:
        """The gradients that the leaves have, through the trunk; rows without one get none."""
        live = [cut for cut in passed.cuts if any(leaf.grad is not None for leaf in cut.leaves)]
        if live:
            gradients = [_gradient(passed.row_groups, cut) for cut in live]
            with adapters_of(self.model).batched_forward(
                passed.row_groups
            ):  # for what a checkpoint recomputes
                torch.autograd.backward([cut.whole for cut in live], gradients)


def _shape(batch: Inputs) -> tuple[int, int]:
    tokens = batch.get("input_ids")
    tokens = batch.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, Tensor):
        raise ValueError(f"the model is fed {', '.join(batch)}; side by side, jobs need input_ids")
    return tokens.shape[0], tokens.shape[1]


def join(row_groups: Sequence[RowGroup], batches: Sequence[Inputs], padding: int) -> Inputs:
    """The batches as one. ValueError for an input that differs from job to job and is no batch."""
    if len({group.length for group in row_groups}) > 1:
        batches = [_masked(group, batch) for group, batch in zip(row_groups, batches, strict=True)]
    names = dict.fromkeys(name for batch in batches for name in batch if name not in ALONE)
    return {
        name: _joined(name, row_groups, [batch.get(name) for batch in batches], padding) for name in names
    }


def _masked(group: RowGroup, batch: Inputs) -> Inputs:
    """`batch` with a mask, since others will make it longer."""
    if batch.get("attention_mask") is not None:
        return batch
    tokens = batch.get("input_ids")
    tokens = batch["inputs_embeds"] if tokens is None else tokens
    mask = torch.ones(group.rows, group.length, dtype=torch.long, device=tokens.device)
    return batch | {"attention_mask": mask}


def _joined(name: str, row_groups: Sequence[RowGroup], values: Sequence[Any], padding: int) -> Any:
    if not any(isinstance(value, Tensor) for value in values):
        if any(value != values[0] for value in values):
            raise ValueError(f"the jobs' {name} differ: {values}")
        return values[0]
    for group, value in zip(row_groups, values, strict=True):
        if not isinstance(value, Tensor) or value.shape[:1] != (group.rows,):
            raise ValueError(f"{name} is not given for each row of every job")
    longest = max(group.length for group in row_groups)
    fill = padding if name.endswith("input_ids") else 0
    return torch.cat(
        [_longer(group, value, longest, fill) for group, value in zip(row_groups, values, strict=True)]
    )


def _longer(group: RowGroup, value: Tensor, longest: int, fill: int) -> Tensor:
    """`value` (B, group's length, …) padded on the right to `longest` positions."""
    if group.length == longest or value.ndim < 2 or value.shape[1] != group.length:
        return value
    end = value.new_full((group.rows, longest - group.length, *value.shape[2:]), fill)
    return torch.cat([value, end], dim=1)


def _cut(value: Any, number: int, passed: ForwardPass) -> Any:
    """What one group gets of an output: leaves in place of tensors, nothing of caches."""
    if isinstance(value, Tensor):
        whole = next((cut for cut in passed.cuts if cut.whole is value), None)
        if whole is None:
            whole = BackboneOutput(
                value, [_leaf(passed.row_groups, n, value) for n in range(len(passed.row_groups))]
            )
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


@torch.no_grad()
def unfit(model: nn.Module) -> str:
    """Why jobs cannot share a pass of `model`, found by trying; "" where they can. Changes nothing.

    Two made-up batches of different lengths must come out of the trunk in training mode as they do alone, to
    rounding, while no random number is drawn and no buffer changes.
    """
    if getattr(model, "base_model", model) is model:
        return f"{type(model).__name__} has no part below its head that is called by itself"
    backbone, streams = Backbone(model), _streams()
    buffers = {name: tensor.clone() for name, tensor in base_buffers(model).items()}
    batches = [_made_up(model, rows, length, backbone.padding) for rows, length in ((1, 3), (2, 5))]
    with training(model):
        alone = [backbone.plain(**batch)[0] for batch in batches]
        drawn = any(not torch.equal(a, b) for a, b in zip(streams, _streams(), strict=True))
        now = base_buffers(model)
        counted = [name for name, tensor in now.items() if not torch.equal(tensor, buffers[name])]
        for name, tensor in now.items():
            tensor.copy_(buffers[name])
        if drawn:
            return "its model draws at random while it trains (dropout), which jobs cannot share"
        if counted:
            return f"its model keeps {counted[0]} of all batches, which jobs cannot share"
        together, _ = backbone.forward(("", "-"), batches)
    if all(_near(a, b[0]) for a, b in zip(alone, together, strict=True)):
        return ""
    return "in its model a row's outcome depends on the rows and the padding beside it"


def _streams() -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def _made_up(model: nn.Module, rows: int, length: int, padding: int) -> Inputs:
    words = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    known = torch.tensor([token for token in range(min(words, 64)) if token != padding])
    tokens = known[torch.arange(rows * length) % len(known)].view(rows, length)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {name: tensor.to(next(model.parameters()).device) for name, tensor in inputs.items()}


def _near(one: Tensor, other: Tensor) -> bool:
    """Whether two states are equal but for rounding: a thousandth in float32."""
    bound = max(1e-3, 8 * torch.finfo(one.dtype).eps)
    return bool((one - other).float().norm() <= bound * one.float().norm())
