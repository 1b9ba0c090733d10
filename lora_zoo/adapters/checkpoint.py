"""An adapter on disk, one folder: `adapter.safetensors` (the tensors), `adapter.json` (what they are)."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from lora_zoo.adapters import inits
from lora_zoo.adapters.injection import Injection, inject
from lora_zoo.adapters.registry import unknown

FORMAT = 1
WEIGHTS, DESCRIPTION = "adapter.safetensors", "adapter.json"


def save_adapter(injection: Injection, folder: str | Path, **about: Any) -> Path:
    """Write the adapter's tensors and configuration to `folder` and return it.

    `about` is kept beside the configuration (the base model's name, say). The tensors are those that the
    base lacks: factors, magnitudes, start factors, heads trained in full; what a seed restores is not stored.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in injection.state_dict().items()
    }
    _replace(folder / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    description = {
        "format": FORMAT,
        "variant": injection.variant.name,
        "hyperparameters": injection.hyper,
        "target_modules": injection.adapted,
        "in_full": injection.in_full,
        "seed": injection.seed,
        "about": about,
    }
    text = json.dumps(description, indent=2)
    _replace(folder / DESCRIPTION, lambda path: path.write_text(text))
    return folder


def load_adapter(model: nn.Module, folder: str | Path) -> Injection:
    """Inject the adapter saved in `folder` into a fresh `model`, in place.

    Raises FileNotFoundError where the folder holds no adapter, ValueError where it does not fit the model.
    """
    folder = Path(folder)
    description = read_description(folder)
    modules = sorted({name.rpartition(".")[0] for name in description["in_full"]})
    with inits.blank():
        injection = inject(
            model,
            description["variant"],
            target_modules=description["target_modules"] or ("q",),
            modules_to_save=modules,
            seed=description["seed"],
            **description["hyperparameters"],
        )
    try:
        injection.load_state_dict(load_file(folder / WEIGHTS))
    except ValueError:
        injection.remove()
        raise
    return injection


def read_description(folder: str | Path) -> dict[str, Any]:
    """The content of `adapter.json`. FileNotFoundError or ValueError where there is none that we can read."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file() or not (Path(folder) / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} holds no adapter: {DESCRIPTION} and {WEIGHTS} are expected there")
    description = json.loads(path.read_text())
    if description.get("format") != FORMAT:
        raise ValueError(f"{path}: " + unknown("format", str(description.get("format")), [str(FORMAT)]))
    return description


def _replace(path: Path, write: Any) -> None:
    """Write beside `path` and rename, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    temporary.replace(path)
