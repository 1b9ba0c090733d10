"""Merge a run's adapter into its base and verify the saved model by its logits."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.core.errors import in_one_line
from lora_zoo.formats.native import load_adapter
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.quantized_base import quantized_layers
from lora_zoo.models import dequantize, saving
from lora_zoo.models.base import Base, adapter_in, base_of
from lora_zoo.models.compare import batch, logits
from lora_zoo.models.loading import load_model, load_processor
from lora_zoo.models.slicing import without_dead_groups

STORED, COMPUTED = 8, 32
"""Roundings of the largest logit that are explained: in the saved dtype, and in float32 on the way."""


class Merged(NamedTuple):
    """The largest |Δlogit| between the adapted and the reloaded model, and the scale to compare it with."""

    difference: float
    largest: float
    dtype: str
    auto_class: str
    notes: list[str]

    @property
    def explained(self) -> bool:
        """True if rounding in `dtype` alone gives such a difference."""
        stored, computed = torch.finfo(getattr(torch, self.dtype)).eps, torch.finfo(torch.float32).eps
        return self.difference <= (STORED * stored + COMPUTED * computed) * self.largest


def merge(
    run: Path,
    out: Path,
    *,
    model: str | None = None,
    dtype: str | None = None,
    alpha: float | None = None,
    enable: Sequence[str] = (),
    trust_remote_code: bool = False,
    sliced: bool = False,
) -> Merged:
    """Write the merged model to `out` and return its distance from the adapted one.

    `alpha` and `enable` (roles of a fused layer's adapted parts) are for a loralib file, which lacks them.
    `sliced` takes out the heads and channels that are masked, where the model's configuration can say so.

    Raises FileNotFoundError where `run` holds no adapter, ValueError where its base is not known, cannot be
    loaded or does not fit, where nothing can be sliced, or where `out` holds something, and Unwritten where
    the disk refuses.
    """
    out = out.resolve()
    saving.refuse_to_overwrite(out)
    folder = adapter_in(run)
    base = base_of(folder, model, trust_remote_code=trust_remote_code)
    scheme, tokenizer = dequantize.scheme_of(base.model), load_processor(base.model, base.auto_class)
    network, adapted, notes = _merged(base, scheme, tokenizer, folder, alpha=alpha, enable=enable)
    if sliced:
        network, gone = without_dead_groups(network)
        notes += gone
    if scheme and base.model.dtype != "auto":
        dtype = dtype or base.model.dtype  # dequantised in float32
    if dtype:
        network.to(getattr(torch, dtype))
    with saving.whole(out) as part:
        network.save_pretrained(part)
        tokenizer.save_pretrained(part)
        del network  # its memory is the reloaded model's
        return compared(part, base, adapted, notes)


def compared(folder: Path, base: Base, adapted: Tensor, notes: list[str]) -> Merged:
    """The distance of the model that was saved to `folder` from the adapted one, whose logits are given."""
    again = saving.reloaded(folder, base)
    difference = float((logits(again) - adapted).abs().max())
    saved = str(next(again.parameters()).dtype).removeprefix("torch.")
    return Merged(difference, float(adapted.abs().max()), saved, base.auto_class, notes)


def _merged(
    base: Base,
    scheme: str | None,
    tokenizer: Any,
    folder: Path,
    *,
    alpha: float | None,
    enable: Sequence[str],
) -> tuple[Any, Tensor, list[str]]:
    """Load the base in plain layers and merge the adapter; also the adapted model's logits, and notes."""
    if scheme:
        network, new = dequantize.load_dequantised(base, tokenizer)
    else:
        network, new = load_model(base.model, base.auto_class, base.head, tokenizer, seed=0)
    injection = load_adapter(network, folder, alpha=alpha, enable=enable)
    refuse_unmergeable(injection)
    check_heads(new, [name for own in adapters_of(network).values() for name in own.trained], folder)
    inputs = batch(network)
    adapted, notes = logits(network, inputs), []
    if scheme:
        load = partial(load_adapter, folder=folder, alpha=alpha, enable=enable)
        apart = _compare_with_quantised(base, tokenizer, load, adapted, inputs)
        notes = [f"the base is dequantised from {scheme}", apart]
    injection.merge()
    adapters_of(network).remove()
    if base.unit:
        adapted, note = in_unit(network, base.unit, adapted)
        notes.append(note)
    return network, adapted, notes


def refuse_unmergeable(injection: Injection) -> None:
    """ValueError where no model in Hub format would compute the same."""
    injection.variant.require_weight("merged")
    if composition := injection.hooks.composition():
        composition.require_weight("merged")
    for name, adapter in injection.adapters.items():
        if adapter.adds_bias and injection.matrices[name].host.own_bias is None:
            raise ValueError(
                f"{injection.variant.name} gives {name} a bias, and a saved model of this architecture would "
                "load without it: it stays an adapter (merge=false)"
            )


def check_heads(new: list[str], trained: Iterable[str], folder: Path) -> None:
    """ValueError for a module that would stay as it was drawn: neither base nor adapter bring it."""
    held = {name.rpartition(".")[0] for name in trained}
    if lacking := [name for name in new if name not in held]:
        raise ValueError(f"neither the base nor {folder} brings weights for {', '.join(lacking)}")


def _compare_with_quantised(
    base: Base, tokenizer: Any, load: Callable[[Any], Injection], adapted: Tensor, inputs: dict[str, Any]
) -> str:
    """Compare with the scheme's own layers under this adapter, where they run on this machine."""
    try:
        model: Any = dequantize.load_quantised(base, tokenizer).model
        if not any(quantized_layers(model)):
            return "its own layers do not run on this machine, so they are not compared"
        load(model)
        apart = float((logits(model, inputs) - adapted).abs().max())
    except (RuntimeError, ValueError) as error:
        return f"its own layers are not compared: {in_one_line(error)}"
    return f"its own layers with this adapter: logits differ by {apart:.2g}"


def in_unit(network: nn.Module, unit: dict[str, float], adapted: Tensor) -> tuple[Tensor, str]:
    """Let a regression's head answer in the labels' own unit, where its last layer has a bias to do so."""
    mean, std = float(unit["mean"]), float(unit["std"])
    last = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    if not last or last[-1].bias is None:
        return adapted, f"scores are standardised: the labels' unit is {std:.6g} * score + {mean:.6g}"
    with torch.no_grad():
        last[-1].weight.mul_(std)
        last[-1].bias.mul_(std).add_(mean)
    return (
        adapted * std + mean,
        f"scores are in the labels' unit (mean {mean:.4g}, std {std:.4g} are in the head)",
    )


__all__ = ["Merged", "check_heads", "compared", "in_unit", "merge", "refuse_unmergeable"]
