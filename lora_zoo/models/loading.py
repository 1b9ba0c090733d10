"""Load a model and its tokenizer, and the names of modules that the checkpoint lacks."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from lora_zoo.config.quantization import KEYS
from lora_zoo.config.schema import Model
from lora_zoo.formats import loralib
from lora_zoo.formats.peft.forms import readers
from lora_zoo.injection.base_model import own_names
from lora_zoo.injection.originals import remember_original
from lora_zoo.injection.quantize import quantize
from lora_zoo.injection.quantized_base import quantized_layers
from lora_zoo.injection.targets import head_names
from lora_zoo.models.classes import PROCESSORS, TASKS
from lora_zoo.models.quantization import left_out, quantization_config, reference_quantizer, without_codes
from lora_zoo.pocket import HUB

NO_SCHEME: dict[str, Any] = {f.name: f.default for f in fields(Model) if f.name in KEYS}
"""The keys of quantisation schemes, as they are without one."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Loaded(NamedTuple):
    model: nn.Module
    new_modules: list[str]
    """Randomly initialised modules: the checkpoint has no weights for them (a classifier, usually)."""


class Encoder(ValueError):
    """An encoder was given where a causal language model is needed."""


class OtherSize(ValueError):
    """A weight has another size in the model's files, as a head of another number of classes has."""


def source(settings: Model) -> str:
    """The model's source: the embedded folder, a local one, or a name on the Hub."""
    return str(HUB) if settings.path == "pocket" else settings.path


def load_processor(settings: Model, auto_class: str) -> Any:
    """The maker of inputs for a model of this class: its tokenizer, or the processor of images or sounds.

    ValueError where it cannot be loaded.
    """
    if auto_class not in PROCESSORS:
        return load_tokenizer(settings)
    maker = PROCESSORS[auto_class]
    try:
        return getattr(transformers, maker.auto_class).from_pretrained(source(settings), **_where(settings))
    except Exception as error:  # readers of damaged files raise what they please
        raise ValueError(_unreachable(settings, error, f"the {maker.words} of ")) from error


def load_tokenizer(settings: Model) -> Any:
    """The model's tokenizer, with a padding token. ValueError where it cannot be loaded."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source(settings), **_where(settings))
    except Exception as error:  # readers of damaged files raise what they please
        raise ValueError(_unreachable(settings, error, "the tokenizer of ")) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(f"model {settings.name}: its tokenizer has neither a padding nor an end token")
    return tokenizer


def load_model(
    settings: Model, auto_class: str, head: Mapping[str, Any], tokenizer: Any, seed: int
) -> Loaded:
    """The model in evaluation mode, on the CPU unless `device_map` says otherwise.

    New heads, and those of another size that may be one, are drawn from `seed` alone.

    Without a `tokenizer` (None) the padding token is not set, which the weights do not need.

    Raises ValueError where the folder or name holds no model of that class.
    """
    torch.manual_seed(seed)
    options = {
        key: getattr(settings, key)
        for key in ("attn_implementation", "device_map", "ignore_mismatched_sizes")
    }
    options["quantization_config"] = quantization_config(settings)
    if settings.quantization and (scheme := stored_scheme(settings)):
        raise ValueError(
            f"model.path={settings.path} is quantised already ({scheme['quant_method']}): drop "
            f"model.quantization={settings.quantization}"
        )
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            source(settings),
            dtype=settings.dtype,
            output_loading_info=True,
            **{key: value for key, value in options.items() if value},
            **head,
            **_where(settings),
        )
    except Exception as error:  # readers of damaged files raise what they please
        kind = OtherSize if "ignore_mismatched_sizes" in str(error) else ValueError
        raise kind(_unreachable(settings, error)) from error
    _check_direction(settings, model.config, auto_class)
    _check_devices(settings, getattr(model, "hf_device_map", {}))
    resized = [key for key, *_ in info["mismatched_keys"]]
    missing = sorted({key.rpartition(".")[0] for key in (*info["missing_keys"], *resized)} - {""})
    without_codes(model, missing)
    _check_weights(settings, model, info["missing_keys"])
    _check_heads(settings, model, resized)
    if hasattr(tokenizer, "pad_token_id") and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if settings.quantization:
        _quantize(settings, model, missing)
        remember_original(model, partial(_plain, settings, auto_class, head, tokenizer, seed))
    return Loaded(model.eval(), missing)


def _quantize(settings: Model, model: Any, new_modules: list[str]) -> None:
    """Quantise with the project's own quantiser, if that is asked for, what transformers would quantise."""
    if quantizer := reference_quantizer(settings):
        try:
            quantize(model, quantizer, keep=left_out(model, new_modules))
        except ValueError as error:
            raise ValueError(f"model.quantization={settings.quantization}: {error}") from error


