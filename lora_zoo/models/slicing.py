"""Take the heads and channels out of a model that have no effect: the same function, of smaller matrices.

Letters: G groups of a structure, K those that are kept.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from lora_zoo.core.errors import in_one_line
from lora_zoo.injection.structures import Structure, find_structures

WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "d_ff")
"""What configurations call the channels of an MLP."""


@torch.no_grad()
def without_dead_groups(network: Any) -> tuple[Any, list[str]]:
    """A model of the same class without groups that its `o` and `down` read as zeros, and what was sliced.

    Configurations hold one number of heads and one of channels for all layers: the layer with the most that
    live sets it, and others keep dead ones beside theirs. What cannot be sliced stays, and is noted. The
    tensors of `network` stay as they are. ValueError where nothing can be sliced, with the reasons.
    """
    config, state = network.config, dict(network.state_dict())
    found, notes, sliced = find_structures(network), list[str](), False
    for kind in ("heads", "channels"):
        alike = [structure for structure in found if structure.kind == kind]
        if not any((~alive(structure)).any() for structure in alike):
            continue
        least = max(1, *(int(alive(structure).sum()) for structure in alike))
        if reason := _unfit(config, alike, least):
            notes.append(f"{kind} stay, zeros and all: {reason}")
            continue
        K = next(K for K in range(least, alike[0].groups) if _holds(_resized(config, alike[0], K)))
        config, sliced = _resized(config, alike[0], K), True
        for structure in alike:
            _slice(state, structure, alive(structure).long().argsort(descending=True, stable=True)[:K])
        notes.append(f"{kind} of each layer: {alike[0].groups} -> {K}")
    if not sliced:
        raise ValueError(
            "; ".join(notes) or "no head and no channel of this model is zero, to be sliced away"
        )
    return _loaded(network, config, state), notes


def alive(structure: Structure) -> Tensor:
    """True (G,) for the groups that the matrix of their reader does not set to zero."""
    return structure.by_group(structure.reader, structure.reader.host.matrix()).bool().any(dim=1)


def _unfit(config: Any, alike: Sequence[Structure], least: int) -> str:
    """The reason why none of these structures can have fewer groups, or ""; `least` are alive in some."""
    kind, own, text = alike[0].kind, type(config).__name__, config.get_text_config()
    head_dim = text.attribute_map.get("head_dim", "head_dim")
    if kind == "heads" and head_dim not in text.to_dict():
        return f"{own} derives the size of a head from their number; leave o out of target_modules"
    if kind == "channels" and not _width(text):
        return f"{own} has no number of channels that is known here ({', '.join(WIDTHS)})"
    if len({structure.groups for structure in alike}) > 1 or not all(
        member.host.dense for structure in alike for member in structure.members
    ):
        return "they are not alike in all layers"
    groups = alike[0].groups
    if groups == least:
        whole = next(structure.reader.name for structure in alike if bool(alive(structure).all()))
        return (
            f"{whole} has all its {groups}, and {own} holds one number for all layers; lora_prune with "
            "first_spared=0 and last_spared=0 leaves as many in each"
        )
    if not any(_holds(_resized(config, alike[0], K)) for K in range(least, groups)):
        return f"{own} refuses {least} to {groups - 1}, as some do that do not divide the hidden size"
    return ""


def _holds(config: Any) -> bool:
    """True if the configuration's own checks let it pass."""
    try:
        type(config).from_dict(config.to_dict())
    except (ValueError, StrictDataclassError):
        return False
    return True


def _width(config: Any) -> str:
    return next((name for name in WIDTHS if name in config.to_dict()), "")


def _slice(state: dict[str, Tensor], structure: Structure, kept_K: Tensor) -> None:
    """Leave the groups `kept_K` in the tensors of the structure's layers."""
    dead_G = torch.ones(structure.groups, dtype=torch.bool).index_fill(0, kept_K.cpu(), False)
    rows: dict[str, Tensor] = {}  # of a layer whose parts are makers, all at once
    for maker in structure.makers:
        whole = type(maker.host)(maker.host.layer).matrix()
        live = rows.setdefault(maker.tensor, torch.ones(len(whole), dtype=torch.bool))
        live[maker.host.part] = ~dead_G.repeat_interleave(maker.shape[0] // structure.groups)
    for maker in {maker.tensor: maker for maker in structure.makers}.values():
        live = rows[maker.tensor]
        _keep(state, maker.tensor, live, axis=int(maker.host.transposed))
        if f"{maker.tensor}.bias" in state:
            state[f"{maker.tensor}.bias"] = state[f"{maker.tensor}.bias"][live]
    reader = structure.reader
    columns = ~dead_G.repeat_interleave(reader.shape[1] // structure.groups)
    _keep(state, reader.tensor, columns, axis=int(not reader.host.transposed))


def _keep(state: dict[str, Tensor], layer: str, live: Tensor, axis: int) -> None:
    stored = state[f"{layer}.weight"]
    state[f"{layer}.weight"] = stored.index_select(axis, live.nonzero()[:, 0].to(stored.device))


def _resized(config: Any, structure: Structure, K: int) -> Any:
    """A copy of the configuration with the numbers of `K` groups."""
    own = copy.deepcopy(config)
    text = own.get_text_config()
    if structure.kind == "channels":
        setattr(text, _width(text), K)
        return own
    text.num_attention_heads = text.num_attention_heads // structure.groups * K
    if "num_key_value_heads" in text.to_dict():
        text.num_key_value_heads = K
    return own


def _loaded(network: Any, config: Any, state: dict[str, Tensor]) -> Any:
    """A model of this configuration and these tensors. ValueError where they do not fit each other."""
    smaller = type(network)(config).to(network.dtype).train(network.training)
    try:
        smaller.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{type(config).__name__} cannot hold what is left: {in_one_line(error)}") from error
    smaller.generation_config = getattr(network, "generation_config", None)
    return smaller.to(network.device)


__all__ = ["without_dead_groups"]
