"""`save_peft`: an adapter as a folder that PEFT's `PeftModel.from_pretrained` loads.

The bytes depend on the adapter alone: sorted keys, no dates, float32 whatever the base's dtype.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_zoo.core.dtypes import uncast, wide
from lora_zoo.formats.peft.forms import PREFIX, PeftContent, PeftFormat, Unfit, stored
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.formats.peft.patterns import targets, trained_modules
from lora_zoo.formats.peft.updates import LowRankUpdate, as_product, factored
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.base_model import base_parameters, named_base_modules
from lora_zoo.injection.inject import Injection

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NOTHING = "dummy-target-modules"
"""PEFT's target of an adapter that adapts no module."""
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Task type -> the ends of the names of modules that PEFT's models expect in the file."""


@dataclass
class Written:
    """The result of `save_peft`: the folder, the configuration, and notes for the user, a sentence each.

    `errors` is the relative Frobenius error of each matrix that was brought to a chosen rank.
    """

    folder: Path
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def save_peft(
    injection: Injection,
    folder: str | Path,
    *,
    base: str | None = None,
    task_type: str | None = None,
    form: Literal["peft", "lora"] = "peft",
    rank: int | None = None,
) -> Written:
    """Write `injection` in PEFT's format: in PEFT's own form of the variant, or as plain LoRA.

    `base` and `task_type` are written as they are; `rank` approximates every update by plain LoRA of at
    most that rank. Raises ValueError, before anything is written, for what PEFT's files cannot hold.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    if injection.prior:
        raise ValueError(
            f"the adapter was trained on {', '.join(injection.prior)} and means nothing alone, and PEFT's "
            "files hold one adapter: merge it with its priors instead (python -m lora_zoo.merge)"
        )
    if injection.recoded.coders:
        raise ValueError(
            f"init={injection.hyper['init']} has given the base codes of its own, and PEFT's files hold an "
            "adapter alone: merge it instead (python -m lora_zoo.merge)"
        )
    injection.statistics.warn()
    written = Written(Path(folder), {})
    with adapters_of(injection.model).disabled():
        content = _content(injection, form, rank, written)
        forced = HEADS.get(task_type or "", ())
        modules = _modules(injection, forced)
        prefix = injection.variant.peft.prefix if injection.variant.peft else PREFIX
        tensors = content.tensors | _fully_trained(injection, modules, prefix)
        written.config = content.config | {
            "base_model_name_or_path": base,
            "task_type": task_type,
            "inference_mode": True,
            "modules_to_save": modules or None,
        }
        if "target_modules" in content.config:  # a method of layers
            chosen = _targets(injection, content.config, modules)
            written.config |= {"bias": "none", "target_modules": chosen}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite: the adapter is broken")
    written.folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(tensors.items())), written.folder / WEIGHTS, metadata={"format": "pt"})
    (written.folder / CONFIG).write_text(json.dumps(written.config, indent=2, sort_keys=True) + "\n")
    return written


def _content(injection: Injection, form: str, rank: int | None, written: Written) -> PeftContent:
    own: PeftFormat | None = injection.variant.peft if form == "peft" and rank is None else None
    if not (own and own.weightless):  # a subclass may compute what the form of its parent cannot hold
        injection.variant.require_weight("written in PEFT's format as LoRA")
    if own and (injection.adapters or injection.shared is not None):
        if not own.biases:
            _refuse_biases(injection)
        try:
            return own.to_peft(injection)
        except Unfit as reason:
            written.notes.append(f"written as plain LoRA: {reason}")
    _refuse_biases(injection)
    updates = [_low_rank(injection, name, rank, written) for name in injection.adapters]
    return LoraFormat().write(updates, 0.0)


def _refuse_biases(injection: Injection) -> None:
    """Raise ValueError for an adapter that changes the bias of its layer."""
    for name, adapter in injection.adapters.items():
        host = injection.matrices[name].host
        if not adapter.changes_bias_of(host):
            continue
        own_O, new_O = host.own_bias, wide(adapter.effective_bias(host))
        if not torch.equal(new_O, torch.zeros_like(new_O) if own_O is None else wide(own_O)):
            raise ValueError(
                f"{injection.variant.name} cannot be written as LoRA at {name}: its bias changes as well, "
                "which LoRA cannot hold; python -m lora_zoo.merge writes it where the layer has one"
            )


def _low_rank(injection: Injection, name: str, rank: int | None, written: Written) -> LowRankUpdate:
    """One matrix's update as B A, of its exact rank or at most `rank`. ValueError for one of full rank."""
    adapter, matrix = injection.adapters[name], injection.matrices[name]
    exact = as_product(adapter, matrix)
    if exact and (rank is None or exact.A_RI.shape[0] <= rank):
        return exact
    W_OI = wide(matrix.host.matrix())
    with uncast(W_OI.device):
        dW_OI = exact.B_OR @ exact.A_RI if exact else adapter.weight(W_OI) - W_OI
    smaller = min(dW_OI.shape)
    B_OR, A_RI, error = factored(dW_OI, rank or smaller, beside=0.0 if exact else float(W_OI.norm()))
    if rank is None and len(A_RI) == smaller:
        raise ValueError(
            f"{injection.variant.name} changes {name} by a matrix of full rank {smaller}, which is no LoRA: "
            "give a rank to have the nearest one, or use python -m lora_zoo.merge"
        )
    if rank is not None:
        written.errors[name] = error
    return LowRankUpdate(matrix, B_OR, A_RI, 1.0)


def _targets(injection: Injection, config: dict[str, Any], modules: list[str]) -> str | list[str]:
    if config["target_modules"] or config.get("target_parameters"):
        return targets(injection.model, config["target_modules"], modules)
    return NOTHING


def _modules(injection: Injection, forced: tuple[str, ...]) -> list[str]:
    if not injection.adapters and not injection.trained and injection.shared is None:
        raise ValueError(f"{injection.variant.name} trains nothing: there is no adapter to write")
    if len(injection.trained) == len(base_parameters(injection.model)):
        raise ValueError("every parameter is trained, which is no adapter: use python -m lora_zoo.merge")
    return trained_modules(injection.model, injection.trained, forced) if injection.trained or forced else []


def _fully_trained(injection: Injection, modules: list[str], prefix: str) -> dict[str, Tensor]:
    """Every tensor of `modules`, saved buffers included, by PEFT's names."""
    every, by_name = base_parameters(injection.model), dict(named_base_modules(injection.model))
    found: dict[str, Tensor] = {}
    for module in modules:
        buffers = {f"{module}.{name}": tensor for name, tensor in by_name[module].state_dict().items()}
        for source in (every, buffers, injection.trained, injection.buffers.own()):
            found |= {name: tensor for name, tensor in source.items() if name.startswith(f"{module}.")}
    return {f"{prefix}{name}": stored(tensor) for name, tensor in found.items()}
