"""The content of `adapter.json`, held to its form before anything uses it: others may have written it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_zoo.core.bounded_json import is_file_name
from lora_zoo.core.errors import unknown
from lora_zoo.formats.safe_files import object_in

FORMAT = 1
WEIGHTS, DESCRIPTION = "adapter.safetensors", "adapter.json"
_FORMS: dict[str, tuple[type, str]] = {
    "variant": (str, "a text"),
    "hyperparameters": (dict, "an object"),
    "target_modules": (list, "a list of names"),
    "in_full": (list, "a list of names"),
    "seed": (int, "a whole number"),
}
_WITH_DEFAULT: dict[str, tuple[type, str]] = {
    "name": (str, "a text"),
    "patterns": (dict, "an object"),
    "about": (dict, "an object"),
    "variant_file": (dict, "an object with path and sha256"),
}


def read_description(folder: str | Path) -> dict[str, Any]:
    """The content of `adapter.json`. FileNotFoundError or ValueError where it is missing or unusable."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file() or not (Path(folder) / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} holds no adapter: {DESCRIPTION} and {WEIGHTS} are expected there")
    description = object_in(path)
    if description.get("format") != FORMAT:
        raise ValueError(f"{path}: " + unknown("format", str(description.get("format")), [str(FORMAT)]))
    try:
        _check(description)
    except ValueError as wrong:
        raise ValueError(f"{path}: {wrong}") from None
    return description


def _check(description: Mapping[str, Any]) -> None:
    given = {key: form for key, form in _WITH_DEFAULT.items() if description.get(key) is not None}
    for key, (form, words) in (_FORMS | given).items():
        value = description.get(key)
        if not isinstance(value, form) or isinstance(value, bool):
            raise ValueError(f"{key} must be {words}; got {str(value)[:60]}")
    for key in ("target_modules", "in_full"):
        if not all(isinstance(name, str) for name in description[key]):
            raise ValueError(f"{key} must be a list of names; got {str(description[key])[:60]}")
    if not is_file_name(name := description.get("name", "default")):
        raise ValueError(f"name {str(name)[:60]!r} is no plain name")
    _check_parts(description)


def _check_parts(description: Mapping[str, Any]) -> None:
    for key, values in (description.get("patterns") or {}).items():
        if not isinstance(values, Mapping):
            raise ValueError(f"patterns.{key} must be an object; got {str(values)[:60]}")
    file = description.get("variant_file") or {"path": "", "sha256": ""}
    if not all(isinstance(file.get(key), str) for key in ("path", "sha256")):
        raise ValueError(f"variant_file must hold path and sha256; got {str(file)[:60]}")
