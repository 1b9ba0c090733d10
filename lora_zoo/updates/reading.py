"""The ΔW of an adapter on disk: a run's, ours, PEFT's or loralib's. The base is loaded where it must be.

deltas = read("runs/lora-r8-s0")                  # from the factors alone
deltas["model.layers.0.self_attn.q_proj"].singular_values
deltas = read("runs/dora-r8-s0", base=True)       # with the base's weights
deltas.base("model.layers.0.self_attn.q_proj")    # W (O, I)
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from lora_zoo.core.errors import unknown
from lora_zoo.formats.native import DESCRIPTION, WEIGHTS, inject_saved, read_adapter, read_description
from lora_zoo.formats.peft.read import is_peft, read_peft, saved_by
from lora_zoo.formats.safe_files import tensors_in
from lora_zoo.inject.injection import Injection
from lora_zoo.inject.roles import role_of
from lora_zoo.models.base import adapter_in, base_of
from lora_zoo.models.loading import load_model, outline
from lora_zoo.runs.record import RESULT
from lora_zoo.updates.delta import Delta, Product
from lora_zoo.updates.meta_model import empty_model, meta_model
from lora_zoo.updates.summary import delta_of

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class NeedsBase(ValueError):
    """The ΔW of this adapter is not known without the weights of its base."""


class Position(NamedTuple):
    """Where a matrix is in its model: role ("" for none) and layer, None outside of the layers."""

    role: str
    layer: int | None


class Deltas(Mapping[str, Delta]):
    """The ΔW of one adapter by the names of its matrices. `skipped`: what trained in full, left out here."""

    def __init__(self, label: str, injection: Injection) -> None:
        self.label, self._injection = label, injection
        self.variant: str = injection.variant.name
        self.rank: int | None = injection.hyper.get("rank")
        self.alpha: float | None = injection.hyper.get("alpha")
        self.skipped: list[str] = []
        self._names = injection.matrix_names()

    def __getitem__(self, name: str) -> Delta:
        if name not in self._names:
            raise KeyError(unknown("matrix", name, self._names))
        return delta_of(self._injection, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def base(self, name: str) -> Tensor:
        """W (O, I), in float32 or wider. NeedsBase where the adapter was read without it."""
        return self._injection.base_weight(name)

    def remove(self) -> nn.Module:
        """Give the base back, without the adapter; afterwards nothing is left to read here."""
        self._names = []
        return self._injection.remove()


class Thin(Deltas):
    """The same, read without the base: every ΔW is a product of factors."""

    def __init__(self, label: str, injection: Injection) -> None:
        super().__init__(label, injection)
        self._names, self.skipped = list(injection.adapters), self._names[len(injection.adapters) :]

    def base(self, name: str) -> Tensor:
        raise NeedsBase(f"{self.label} was read from its factors alone, without its base's weights")


def read(
    source: str | Path,
    *,
    base: bool = False,
    model: str | None = None,
    alpha: float | None = None,
    enable: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Deltas:
    """The ΔW of the adapter at `source`: a run's folder, an adapter's, a checkpoint's, or loralib's file.

    Without `base` nothing but the factors is read where that is enough (LoRA and its kin, residual starts of
    ours), and the model's structure where the files do not tell all shapes; a DoRA adapter, full fine-tuning
    and PEFT's PiSSA need the base's weights and load them. `model` stands in for the base that the adapter
    names; `alpha` and `enable` are for loralib's files, whose convolutions are taken for linear layers unless
    `model` is given. Raises FileNotFoundError where there is no adapter, ValueError where it or its base
    cannot be read.
    """
    folder = adapter_in(Path(source))
    label = label_of(Path(source))
    if not folder.exists():
        raise FileNotFoundError(f"{source} does not exist")
    why: ValueError = NeedsBase("the base's weights are asked for")
    if not base:
        try:
            return _from_factors(folder, label, model, alpha, enable)
        except NeedsBase as reason:
            why = reason
    try:
        network = _loaded(folder, model, trust_remote_code)
    except ValueError as mistake:
        raise ValueError(f"{why}; {mistake}") from mistake
    return _on(network, folder, label, alpha, enable)


def read_each(
    sources: Mapping[str, Path], *, model: str | None = None, trust_remote_code: bool = False
) -> Iterator[Deltas]:
    """Several adapters of one base, which is loaded once; each is gone when the next one comes.

    `sources`: label -> folder. Raises as `read` does.
    """
    network: nn.Module | None = None
    for label, source in sources.items():
        folder = adapter_in(source)
        network = network or _loaded(folder, model, trust_remote_code)
        deltas = _on(network, folder, label)
        yield deltas
        deltas.remove()


def _loaded(folder: Path, model: str | None, trust_remote_code: bool) -> nn.Module:
    about = base_of(folder, model, trust_remote_code=trust_remote_code)
    return load_model(about.model, about.auto_class, about.head, None, seed=0).model


def _on(
    network: nn.Module, folder: Path, label: str, alpha: float | None = None, enable: Sequence[str] = ()
) -> Deltas:
    deltas = Deltas(label, inject_saved(network, read_adapter(network, folder, alpha=alpha, enable=enable)))
    if not deltas:
        raise ValueError(f"{folder}: {deltas.variant} changes no matrix")
    return deltas


def checkpoints(run: str | Path) -> dict[int, Path]:
    """The checkpoints of a run by step.

    ValueError where there is none: they are kept with trainer.save_steps=N.
    """
    run = Path(run)
    found = {
        int(match[1]): path
        for path in (run / "checkpoints").glob("checkpoint-*")
        if (match := CHECKPOINT.fullmatch(path.name)) and (path / DESCRIPTION).is_file()
    }
    if not found:
        raise ValueError(f"{run} has no checkpoints; a run keeps them with trainer.save_steps=N")
    return dict(sorted(found.items()))


def position(name: str) -> Position:
    """Role and layer, from the name of a matrix."""
    layer = re.search(r"\.(\d+)\.", name)
    return Position(role_of(name), int(layer[1]) if layer else None)


def label_of(source: Path) -> str:
    """What an adapter is called in tables: its run's name, else its folder's."""
    try:
        record = json.loads((source / RESULT).read_text(encoding="utf-8"))
        return str(record["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return source.resolve().name


def _from_factors(
    folder: Path, label: str, model: str | None, alpha: float | None, enable: Sequence[str]
) -> Deltas:
    ours = not folder.is_file() and (folder / DESCRIPTION).is_file()
    if ours and not read_description(folder)["target_modules"]:
        raise NeedsBase(f"{folder}: what was trained in full is compared with the base's weights")
    if _holds_base(folder):
        raise NeedsBase(
            f"{folder}: it holds tensors of its base, which only the base's weights tell from trained"
        )
    network = _structure(folder, model, enable)
    known = read_adapter(network, folder, alpha=alpha, enable=enable)
    if known.init_from_base:
        raise NeedsBase(f"{folder}: its start factors come from the base's weights")
    thin = Thin(label, inject_saved(network, known))
    for delta in thin.values():
        if not isinstance(delta, Product):
            raise NeedsBase(f"{folder}: ΔW of {thin.variant} depends on the base's weights")
    if not thin:  # PEFT's, of modules_to_save alone
        raise NeedsBase(f"{folder}: what was trained in full is compared with the base's weights")
    return thin


def _structure(folder: Path, model: str | None, enable: Sequence[str]) -> nn.Module:
    """A model without weights: from the shapes of the factors, or from the base's configuration."""
    part = bool(enable) and folder.is_file()  # a part of a fused layer does not tell the layer's shape
    shapes = None if model or part else _shapes(folder)
    if shapes is not None:
        return meta_model(*shapes)
    try:
        about = base_of(folder, model)
        return empty_model(outline(about.model, about.auto_class, about.head))
    except ValueError as mistake:
        raise NeedsBase(f"{folder}: its tensors do not tell the shapes of its matrices") from mistake


