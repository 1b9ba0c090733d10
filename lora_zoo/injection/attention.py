"""Attention modules of transformers' models, and masks of theirs for each head, query and key.

Shapes: B samples, H heads, Q queries, K keys.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.injection.roles import fused, role_of

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
    return takes_mask and "ALL_ATTENTION_FUNCTIONS" in code.co_names


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


def with_kept_keys(
    module: Any, given: tuple[Any, ...], named: dict[str, Any], kept: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an attention's forward with a mask that leaves out the keys that are not kept.

    `kept` makes a boolean of an ones tensor (B, H, Q, K), of that shape or one that broadcasts to it.
    """
    call = inspect.signature(module.forward).bind(*given, **named)
    x, mask = call.arguments["hidden_states"], call.arguments.get("attention_mask")
    visible_BHQK = _visible(module, mask, x, call.arguments)
    ones_BHQK = x.new_ones(()).expand(len(x), module.config.num_attention_heads, *visible_BHQK.shape[-2:])
    call.arguments["attention_mask"] = without_keys(mask, visible_BHQK, kept(ones_BHQK), x)
    return call.args, call.kwargs


def without_keys(mask: Tensor | None, visible_BHQK: Tensor, kept_BHQK: Tensor, like: Tensor) -> Tensor:
    """The mask without the keys that are not kept: true where attended, or added to the logits.

    A query none of whose visible keys is kept sees all of them. A new mask is added, in the dtype of `like`.
    """
    left_BHQK = visible_BHQK & kept_BHQK
    left_BHQK = torch.where(left_BHQK.any(-1, keepdim=True), left_BHQK, visible_BHQK)
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


__all__ = ["attentions", "out_of_reach", "with_kept_keys", "without_keys"]
