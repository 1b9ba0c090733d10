"""Our format, one folder an adapter: `adapter.safetensors` (tensors), `adapter.json` (configuration)."""

import contextlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from lora_zoo.core import init
from lora_zoo.core.adapter import Variant
from lora_zoo.core.user_files import own_file
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.description import DESCRIPTION, FORMAT, WEIGHTS, read_description
from lora_zoo.formats.loralib import from_loralib
from lora_zoo.formats.peft.forms import SavedAdapter
from lora_zoo.formats.peft.read import from_peft, is_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import find_matrices
from lora_zoo.injection.plan import InjectionPlan, complete_hyperparameters


def save_adapter(injection: Injection, folder: str | Path, **about: Any) -> Path:
    """Write the adapter's tensors and configuration to `folder` and return it.

    `about` is kept beside the configuration (the base model's name, say). The tensors are those that the
    base lacks: factors, magnitudes, initial factors, fully trained heads; frozen tensors drawn from a seed
    are not stored.
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
        **({"variant_file": file} if (file := own_file(injection.variant)) else {}),
        "name": injection.name,
        "hyperparameters": injection.hyper,
        "patterns": injection.patterns,
        "target_modules": list(injection.matrices),
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
    return inject_saved(model, read_adapter(model, folder, alpha=alpha, enable=enable), name)


def read_adapter(
    model: nn.Module, folder: str | Path, *, alpha: float | None = None, enable: Sequence[str] = ()
) -> SavedAdapter:
    """Read what `load_adapter` injects, without changing `model`; raises as that does."""
    folder = Path(folder)
    if folder.is_file():
        return from_loralib(model, folder, alpha=alpha, enable=enable)
    if alpha is not None or enable:
        raise ValueError(f"{folder} knows alpha and its parts; give alpha, enable with a loralib file")
    if is_peft(folder) and not (folder / DESCRIPTION).is_file():
        return from_peft(model, folder)
    description = read_description(folder)
    plan, state = _plan(model, description, folder), load_file(folder / WEIGHTS)
    return SavedAdapter(plan, state, folder, description.get("name", "default"), description["seed"])


def inject_saved(model: nn.Module, saved: SavedAdapter, name: str | None = None) -> Injection:
    """Inject an adapter that was read, in place; raises as `load_adapter` does."""
    name = name or saved.name
    if name in adapters_of(model):
        raise ValueError(
            f"{saved.source}: the model has an adapter called {name!r} already; give another name"
        )
    with contextlib.nullcontext() if saved.init_from_base else init.blank():
        injection = Injection(model, saved.plan, seed=saved.seed, name=name)
    initial = injection.state_dict() if saved.init_from_base else {}
    try:
        injection.load_state_dict(initial | saved.state)
    except ValueError:
        injection.remove()
        raise
    return injection


def _plan(model: nn.Module, description: dict[str, Any], folder: Path) -> InjectionPlan:
    """The plan of exactly the saved matrices and parameters. ValueError for one that the model lacks."""
    cls = saved_variant(description, folder)
    known, every = {matrix.name: matrix for matrix in find_matrices(model)}, base_parameters(model)
    for saved, present in ((description["target_modules"], known), (description["in_full"], every)):
        for name in saved:
            if name not in present:
                raise ValueError(f"{folder} holds an adapter of another model: this one has no {name}")
    hyper = complete_hyperparameters(cls, description["hyperparameters"])
    matrices = [known[name] for name in description["target_modules"]]
    return InjectionPlan(
        cls, hyper, matrices, description["in_full"], patterns=description.get("patterns") or {}
    )


def saved_variant(description: dict[str, Any], folder: Path) -> type[Variant]:
    """The variant of a saved adapter. ValueError where its author's file has not been run.

    No file is run unasked: an adapter from elsewhere could name any.
    """
    name, file = description["variant"], description.get("variant_file")
    if file and name not in VARIANTS:
        raise ValueError(
            f"{folder} has a variant of its own, {name!r}, which {file['path']} registers (SHA-256 "
            f"{file['sha256'][:16]}…): run that file first, with lora_zoo.run_file(PATH) or --variant PATH"
        )
    cls = VARIANTS.find(name)
    if file and own_file(cls).get("sha256") != file["sha256"]:
        warnings.warn(f"{folder}: {name!r} has changed since this adapter was saved", stacklevel=2)
    return cls


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


def _replace(path: Path, write: Any) -> None:
    """Write atomically: beside `path`, then rename."""
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    temporary.replace(path)