def _holds_base(folder: Path) -> bool:
    """Whether tensors that nobody said would train stand beside the factors: the base's own, most likely."""
    if folder.is_file():
        tensors = tensors_in(folder)
        factors = {name for name in tensors if name.endswith((".lora_A", ".lora_B"))}
        adapted = tuple(f"{name.rpartition('.')[0]}." for name in factors)
        return any(name.startswith(adapted) for name in tensors.keys() - factors)
    if (folder / DESCRIPTION).is_file() or not is_peft(folder):
        return False
    saved, rest = read_peft(folder)
    wanted = saved.config.get("modules_to_save") or []
    return any(saved_by(name, wanted) is None for name in rest)


def _shapes(folder: Path) -> tuple[dict[str, tuple[int, int]], dict[str, Tensor]] | None:
    """(O, I) of every adapted matrix and the tensors beside the factors; None where the files do not tell."""
    if folder.is_file():
        pairs, rest = _by_layer(tensors_in(folder), "lora_B", "lora_A")
    elif is_peft(folder) and not (folder / DESCRIPTION).is_file():
        saved, rest = read_peft(folder)
        short = {
            f"{m}.{name.removesuffix('.weight')}": t
            for m, own in saved.modules.items()
            for name, t in own.items()
        }
        pairs, _ = _by_layer(short, "lora_B", "lora_A")
        if saved.shared or pairs.keys() != saved.modules.keys():
            return None
    else:
        description = read_description(folder)
        pairs, rest = _by_layer(tensors_in(folder / WEIGHTS), "B_OR", "A_RI")
        rest = {name: tensor for name, tensor in rest.items() if name in description["in_full"]}
        if pairs.keys() != set(description["target_modules"]) or rest.keys() != set(description["in_full"]):
            return None  # a seed restores what is not there, and tied parameters are stored once
    if any(B.ndim != 2 or A.ndim != 2 or B.shape[1] != len(A) for B, A in pairs.values()):
        return None  # a convolution's, or the parts of a fused layer
    return {name: (len(B), A.shape[1]) for name, (B, A) in pairs.items()}, rest


def _by_layer(
    tensors: Mapping[str, Tensor], b: str, a: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The factors (B, A) of each layer that has both, and the other tensors."""
    layers = {name.removesuffix(f".{b}") for name in tensors if name.endswith(f".{b}")}
    pairs = {n: (tensors[f"{n}.{b}"], tensors[f"{n}.{a}"]) for n in layers if f"{n}.{a}" in tensors}
    own = {f"{name}.{last}" for name in pairs for last in (a, b)}
    return pairs, {name: tensor for name, tensor in tensors.items() if name not in own}


__all__ = ["Deltas", "NeedsBase", "Position", "checkpoints", "label_of", "position", "read", "read_each"]
