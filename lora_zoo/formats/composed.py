"""Adapters that are composed anew for each input: a folder for each, and what composes them.

`composition.json` names the composition, its adapters in their order and its options; tensors that it has
learned lie in `composition.safetensors`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from lora_zoo.core.bounded_json import read_json
from lora_zoo.core.composition import Composition
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.safe_files import tensors_in
from lora_zoo.injection.adapter_set import adapters_of

COMPOSITION, TENSORS = "composition.json", "composition.safetensors"


def save_composed(model: nn.Module, folder: str | Path, options: Mapping[str, Any], /, **about: Any) -> Path:
    """Write the adapters of the active composition, which was given `options`, and it to `folder`."""
    folder, adapters = Path(folder), adapters_of(model)
    composition = adapters.composition
    for name in composition.names:
        save_adapter(adapters[name], folder / name, **about)
    description = {"by": composition.name, "names": composition.names, "options": dict(options)}
    (folder / COMPOSITION).write_text(json.dumps(description, indent=2))
    if tensors := composition.tensors():
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS)
    return folder


def load_composed(model: nn.Module, folder: str | Path) -> Composition:
    """Load the adapters that `save_composed` wrote, and make them the active ones, composed as they were.

    Raises FileNotFoundError where `folder` holds none, ValueError where they do not fit the model.
    """
    folder = Path(folder)
    if not (folder / COMPOSITION).is_file():
        raise FileNotFoundError(f"{folder} holds no composition: {COMPOSITION} is expected there")
    about: Any = read_json(folder / COMPOSITION)
    known = isinstance(about, dict) and {"by", "names", "options"} <= about.keys()
    if not known or not all(isinstance(name, str) and Path(name).name == name for name in about["names"]):
        raise ValueError(f"{folder / COMPOSITION} must hold by, names and options; got {str(about)[:80]}")
    for name in about["names"]:
        load_adapter(model, folder / name, name=name)
    adapters = adapters_of(model)
    adapters.activate(*about["names"], composition=about["by"], **about["options"])
    if (folder / TENSORS).is_file():
        adapters.composition.load_tensors(tensors_in(folder / TENSORS))
    return adapters.composition