def _plain(settings: Model, auto_class: str, head: Mapping[str, Any], tokenizer: Any, seed: int) -> nn.Module:
    """The model from before its quantisation, on the CPU; torch's own generators are left as they were."""
    plain = replace(settings, quantization=None, device_map=None, **NO_SCHEME)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return load_model(plain, auto_class, head, tokenizer, seed).model


def stored_scheme(settings: Model) -> dict[str, Any] | None:
    """The `quantization_config` in the base's config.json; None for an ordinary model."""
    given = {"revision": settings.revision} if settings.revision else {}
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(source(settings), **given)
    except (OSError, ValueError):
        return None  # loading it says why
    return config.get("quantization_config")


def own_class(settings: Model, held: Collection[str] = ()) -> str:
    """The class that loads the base of an adapter which says none; `held`: the names of its tensors.

    It has every module that the names tell of: the class of the architecture that the base's configuration
    names where it does, else the only one. Raises ValueError where several have. Where none has, it is the
    configuration's, or a causal one; loading tells what does not fit.
    """
    usual = _named_class(settings)
    if not held or _has_modules(settings, usual, held):
        return usual
    fits = [auto_class for auto_class in TASKS if _has_modules(settings, auto_class, held)]
    if len(fits) > 1:
        raise ValueError(
            f"model.path={settings.path}: the adapter fits {', '.join(fits)}, and nothing says which; "
            "python -m lora_zoo.load … --auto-class CLASS makes an adapter that does"
        )
    return fits[0] if fits else usual


def _named_class(settings: Model) -> str:
    """The class that loads the architecture that the base's configuration names; a causal one if none."""
    try:
        config = transformers.AutoConfig.from_pretrained(source(settings), **_where(settings))
        named = set(config.architectures or ())
        for auto_class in TASKS:
            mapping = getattr(transformers, auto_class)._model_mapping
            classes = mapping.get(type(config), ())
            every = classes if isinstance(classes, tuple) else (classes,)
            if named & {cls.__name__ for cls in every}:
                return auto_class
    except Exception:  # a damaged configuration raises what it pleases; loading the model tells
        return next(iter(TASKS))
    return next(iter(TASKS))


def _has_modules(settings: Model, auto_class: str, held: Collection[str]) -> bool:
    """True where each name is a parameter's or a buffer's, an adapter's at a module, or of all modules."""
    try:
        model = outline(settings, auto_class, {})
    except ValueError:
        return False
    modules, kept = {name for name, _ in model.named_modules()}, model.state_dict().keys()
    forms = [form for _, form in readers()]
    adapters = {*loralib.NAMES, *(name for form in forms for name in form.names)}
    shared = {f"{form.shared_prefix}{name}" for form in forms for name in form.shared}
    own = [name.removeprefix("base_model.model.") for name in held if name not in shared]
    return all(
        name in kept or any(name.removesuffix(f".{last}") in modules for last in adapters)
        for name in own_names(model, dict.fromkeys(own))
    )


