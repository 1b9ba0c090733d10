"""Check PEFT's options: those that are read, those without effect on an adapter's output, and no others.

Options that may change the function and are not known here are refused by name, unless they are off.
"""

import re
from collections.abc import Collection
from typing import Any

from lora_zoo.core.errors import unknown
from lora_zoo.formats.peft.forms import peft_types, readers

_READ = """peft_type target_modules exclude_modules layers_to_transform layers_pattern modules_to_save"""
_WITHOUT_EFFECT = """auto_mapping base_model_name_or_path revision task_type inference_mode peft_version
    fan_in_fan_out runtime_config ephemeral_gpu_offload loftq_config eva_config corda_config lora_ga_config
    qalora_group_size megatron_core init_weights init_ia3_weights tinit tfinal total_step"""
_KNOWN = {*_READ.split(), *_WITHOUT_EFFECT.split()}


def check_options(config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind not in peft_types():
        raise ValueError(unknown("peft_type", str(kind), peft_types()))
    if config.get("bias", "none") != "none":
        raise ValueError(f"bias={config['bias']!r} is not supported: biases would train beside the adapter")
    forms = [form for _, form in readers() if form.peft_type == kind]
    own = {field for form in forms for field in form.options}
    for key, value in sorted(config.items()):
        if key not in _KNOWN | own | {"bias"} and value not in (None, False, 0, "", [], {}):
            raise ValueError(
                f"{key}={str(value)[:60]} is not supported: it may change what the adapter computes"
            )
    _check_numbers(config, {field for form in forms for field in form.fixed})
    _check_layers(config)
    _check_names(config)
    _check_patterns(config, str(kind))


def _check_numbers(config: dict[str, Any], fixed: Collection[str]) -> None:
    for key in {"r", "init_r", "target_r"} - set(fixed):
        if key in config and (type(config[key]) is not int or config[key] < 1):
            raise ValueError(f"{key} must be a whole number above 0; got {config[key]!r}")
    for key in ("lora_alpha", "lora_dropout", "vera_dropout", "d_initial"):
        if key in config and type(config[key]) not in (int, float):
            raise ValueError(f"{key} must be a number; got {config[key]!r}")
    if not config.get("lora_alpha", 8) and config["peft_type"] == "LORA":
        raise ValueError("lora_alpha=0 is an adapter that does nothing")


def _check_layers(config: dict[str, Any]) -> None:
    for key, form, words in (("layers_to_transform", int, "numbers"), ("layers_pattern", str, "names")):
        value = config.get(key)
        held = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, form) and not isinstance(one, bool) for one in held):
            raise ValueError(f"{key} must be {words}; got {str(value)[:60]}")
        for pattern in held if form is str else []:
            _check_expression(key, pattern)


def _check_names(config: dict[str, Any]) -> None:
    for key in ("target_modules", "target_parameters", "exclude_modules", "modules_to_save"):
        value = config.get(key)
        is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not (
            value is None
            or is_list
            or (isinstance(value, str) and key in {"target_modules", "exclude_modules"})
        ):
            raise ValueError(f"{key} must be names; got {str(value)[:60]}")
        for pattern in [value] if isinstance(value, str) else []:
            _check_expression(key, pattern)
    for name in config.get("modules_to_save") or []:
        _check_expression("modules_to_save", name)


def _check_patterns(config: dict[str, Any], kind: str) -> None:
    masks = kind == "ADALORA"
    for key, types in (("rank_pattern", (list,) if masks else (int,)), ("alpha_pattern", (int, float))):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or any(type(v) not in types or not v for v in pattern.values()):
            raise ValueError(f"{key} must map names to numbers; got {str(pattern)[:60]}")
        for name in pattern:
            _check_expression(key, name)


def _check_expression(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}: {pattern[:60]!r} is no regular expression: {error}") from None
