"""The evaluation before training, measured once for all runs of a process that begin as the same function.

A model whose tensors, data and settings of evaluation are those of an earlier run, number by number, answers
as that one did: LoRA's of every rank and rate begin as the base. What could make a difference is in the key.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from lora_zoo.config.spec import RunSpec
from lora_zoo.injection.base_model import named_base_modules
from lora_zoo.injection.effective import EffectiveWeights
from lora_zoo.injection.inject import Injection
from lora_zoo.models.snapshot import hashed
from lora_zoo.training.evaluation import Evaluator


def key_of(evaluator: Evaluator, spec: RunSpec) -> str:
    """All that an evaluation of the model as it stands depends on; "" where it cannot be told."""
    settings = spec.settings
    function = "" if evaluator.groups else digest_of_function(evaluator.injection)
    if not function:
        return ""
    about = [asdict(settings.task), asdict(settings.model), evaluator.eval_splits, evaluator.data.fingerprint]
    return json.dumps([function, about, spec.made_of["data"], _process()], sort_keys=True, default=str)


def digest_of_function(injection: Injection) -> str:
    """128 bits of every tensor that a pass of the adapted model is made of; "" where it is made of more."""
    with injection.effective() as weights:
        if not injection.variant.pointwise or weights.left_out:
            return ""
        found = xxhash.xxh3_128()
        for name, tensor in _tensors(injection.model, weights):
            hashed(found, tensor, name, tensor.device)
        return str(found.hexdigest())


def _tensors(model: nn.Module, weights: EffectiveWeights) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the base's modules, of adapted layers the effective ones."""
    plain = weights.layers()
    for prefix, module in named_base_modules(model):
        used = plain.get(module, module)
        own: Mapping[str, Any] = {**used._parameters, **used._buffers, **vars(used)}
        for name, value in own.items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}", value


def _process() -> list[Any]:
    """The settings of the process by which a product may round otherwise."""
    return [
        torch.get_num_threads(),
        str(torch.get_default_dtype()),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    ]
