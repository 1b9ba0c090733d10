"""Find an adapter's base model from the files beside the adapter.

The files are untrusted: names and labels are taken from them, never options that run code.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lora_zoo.config.schema import Model
from lora_zoo.config.validate import check_group, check_quantization
from lora_zoo.core.errors import unknown
from lora_zoo.core.hyperparameters import fits
from lora_zoo.formats.description import DESCRIPTION, read_description
from lora_zoo.formats.folders import adapter_in
from lora_zoo.formats.peft.read import FILES
from lora_zoo.formats.safe_files import object_in, tensors_in
from lora_zoo.models.classes import TASKS
from lora_zoo.models.loading import own_class

LABELS = 100_000
"""The most labels that a head may have."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
HEAD = ("num_labels", "id2label", "label2id", "problem_type")
PEFT = "adapter_config.json"
PEFT_TASKS = {task: auto_class for auto_class, task in TASKS.items()}
_LABELS = re.compile(r"(.*\.)?(classifier|score)(\.out_proj)?\.weight")
"""The matrix of a classifier's head whose rows are the labels."""


class Base(NamedTuple):
    """The model that an adapter was trained on, with the settings that load it."""

    model: Model
    auto_class: str
    head: dict[str, Any]
    unit: dict[str, float] | None
    """mean and std of a regression's labels, where the adapter's head knows standardised ones."""


def base_of(
    folder: Path, model: str | None = None, *, auto_class: str = "", trust_remote_code: bool = False
) -> Base:
    """The base of the adapter in `folder`, or `model` instead; `auto_class` instead of theirs.

    Raises FileNotFoundError where there is no adapter, ValueError where the files are unusable or unsafe.
    """
    about = _about(folder)
    if "model" not in about and model is None:
        raise ValueError(f"{folder} does not say which model it adapts; give --model")
    auto_class, head, unit = auto_class or about.get("auto_class", ""), about.get("head", {}), None
    if not isinstance(auto_class, str) or not re.fullmatch(r"(AutoModel(For\w+)?)?", auto_class):
        raise ValueError(f"{folder}: {auto_class!r} is no class that loads a model")
    if not isinstance(head, Mapping):
        raise ValueError(f"{folder}: what it says of its head cannot be read")
    for key, value in head.items():
        if key not in HEAD:
            raise ValueError(f"{folder}: " + unknown("key of head", str(key), HEAD))
        if not _is_of_a_head(key, value):
            raise ValueError(f"{folder}: the {key} of its head cannot be {str(value)[:60]}")
    if (unit := about.get("standardised")) is not None and not _is_unit(unit):
        raise ValueError(f"{folder}: the mean and std of its labels cannot be read")
    settings = _settings(folder, about.get("model", {}), model)
    known = Model(**settings, trust_remote_code=trust_remote_code)
    return Base(known, auto_class or own_class(known, about.get("held", ())), dict(head), unit)


def warn_of_another_base(folder: Path, model: Model) -> None:
    """Warn where the adapter in `folder` says that it was trained on another model than this one."""
    about = _about(folder).get("model")
    path = about.get("path") if isinstance(about, Mapping) else None
    if path and path != model.path:
        warnings.warn(f"{folder} was trained on {path}, and this run's model is {model.path}", stacklevel=2)


def _settings(folder: Path, about: Any, model: str | None) -> dict[str, Any]:
    types = {f.name: f.type for f in fields(Model) if f.name not in ("trust_remote_code", "device_map")}
    names = types.keys()
    if not isinstance(about, Mapping) or not all(fits(about[n], types[n]) for n in names & about.keys()):
        raise ValueError(f"{folder}: what it says of its model cannot be read")
    settings = {name: about[name] for name in names if name in about}
    if "/" in (settings.get("attn_implementation") or ""):
        raise ValueError(
            f"{folder}: attn_implementation={settings['attn_implementation']} is code from the Hub"
        )
    if settings.get("dtype", "auto") not in DTYPES:
        raise ValueError(f"{folder}: " + unknown("dtype", str(settings["dtype"]), DTYPES))
    settings |= {"path": model, "revision": None} if model else {}
    if not settings.get("path"):
        raise ValueError(f"{folder} does not say which model it adapts; give --model")
    settings = {"name": Path(str(settings["path"])).name} | settings
    try:
        known = Model(**settings)
        check_group(known, "model.")
        check_quantization(known)
    except ValueError as wrong:
        raise ValueError(f"{folder}: {wrong}") from wrong
    return settings


def _is_of_a_head(key: str, value: Any) -> bool:
    """True for a number of labels, or labels, as a head may have them: it is allocated by them."""
    if value is None:
        return True
    if key == "num_labels":
        return type(value) is int and 1 <= value <= LABELS
    if key == "problem_type":
        return isinstance(value, str)
    plain = isinstance(value, Mapping) and all(isinstance(v, str | int) for v in value.values())
    return plain and len(value) <= LABELS


def _is_unit(unit: Any) -> bool:
    return isinstance(unit, Mapping) and all(isinstance(unit.get(key), float) for key in ("mean", "std"))


def _about(folder: Path) -> dict[str, Any]:
    """The adapter's notes about its base; for PEFT's, from PEFT's configuration."""
    if folder.is_file():
        return _head(tensors_in(folder))  # loralib's: tensors alone
    peft = folder / PEFT
    if (folder / DESCRIPTION).is_file() or not peft.is_file():
        return dict(read_description(folder).get("about") or {})
    config = object_in(peft)
    about = {"auto_class": PEFT_TASKS.get(str(config.get("task_type")), "")} | _head(_tensors(folder))
    path, revision = config.get("base_model_name_or_path"), config.get("revision")
    return about | ({"model": {"path": path, "revision": revision, "dtype": "auto"}} if path else {})


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a PEFT folder; none where the file is missing, which its reader will say."""
    weights = next((folder / name for name in FILES if (folder / name).is_file()), None)
    return tensors_in(weights) if weights else {}


def _head(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The names of `tensors`, and the number of labels of a classifier's head among them."""
    rows = [len(t) for name, t in tensors.items() if _LABELS.fullmatch(name) and t.ndim == 2]
    return {"held": list(tensors)} | ({"head": {"num_labels": rows[0]}} if rows else {})


__all__ = ["Base", "adapter_in", "base_of", "warn_of_another_base"]
