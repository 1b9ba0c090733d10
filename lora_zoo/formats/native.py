"""An adapter on disk, one folder: `adapter.safetensors` (the tensors), `adapter.json` (what they are)."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_zoo.core import init
from lora_zoo.core.errors import unknown
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.loralib import from_loralib
from lora_zoo.formats.peft.read import from_peft, is_peft
from lora_zoo.inject.adapter_set import adapters_of
from lora_zoo.inject.base_model import base_parameters
from lora_zoo.inject.injection import Injection
from lora_zoo.inject.matrices import places
from lora_zoo.inject.plan import InjectionPlan, Plan, check

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


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str | None = None,
    alpha: float | None = None,
    enable: Sequence[str] = (),
) -> Injection:
    """Inject the saved adapter into `model`, in place, under `name` or the name that it had.

    `folder` is ours, PEFT's, or a file of loralib's; the last needs `alpha`, which it lacks, and takes
    `enable`, the roles of a fused layer's adapted parts. Raises FileNotFoundError where there is no adapter,
    ValueError where it does not fit the model, which is then as it was.
    """
    return placed(model, read_adapter(model, folder, alpha=alpha, enable=enable), name)


class Read(NamedTuple):
    """An adapter's files, understood for one model."""

    ready: InjectionPlan
    state: dict[str, Tensor]
    source: Path
    name: str = "default"
    seed: int = 0
    started: bool = False
    """Whether start factors are computed from the base; otherwise `state` holds them and nothing is."""


def read_adapter(
    model: nn.Module, folder: str | Path, *, alpha: float | None = None, enable: Sequence[str] = ()
) -> Read:
    """What `load_adapter` would put into `model`, which stays as it is; raises as that does."""
    folder = Path(folder)
    if folder.is_file():
        ready, state, started = from_loralib(model, folder, alpha=alpha, enable=enable)
    elif alpha is not None or enable:
        raise ValueError(f"{folder} knows alpha and its parts; give alpha, enable with a loralib file")
    elif is_peft(folder) and not (folder / DESCRIPTION).is_file():
        ready, state, started = from_peft(model, folder)
    else:
        return _read_ours(model, folder)
    return Read(ready, state, folder, started=started)


def _read_ours(model: nn.Module, folder: Path) -> Read:
    description = read_description(folder)
    cls = VARIANTS.find(description["variant"])
    ready = InjectionPlan(
        cls,
        _plan(model, description, folder),
        check(cls, description["hyperparameters"]),
        description.get("patterns", {}),
    )
    state = load_file(folder / WEIGHTS)
    return Read(ready, state, folder, description.get("name", "default"), description["seed"])


def placed(model: nn.Module, read: Read, name: str | None = None) -> Injection:
    """Inject what was read, in place; raises as `load_adapter` does."""
    name = name or read.name
    if name in adapters_of(model):
        raise ValueError(
            f"{read.source}: the model has an adapter called {name!r} already; give another name"
        )
    with contextlib.nullcontext() if read.started else init.blank():
        injection = Injection(model, read.ready, seed=read.seed, name=name)
    try:
        injection.load_state_dict(injection.state_dict() | read.state if read.started else read.state)
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
