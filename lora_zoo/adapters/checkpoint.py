"""An adapter on disk, one folder: `adapter.safetensors` (the tensors), `adapter.json` (what they are)."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from lora_zoo.adapters import inits
from lora_zoo.adapters.adapter import Plan
from lora_zoo.adapters.beneath import base_parameters
from lora_zoo.adapters.injection import Injection
from lora_zoo.adapters.named import adapters_of
from lora_zoo.adapters.places import places
from lora_zoo.adapters.planning import Prepared, check
from lora_zoo.adapters.registry import find_variant, unknown

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
        "name": injection.name,
        "hyperparameters": injection.hyper,
        "patterns": injection.patterns,
        "target_modules": list(injection.places),
        "in_full": list(injection.trained),
        "seed": injection.seed,
        "about": about,
    }
    text = json.dumps(description, indent=2)
    _replace(folder / DESCRIPTION, lambda path: path.write_text(text))
    return folder


def load_adapter(model: nn.Module, folder: str | Path, *, name: str | None = None) -> Injection:
    """Inject the adapter saved in `folder` into `model`, in place, under `name` or the name that it had.

    Raises FileNotFoundError where the folder holds no adapter, ValueError where it does not fit the model.
    """
    folder = Path(folder)
    description = read_description(folder)
    name = name or description.get("name", "default")
    if name in adapters_of(model):
        raise ValueError(f"{folder}: the model has an adapter called {name!r} already; give another name")
    cls = find_variant(description["variant"])
    with inits.blank():
        ready = Prepared(
            cls,
            _plan(model, description, folder),
            check(cls, description["hyperparameters"]),
            description.get("patterns", {}),
        )
        injection = Injection(model, ready, seed=description["seed"], name=name)
    try:
        injection.load_state_dict(load_file(folder / WEIGHTS))
    except ValueError:
        injection.remove()
        raise
    return injection


def _plan(model: nn.Module, description: dict[str, Any], folder: Path) -> Plan:
    """Exactly the matrices and parameters that were saved. ValueError for one that the model has not."""
    known, every = {place.name: place for place in places(model)}, base_parameters(model)
    for saved, there in ((description["target_modules"], known), (description["in_full"], every)):
        for name in saved:
            if name not in there:
                raise ValueError(f"{folder} holds an adapter of another model: this one has no {name}")
    return Plan([known[name] for name in description["target_modules"]], description["in_full"])


def save_adapters(model: nn.Module, folder: str | Path, **about: Any) -> Path:
    """Save every named adapter of `model`, each to a folder of its name inside `folder`."""
    for name, injection in adapters_of(model).items():
        save_adapter(injection, Path(folder) / name, **about)
    return Path(folder)


def load_adapters(model: nn.Module, folder: str | Path) -> dict[str, Injection]:
    """Load every adapter that `save_adapters` wrote, by name; the last one is active.

    Raises FileNotFoundError where `folder` holds none.
    """
    found = sorted(path.parent for path in Path(folder).glob(f"*/{DESCRIPTION}"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no adapters: folders with {DESCRIPTION} are expected there")
    return {injection.name: injection for injection in (load_adapter(model, path) for path in found)}


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
