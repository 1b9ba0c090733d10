"""Read PEFT's adapters: their files, and the variant that computes the same."""

import re
import warnings
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.peft.attention import by_matrix
from lora_zoo.formats.peft.embeddings import embeddings_of, tied_once, with_tied
from lora_zoo.formats.peft.experts import resolve
from lora_zoo.formats.peft.forms import ParsedAdapter, PeftFolder, SavedAdapter, reader_of
from lora_zoo.formats.peft.options import check_options
from lora_zoo.formats.peft.patterns import selects
from lora_zoo.formats.peft.write import CONFIG, HEADS, NOTHING
from lora_zoo.formats.safe_files import object_in, tensors_in
from lora_zoo.injection.base_model import base_buffers, base_parameters, own_names
from lora_zoo.injection.matrices import find_matrices
from lora_zoo.injection.plan import InjectionPlan, complete_hyperparameters

FILES = ("adapter_model.safetensors", "adapter_model.bin")


def is_peft(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_peft(folder: Path) -> tuple[PeftFolder, dict[str, Tensor]]:
    """Read a PEFT folder: the adapted modules, and the other tensors by the model's names.

    Raises FileNotFoundError or ValueError, each naming the file.
    """
    path = folder / CONFIG
    config = object_in(path)
    try:
        check_options(config)
        form = reader_of(config)[1]
    except ValueError as mistake:
        raise ValueError(f"{path}: {mistake}") from None
    weights = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} holds no weights: {' or '.join(FILES)} is expected there")
    tensor_of = re.compile(rf"(?P<module>.+)\.(?P<name>{'|'.join(map(re.escape, form.names))})")
    found, rest = PeftFolder(weights, config, {}), {}
    shared = {f"{form.shared_prefix}{name}": name for name in form.shared}
    for key, tensor in tensors_in(weights).items():
        if key in shared:
            found.shared[shared[key]] = tensor
            continue
        if not key.startswith("base_model."):
            raise ValueError(f"{weights}: {key} does not start with {form.prefix}")
        name = key.removeprefix(form.prefix)
        if not key.startswith(form.prefix):
            found.shared[key.removeprefix("base_model.")] = tensor
        elif match := tensor_of.fullmatch(name):
            found.modules.setdefault(match["module"], {})[match["name"]] = tensor
        else:
            rest[name] = tensor
    return form.in_full(found, rest)


def from_peft(model: nn.Module, path: Path) -> SavedAdapter:
    """Read PEFT's adapter at `path` for `model`.

    Raises ValueError, naming file and tensor, for an adapter that does not fit the model or is not supported.
    """
    folder, rest = read_peft(path)
    folder, rest = replace(folder, modules=own_names(model, folder.modules)), own_names(model, rest)
    try:
        folder = by_matrix(model, folder)
        experts = _check_modules(model, folder)
        folder = _targeted(folder, experts)
        cls, form = reader_of(folder.config)
        if extra := sorted(folder.shared.keys() - set(form.shared)):
            raise ValueError(f"base_model.{extra[0]} is not expected")
        whole = folder.modules or not cls.adapts
        parsed = form.from_peft(folder, model) if whole else ParsedAdapter({}, {}, [], {})
        fully_trained = _trained(model, folder, rest)
    except ValueError as mistake:
        raise ValueError(f"{folder.file}: {mistake}") from None
    if not parsed.matrices and cls.adapts:
        cls = VARIANTS.find("linear_probe")
    hyper, every = complete_hyperparameters(cls, parsed.hyper), base_parameters(model)
    names = [name for name in every if name in fully_trained]
    plan = InjectionPlan(cls, hyper, parsed.matrices, names, patterns=parsed.patterns)
    return SavedAdapter(
        plan, parsed.state | tied_once(model, fully_trained), path, init_from_base=parsed.init_from_base
    )


