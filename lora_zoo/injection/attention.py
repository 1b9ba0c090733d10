"""Attention modules of transformers' models, and masks of theirs for each head, query and key.

Shapes: B samples, H heads, Q queries, K keys.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.injection.roles import fused, role_of

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_MASKED = ("eager", "sdpa")
"""The implementations that take a mask of each head, query and key."""


def attentions(model: nn.Module) -> dict[str, Any]:
    """The modules that ask transformers' attention interface, which adds or applies their mask, by name."""
    return {name: module for name, module in model.named_modules() if _asks_the_interface(module)}


def _asks_the_interface(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is None:
        return False
    takes_mask = {"hidden_states", "attention_mask"} <= {*code.co_varnames}
    return takes_mask and _INTERFACE in code.co_names


def out_of_reach(model: nn.Module) -> str:
    """The reason why the mask of some attention of `model` cannot be changed; "" where all can be."""
    reached = attentions(model)
    inside = tuple(f"{name}." for name in reached)
    for name, _ in model.named_modules():
        if (role_of(name) == "k" or fused(name)) and not name.startswith(inside):
            return f"the attention of {name} takes no mask through transformers' attention interface"
    for name, module in reached.items():
        if (kind := module.config._attn_implementation) not in _MASKED:
            return f"{name} is computed by {kind}, which takes no mask of each head; eager and sdpa do"
    return "" if reached else "the model has no attention of transformers'"


Kept = Callable[[Tensor], Tensor]
"""From ones (B, H, Q, K) to what is kept of the keys, true, as (B, H, Q or 1, K)."""


@contextlib.contextmanager
def with_kept_keys(module: Any, kept: Kept) -> Iterator[None]:
    """Inside, an attention in training mode masks the logits of the keys that are not kept."""

    def masked(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not module.training:
            return None
        call, visible_BHQK, kept_BHQK = _asked(module, given, named, kept)
        mask, x = call.arguments.get("attention_mask"), call.arguments["hidden_states"]
        call.arguments["attention_mask"] = without_keys(mask, visible_BHQK, kept_BHQK, x)
        return call.args, call.kwargs

    with module.register_forward_pre_hook(masked, with_kwargs=True):
        yield


_DROPPING = "lora_zoo_dropped_weights"
"""Our name among the functions of transformers' attention interface, while an attention runs."""


@contextlib.contextmanager
def with_dropped_weights(module: Any, kept: Kept) -> Iterator[None]:
    """Inside, an attention in training mode loses the weights of the keys that are not kept (DropAttention).

    The others are divided by their sum, which gets no gradient.
    """
    functions = inspect.unwrap(type(module).forward).__globals__[_INTERFACE]
    before: list[str] = []

    def begin(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not module.training:
            return None
        call, visible_BHQK, kept_BHQK = _asked(module, given, named, kept)
        mask, x = call.arguments.get("attention_mask"), call.arguments["hidden_states"]
        call.arguments["attention_mask"] = without_keys(mask, visible_BHQK, visible_BHQK, x)
        functions[_DROPPING] = partial(_dropped_weights, _left(visible_BHQK, kept_BHQK))
        before.append(module.config._attn_implementation)
        module.config._attn_implementation = {"": _DROPPING}
        return call.args, call.kwargs

    def end(*_: Any) -> None:
        if before:
            module.config._attn_implementation = {"": before.pop()}  # of this configuration alone
            del functions[_DROPPING]

    with (
        module.register_forward_pre_hook(begin, with_kwargs=True),
        module.register_forward_hook(end, always_call=True),
    ):
        yield


def _dropped_weights(
    left_BHQK: Tensor,
    module: nn.Module,
    *given: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """transformers' attention interface: (B, H, Q, D) of each to (B, Q, H, D), and the weights."""
    for name in ("softcap", "s_aux", "position_bias"):
        if more.get(name) is not None:
            raise ValueError(f"the weights of an attention with {name} are not written out here")
    query, key, value, mask = given
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    logits_BHQK = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask.dtype == torch.bool:
        logits_BHQK = logits_BHQK.masked_fill(~mask, torch.finfo(logits_BHQK.dtype).min)
    else:
        logits_BHQK = logits_BHQK + mask
    weights_BHQK = renormalised(logits_BHQK, left_BHQK)
    weights_BHQK = nn.functional.dropout(weights_BHQK.to(value.dtype), dropout)
    return (weights_BHQK @ value).transpose(1, 2).contiguous(), weights_BHQK


def renormalised(logits_BHQK: Tensor, left_BHQK: Tensor) -> Tensor:
    """The weights that are left over their sum, which gets no gradient (DropAttention, arXiv:1907.11065).

    As the exponential of log w - log Σ w, so that no gradient is divided by a sum near 0.
    """
    left_BHQK = left_BHQK | ~left_BHQK.any(-1, keepdim=True)  # a query that sees nothing is padding
    log_BHQK = logits_BHQK.log_softmax(-1, at_least_float32(logits_BHQK.dtype)).masked_fill(
        ~left_BHQK, -torch.inf
    )
    return (log_BHQK - log_BHQK.detach().logsumexp(-1, keepdim=True)).exp()


def _asked(
    module: Any, given: tuple[Any, ...], named: dict[str, Any], kept: Kept
) -> tuple[inspect.BoundArguments, Tensor, Tensor]:
    """An attention's call, what its queries see of the keys, and what is kept of them."""
    call = inspect.signature(module.forward).bind(*given, **named)
    x = call.arguments["hidden_states"]
    visible_BHQK = _visible(module, call.arguments.get("attention_mask"), x, call.arguments)
    shape = (len(x), module.config.num_attention_heads, x.shape[1], visible_BHQK.shape[-1])
    return call, visible_BHQK, kept(x.new_ones(()).expand(shape))


def _left(visible_BHQK: Tensor, kept_BHQK: Tensor) -> Tensor:
    """The keys that a query still sees; all that it saw, where none would be left."""
    left_BHQK = visible_BHQK & kept_BHQK
    return torch.where(left_BHQK.any(-1, keepdim=True), left_BHQK, visible_BHQK)


def without_keys(mask: Tensor | None, visible_BHQK: Tensor, kept_BHQK: Tensor, like: Tensor) -> Tensor:
    """The mask without the keys that are not kept: true where attended, or added to the logits.

    A query none of whose visible keys is kept sees all of them. A new mask is added, in the dtype of `like`.
    """
    left_BHQK = _left(visible_BHQK, kept_BHQK)
    if mask is not None and mask.dtype == torch.bool:
        return left_BHQK
    added = like.new_zeros(()) if mask is None else mask
    return torch.where(left_BHQK, added, torch.finfo(added.dtype).min)


def _visible(module: Any, mask: Tensor | None, x: Tensor, given: Mapping[str, Any]) -> Tensor:
    """True where a query sees a key, as (B or 1, H or 1, Q, K)."""
    if mask is not None:
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    others = (given.get(name) for name in ("key_value_states", "encoder_hidden_states"))
    source = next((states for states in others if states is not None), x)
    visible_QK = torch.ones(x.shape[1], source.shape[1], dtype=torch.bool, device=x.device)
    # As transformers' sdpa has it: without a mask, self-attention is causal by itself.
    causal = module.config._attn_implementation == "sdpa" and getattr(module, "is_causal", True)
    return (visible_QK.tril() if causal and source is x else visible_QK)[None, None]


__all__ = [
    "attentions",
    "out_of_reach",
    "renormalised",
    "with_dropped_weights",
    "with_kept_keys",
    "without_keys",
]
