"""Our format, one folder an adapter: `adapter.safetensors` (tensors), `adapter.json` (configuration)."""

import contextlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from lora_zoo.core import init
from lora_zoo.core.adapter import Variant
from lora_zoo.core.user_files import own_file
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.description import DESCRIPTION, FORMAT, WEIGHTS, read_description
from lora_zoo.formats.folders import adapter_digest
from lora_zoo.formats.loralib import from_loralib
from lora_zoo.formats.peft.forms import SavedAdapter
from lora_zoo.formats.peft.read import from_peft, is_peft
from lora_zoo.formats.safe_files import tensors_in
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.base_model import base_parameters, own_names
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import find_matrices
from lora_zoo.injection.plan import InjectionPlan, complete_hyperparameters

PRIOR = "prior"


def save_adapter(injection: Injection, folder: str | Path, **about: Any) -> Path:
    """Write the adapter's tensors and configuration to `folder` and return it.

    `about` is kept beside the configuration (the base model's name, say). The tensors are those that the
    base lacks: factors, magnitudes, initial factors, fully trained heads; frozen tensors drawn from a seed
    are not stored. The adapters that it was trained on lie in `prior/NAME/`, and are loaded with it.
    """
    injection.statistics.warn()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in injection.state_dict().items()
    }
    _replace(folder / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    description = {
        "format": FORMAT,
        "variant": injection.variant.name,
        **_own_files(injection),
        "name": injection.name,
        "hyperparameters": injection.hyper,
        "patterns": injection.patterns,
        "target_modules": list(injection.matrices),
        "in_full": list(injection.trained),
        "seed": injection.seed,
        "about": about,
    }
    adapters = adapters_of(injection.model)
    below = {name: save_adapter(adapters[name], folder / PRIOR / name) for name in injection.prior}
    if below:
        description["prior"] = {name: adapter_digest(own) for name, own in below.items()}
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
    saved = read_adapter(model, folder, alpha=alpha, enable=enable)
    for tensor_name, tensor in saved.state.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{folder}: {tensor_name} holds NaN or inf: its training has diverged")
    return inject_saved(model, saved, name)


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
    description = _in_own_names(model, description)
    plan, state = _plan(model, description, folder), own_names(model, tensors_in(folder / WEIGHTS))
    name, seed = description.get("name", "default"), description["seed"]
    return SavedAdapter(plan, state, folder, name, seed, prior=_priors(model, description, folder))


def _priors(model: nn.Module, description: dict[str, Any], folder: Path) -> tuple[SavedAdapter, ...]:
    """The adapters on which a saved one was trained. ValueError for one that is another now."""
    found = []
    for name, digest in description.get("prior", {}).items():
        own = folder / PRIOR / name
        if not own.is_dir() or adapter_digest(own) != digest:
            raise ValueError(f"{own} is not the adapter on which that of {folder} was trained")
        found.append(read_adapter(model, own)._replace(name=name))
    return tuple(found)


def inject_saved(model: nn.Module, saved: SavedAdapter, name: str | None = None) -> Injection:
    """Inject an adapter that was read, in place; raises as `load_adapter` does."""
    name, adapters = name or saved.name, adapters_of(model)
    if name in adapters:
        raise ValueError(
            f"{saved.source}: the model has an adapter called {name!r} already; give another name"
        )
    before = [*adapters]
    try:
        for below in saved.prior:
            _inject_prior(model, below)
        return _injected(model, saved, name)
    except ValueError:
        for added in [name for name in adapters_of(model) if name not in before][::-1]:
            adapters_of(model).delete(added)
        raise


def _injected(model: nn.Module, saved: SavedAdapter, name: str) -> Injection:
    prior = [below.name for below in saved.prior]
    state, partial = saved.state, saved.init_from_base
    with contextlib.nullcontext() if partial else init.blank():
        return Injection(
            model, saved.plan, seed=saved.seed, name=name, prior=prior, state=state, partial=partial
        )


def _in_own_names(model: nn.Module, description: dict[str, Any]) -> dict[str, Any]:
    """A description whose names may be those of a wrapped model."""
    lists = {
        key: list(own_names(model, dict.fromkeys(description[key]))) for key in ("target_modules", "in_full")
    }
    patterns = {key: own_names(model, own) for key, own in description.get("patterns", {}).items()}
    return {**description, **lists, "patterns": patterns}


def _inject_prior(model: nn.Module, saved: SavedAdapter) -> None:
    """Inject a prior, unless the model has it. ValueError where it has another one of that name."""
    present = adapters_of(model).get(saved.name)
    if present is None:
        inject_saved(model, saved)
        return
    state = present.state_dict()
    same = state.keys() == saved.state.keys() and all(
        torch.equal(tensor.cpu(), saved.state[name]) for name, tensor in state.items()
    )
    if not (same and present.variant is saved.plan.variant and present.hyper == saved.plan.hyperparameters):
        raise ValueError(
            f"{saved.source}: the model has another adapter called {saved.name!r}, which is its prior's name"
        )


def _plan(model: nn.Module, description: dict[str, Any], folder: Path) -> InjectionPlan:
    """The plan of exactly the saved matrices and parameters. ValueError for one that the model lacks."""
    cls = saved_variant(description, folder)
    _require("init", init.INITS, description["hyperparameters"].get("init"), description, folder)
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


def _own_files(injection: Injection) -> dict[str, dict[str, str]]:
    """Path and hash of the files of the user's own that registered the variant and its initialisation."""
    members: dict[str, Any] = {"variant": injection.variant}
    if name := injection.hyper.get("init"):
        members["init"] = init.INITS[init.find_init(name).family].draw
    return {f"{kind}_file": file for kind, made in members.items() if (file := own_file(made))}


def saved_variant(description: dict[str, Any], folder: Path) -> type[Variant]:
    """The variant of a saved adapter. ValueError where its author's file has not been run."""
    _require("variant", VARIANTS, description["variant"], description, folder)
    cls = VARIANTS.find(description["variant"])
    file = description.get("variant_file")
    if file and own_file(cls).get("sha256") != file["sha256"]:
        warnings.warn(f"{folder}: {cls.name!r} has changed since this adapter was saved", stacklevel=2)
    return cls


def _require(
    kind: str, registry: Mapping[str, Any], name: str, description: dict[str, Any], folder: Path
) -> None:
    """Raise ValueError where a member of the adapter stands in a file of its author's that was not run.

    No file is run unasked: an adapter from elsewhere could name any.
    """
    file = description.get(f"{kind}_file")
    if file and name not in registry:
        raise ValueError(
            f"{folder} has {'an' if kind == 'init' else 'a'} {kind} of its own, {name!r}, which "
            f"{file['path']} registers (SHA-256 {file['sha256'][:16]}…): run that file first, with "
            "lora_zoo.run_file(PATH) or --file PATH"
        )


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