def _check_modules(model: nn.Module, folder: PeftFolder) -> Collection[str]:
    """The modules that hold stacked experts.

    ValueError for tensors of a module that the model lacks, and for a target without tensors.
    """
    known = {matrix.name: matrix for matrix in find_matrices(model) if not matrix.whole}
    experts = resolve(folder, known)
    for module in folder.modules.keys() - experts.keys():
        if module not in known:
            raise ValueError(
                f"{module} is adapted, but this model has no such layer: it belongs to another model"
            )
    for name in () if folder.config.get("target_modules") == NOTHING else known:
        if name not in folder.modules and selects(folder.config, name):
            raise ValueError(f"{name} is among target_modules, but its tensors are missing")
    return experts.keys()


def _targeted(folder: PeftFolder, experts: Collection[str]) -> PeftFolder:
    """The modules that the configuration targets, as PEFT takes them; warns of others that have tensors.

    ValueError where none is left. All, where the configuration leaves the choice to PEFT.
    """
    if folder.config.get("target_modules") in (None, [], "", "all-linear"):
        return folder
    kept = {m: t for m, t in folder.modules.items() if m in experts or _is_target(folder, m)}
    if left := [module for module in folder.modules if module not in kept]:
        if not kept:
            raise ValueError(f"{left[0]} has tensors, but {CONFIG} targets neither it nor another of them")
        warnings.warn(
            f"{folder.file}: {CONFIG} does not target {left[0]}, so its tensors are left out, as PEFT does"
            + (f" ({len(left) - 1} more)" if left[1:] else ""),
            stacklevel=5,
        )
    return replace(folder, modules=kept)


def _is_target(folder: PeftFolder, module: str) -> bool:
    return selects(folder.config, folder.targets.get(module, module))


def _trained(model: nn.Module, folder: PeftFolder, rest: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters and buffers that `modules_to_save` trains, and embeddings of a resized vocabulary.

    ValueError for a tensor that fits nowhere.
    """
    every = base_parameters(model)
    wanted = folder.config.get("modules_to_save") or []
    found: dict[str, dict[str, Tensor]] = {}
    same: dict[str, bool] = {}
    for name, tensor, equal in _beside(model, rest):
        module = saved_by(name, wanted)
        if module is not None:
            found.setdefault(module, {})[name] = tensor
            same[module] = same.get(module, True) and equal
        elif not equal:
            found[name] = _resized(model, folder, name, tensor, rest)
            same[name] = False
    for name in every:
        module = saved_by(name, wanted)
        if module is not None and name not in found.get(module, {}):
            raise ValueError(f"{name} is missing, and {module} is among modules_to_save")
    heads = HEADS.get(str(folder.config.get("task_type")), ())
    kept = [own for module, own in found.items() if not (same[module] and module.endswith(heads))]
    return {name: tensor for own in kept for name, tensor in own.items()}


def _beside(model: nn.Module, rest: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, bool]]:
    """Each tensor beside the adapters by the model's name; True if it is the base's own."""
    known = {**base_buffers(model), **base_parameters(model)}
    for key, tensor in rest.items():
        name = key.replace(".base_layer.", ".")
        if name not in known:
            raise ValueError(f"{name} is not expected")
        base = known[name]
        if base.shape != tensor.shape:
            resizable = name.rpartition(".")[0] in embeddings_of(model)
            more = f"; call model.resize_token_embeddings({len(tensor)}) first" if resizable else ""
            raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(base.shape)}{more}")
        yield name, tensor, bool((base.detach().cpu().to(tensor.dtype) == tensor).all())


def _resized(
    model: nn.Module, folder: PeftFolder, name: str, tensor: Tensor, rest: dict[str, Tensor]
) -> dict[str, Tensor]:
    """An embedding that the file brings for the base, under its tied names too. ValueError for another."""
    owner = name.rpartition(".")[0]
    if owner not in embeddings_of(model) - folder.modules.keys():
        raise ValueError(f"{name} is not the base's own, but no module of modules_to_save trains it")
    warnings.warn(
        f"{folder.file}: {name} is not the base's own, as after a resized vocabulary; it becomes a part of "
        "the adapter, as if it had been trained",
        stacklevel=6,
    )
    return with_tied(model, name, tensor, given=rest)


def saved_by(parameter: str, wanted: list[str]) -> str | None:
    """The outermost module around a parameter whose name ends with one of `wanted`, as in PEFT."""
    parts = parameter.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((module for module in around if any(module.endswith(one) for one in wanted)), None)