def outline(settings: Model, auto_class: str, head: Mapping[str, Any]) -> nn.Module:
    """The model's structure without its weights, on torch's meta device: from its configuration alone.

    Raises ValueError where there is no configuration, or none of a model of that class.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(source(settings), **head, **_where(settings))
        dtype = config.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
        trust = {"trust_remote_code": settings.trust_remote_code}
        with torch.device("meta"):
            _check_direction(settings, config, auto_class)
            return getattr(transformers, auto_class).from_config(config, dtype=dtype, **trust)
    except Encoder:
        raise
    except Exception as error:  # a damaged configuration raises what it pleases
        raise ValueError(_unreachable(settings, error)) from error


def _where(settings: Model) -> dict[str, Any]:
    given = {"revision": settings.revision} if settings.revision else {}
    return {"trust_remote_code": settings.trust_remote_code, **given}


def _check_direction(settings: Model, config: Any, auto_class: str) -> None:
    """Raise Encoder: transformers gives some encoders a causal class with untrained weights."""
    if auto_class != "AutoModelForCausalLM" or getattr(config, "is_decoder", True) is not False:
        return
    if type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder:
        raise Encoder(
            f"model.path={settings.path} is an encoder ({config.model_type}), which reads both ways and "
            "continues no text; take a decoder, or a task of type classification or regression"
        )


def _check_weights(settings: Model, model: nn.Module, missing: Collection[str]) -> None:
    """Raise ValueError for a checkpoint that lacks most of the model, or holds NaN or inf."""
    parameters = dict(model.named_parameters())
    absent = sorted(name for name in missing if name in parameters)
    if sum(parameters[n].numel() for n in absent) > 0.5 * sum(p.numel() for p in parameters.values()):
        raise ValueError(
            f"model.path={settings.path}: its files lack most of the model's weights, "
            f"for example {absent[0]}; they belong to another architecture, or are incomplete"
        )
    for name, parameter in parameters.items():
        # A tensor of a class of its own (torchao's) or of 8 bits holds codes, which are all numbers.
        plain = type(parameter) is nn.Parameter and parameter.dtype in DTYPES
        if plain and not bool(parameter.isfinite().all()):
            raise ValueError(f"model.path={settings.path}: the weight {name} holds NaN or inf")
    for name, host in quantized_layers(model):
        if not (host.like.is_meta or bool(host.matrix().isfinite().all())):
            raise ValueError(
                f"model.path={settings.path}: the codes of {name} stand for NaN or inf, "
                "as this quantisation has them; take another one"
            )


def _check_devices(settings: Model, placed: Mapping[str, Any]) -> None:
    """Raise ValueError where parts of the model were put on several devices, or on the disk."""
    if len(devices := {str(device) for device in placed.values()}) > 1 or "disk" in devices:
        raise ValueError(
            f"model.device_map={settings.device_map} spreads the model over {', '.join(sorted(devices))}, "
            "and a run uses one device; give one, or model.quantization=nf4 or int8, with which it may fit"
        )


def _check_heads(settings: Model, model: nn.Module, resized: Collection[str]) -> None:
    """Raise ValueError for a weight of another size than the checkpoint's that is no head's."""
    heads = tuple(f"{name}." for name in head_names(model))
    for name in (name for name in resized if not f"{name}.".startswith(heads)):
        raise ValueError(
            f"model.path={settings.path}: {name} has another size in its files, and only a head can be drawn "
            "anew; they belong to another architecture"
        )


def _unreachable(settings: Model, error: Exception, what: str = "") -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    first = next((line for line in lines if line), type(error).__name__)
    by = f"with model.quantization={settings.quantization}" if settings.quantization else "in Hub format"
    by += f" and group_size={settings.group_size}, which must divide inputs" if settings.group_size else ""
    if "ignore_mismatched_sizes" in first:
        first = "a weight has another size in its files; model.ignore_mismatched_sizes=true draws a head anew"
    return f"{what}model.path={settings.path} cannot be loaded as a model {by}: {first}"
