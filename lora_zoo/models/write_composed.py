"""Write what active adapters make together: a plain model, or one adapter of low rank.

Shapes: O out, I in, R rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.core import init
from lora_zoo.core.composition import Composition
from lora_zoo.core.dtypes import wide
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.composed import load_composed, save_composed
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.peft.updates import factored
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix
from lora_zoo.injection.plan import InjectionPlan, complete_hyperparameters
from lora_zoo.models import saving
from lora_zoo.models.base import Base
from lora_zoo.models.compare import logits
from lora_zoo.models.merging import Merged, compared, in_unit


class ComposedFiles(NamedTuple):
    """The model as it was written; the rank of each matrix of one adapter; notes, a sentence each."""

    merged: Merged
    ranks: dict[str, int]
    notes: list[str]


def write_model(
    network: Any, out: Path, base: Base, tokenizer: Any, composition: Composition, *, dtype: str | None
) -> ComposedFiles:
    """Merge the active adapters and save the model to `out`, in its own dtype or in `dtype`."""
    adapted, adapters, notes = logits(network), adapters_of(network), composition.notes()
    adapters.merge()
    adapters.remove()
    if base.unit:
        adapted, note = in_unit(network, base.unit, adapted)
        notes.append(note)
    if dtype:
        network.to(getattr(torch, dtype))
    with saving.whole(out) as part:
        network.save_pretrained(part)
        tokenizer.save_pretrained(part)
        return ComposedFiles(compared(part, base, adapted, []), {}, notes)


def write_adapter(
    network: Any,
    out: Path,
    base: Base,
    composition: Composition,
    *,
    rank: int | None,
    made_of: Mapping[str, Any],
) -> ComposedFiles:
    """Save the active adapters to `out` as one LoRA, in our format, with what it was `made_of`."""
    adapted = logits(network)
    made, notes = as_adapter(network, composition, rank), composition.notes()
    with saving.whole(out) as part:
        save_adapter(adapters_of(network)["default"], part, **_about(base), composed=dict(made_of))
        adapters_of(network).remove()
        load_adapter(network, part)
        difference = float((logits(network) - adapted).abs().max())
    if made.errors:
        worst = max(made.errors, key=lambda name: made.errors[name])
        notes.append(f"largest relative error of a matrix as an adapter: {made.errors[worst]:.2g} ({worst})")
    merged = Merged(difference, float(adapted.abs().max()), "float32", base.auto_class, [])
    return ComposedFiles(merged, made.ranks, notes)


def write_adapters(
    network: Any, out: Path, base: Base, composition: Composition, options: Mapping[str, Any]
) -> ComposedFiles:
    """Save the active adapters to `out`, each in its folder, and what composes them for each input."""
    adapted = logits(network)
    with saving.whole(out) as part:
        save_composed(network, part, options, **_about(base))
        adapters_of(network).remove()
        load_composed(network, part)
        difference = float((logits(network) - adapted).abs().max())
    merged = Merged(difference, float(adapted.abs().max()), "float32", base.auto_class, [])
    return ComposedFiles(merged, {}, composition.notes())


def _about(base: Base) -> dict[str, Any]:
    """The part of an adapter's description that is about its base."""
    model = {key: getattr(base.model, key) for key in ("name", "path", "dtype", "revision")}
    about: dict[str, Any] = {"model": model, "auto_class": base.auto_class, "head": base.head}
    return about | ({} if base.unit is None else {"standardised": base.unit})


class AsAdapter(NamedTuple):
    """A composed change as one LoRA: the rank of each matrix, and its relative error where one was chosen."""

    ranks: dict[str, int]
    errors: dict[str, float]


@torch.no_grad()
def as_adapter(model: nn.Module, composition: Composition, rank: int | None) -> AsAdapter:
    """Replace the active adapters of `model` by one LoRA that makes the same of it, called "default".

    Of the exact rank of each matrix, or of `rank` at most. ValueError where a bias changes, and for a matrix
    of full rank where none was chosen.
    """
    adapters: Any = adapters_of(model)
    names = adapters.active
    found = _matrices([adapters[name] for name in names])
    in_full = [key for name in names for key in adapters[name].trained]
    state = {key: tensor.detach() for name in names for key, tensor in _in_full(adapters[name]).items()}
    before = {name: wide(matrix.host.matrix()).clone() for name, matrix in found.items()}
    adapters.merge()
    ranks, errors = dict[str, int](), dict[str, float]()
    for name, matrix in found.items():
        dW_OI = wide(matrix.host.matrix()) - before[name]
        smaller = min(dW_OI.shape)
        made = factored(dW_OI, rank or smaller, beside=float(before[name].norm()))
        ranks[name] = len(made.A_RI)
        if rank is None and ranks[name] == smaller:
            raise ValueError(
                f"{composition.name} changes {name} by a matrix of full rank {smaller}, which is no adapter: "
                "give --rank to have the nearest one, or write the model"
            )
        errors |= {} if rank is None else {name: made.error}
        state |= {f"{name}.A_RI": made.A_RI, f"{name}.B_OR": made.B_OR}
    adapters.unmerge()
    adapters.remove()
    lora = VARIANTS.find("lora")
    hyper = complete_hyperparameters(lora, {"rank": max(ranks.values()), "alpha": float(max(ranks.values()))})
    patterns: dict[str, dict[str, Any]] = {
        "rank": ranks,
        "alpha": {name: float(own) for name, own in ranks.items()},
    }
    plan = InjectionPlan(lora, hyper, [*found.values()], in_full, patterns=patterns)
    with init.blank():
        Injection(model, plan, seed=0, name="default", state=state)
    return AsAdapter(ranks, errors)


def _in_full(injection: Injection) -> dict[str, Tensor]:
    """The parameters that an adapter trained in full, and its buffers."""
    return {name: injection.trained[name] for name in injection.fully_trained} | injection.buffers.own()


def _matrices(injections: Sequence[Injection]) -> dict[str, TargetMatrix]:
    """The matrices that one of the adapters changes, without the parts of others. ValueError for a bias."""
    every = {name: matrix for own in injections for name, matrix in own.matrices.items()}
    for own in injections:
        for name, adapter in own.adapters.items():
            if adapter.changes_bias_of(own.matrices[name].host):
                raise ValueError(
                    f"{own.variant.name} changes the bias of {name}, which no LoRA holds: write the model"
                )
    return {name: matrix for name, matrix in every.items() if matrix.whole not in every}
