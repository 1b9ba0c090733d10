"""Read the updates ΔW of an adapter on disk: a run's, ours, PEFT's or loralib's; with its base if needed.

updates = read("runs/lora-r8-s0")                 # from the factors alone
updates["model.layers.0.self_attn.q_proj"].singular_values
updates = read("runs/dora-r8-s0", base=True)      # with the base's weights
updates.base("model.layers.0.self_attn.q_proj")   # W (O, I)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from lora_zoo.core.bounded_json import read_json
from lora_zoo.core.errors import unknown
from lora_zoo.formats.description import DESCRIPTION, read_description
from lora_zoo.formats.native import PRIOR, inject_saved, read_adapter
from lora_zoo.formats.peft.forms import SavedAdapter
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.roles import role_of
from lora_zoo.models.base import PEFT, adapter_in, base_of
from lora_zoo.models.loading import load_model
from lora_zoo.runs.record import RESULT
from lora_zoo.updates.summary import update_of
from lora_zoo.updates.weight_update import FactoredUpdate, WeightUpdate
from lora_zoo.updates.without_base import NeedsBase, holds_base, model_without_weights

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Position(NamedTuple):
    """Role ("" for none) and layer (None outside of the layers) of a matrix."""

    role: str
    layer: int | None


class AdapterUpdates(Mapping[str, WeightUpdate]):
    """The updates of one adapter by matrix name. `skipped`: fully trained matrices that are left out."""

    def __init__(self, label: str, injection: Injection) -> None:
        injection.variant.require_weight("read as a ΔW")
        self.label, self._injection = label, injection
        self.variant: str = injection.variant.name
        self.rank: int | None = injection.hyper.get("rank")
        self.alpha: float | None = injection.hyper.get("alpha")
        self.skipped: list[str] = []
        self._names = injection.matrix_names()

    def __getitem__(self, name: str) -> WeightUpdate:
        if name not in self._names:
            raise KeyError(unknown("matrix", name, self._names))
        return update_of(self._injection, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def base(self, name: str) -> Tensor:
        """W (O, I), in float32 or wider. NeedsBase where the adapter was read without it."""
        return self._injection.base_weight(name)

    def remove(self) -> nn.Module:
        """Remove the adapter and return its base; afterwards there is nothing left to read here."""
        self._names = []
        return self._injection.remove()


class FactoredUpdates(AdapterUpdates):
    """Updates that were read without the base: every ΔW is a product of factors."""

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
) -> AdapterUpdates:
    """The ΔW of the adapter at `source`: a run's folder, an adapter's, a checkpoint's, or loralib's file.

    Without `base` nothing but the factors is read where that is enough (LoRA and its kin, residual inits of
    ours), and the model's structure where the files do not tell all shapes; a DoRA adapter, full fine-tuning
    and PEFT's PiSSA need the base's weights and load them. `model` stands in for the base that the adapter
    names; `alpha` and `enable` are for loralib's files, whose convolutions are taken for linear layers unless
    `model` is given. Raises FileNotFoundError where there is no adapter, ValueError where it or its base
    cannot be read.
    """
    folder, label = adapter_in(Path(source)), label_of(Path(source))
    if not folder.exists():
        raise FileNotFoundError(f"{source} does not exist")
    why: ValueError = NeedsBase("the base's weights were requested")
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


def read_each(sources: Mapping[str, Path], *, model: str | None = None) -> Iterator[AdapterUpdates]:
    """Several adapters of one base, which is loaded once; each is removed before the next one.

    `sources`: label -> folder. Raises as `read` does.
    """
    network: nn.Module | None = None
    for label, source in sources.items():
        network = network or _loaded(adapter_in(source), model)
        updates = _on(network, adapter_in(source), label)
        yield updates
        updates.remove()


def _loaded(folder: Path, model: str | None, trust_remote_code: bool = False) -> nn.Module:
    about = base_of(folder, model, trust_remote_code=trust_remote_code)
    return load_model(about.model, about.auto_class, about.head, None, seed=0).model


def _on(
    network: nn.Module, folder: Path, label: str, alpha: float | None = None, enable: Sequence[str] = ()
) -> AdapterUpdates:
    updates = AdapterUpdates(label, inject_saved(network, _alone(network, folder, alpha, enable)))
    if not updates:
        raise ValueError(f"{folder}: {updates.variant} changes no matrix")
    return updates


def _alone(network: nn.Module, folder: Path, alpha: float | None, enable: Sequence[str]) -> SavedAdapter:
    """The adapter without those on which it was trained. ValueError for one that only composes them."""
    known = read_adapter(network, folder, alpha=alpha, enable=enable)
    if known.prior and known.plan.variant.hooks.needs_priors:
        how = known.plan.hyperparameters["composition"]
        raise ValueError(
            f"{folder}: {how} composes prior adapters and has no ΔW of its own: a router weighs theirs by "
            f"the input. Read theirs instead: python -m lora_zoo.spectra {folder / PRIOR}/*"
        )
    return known._replace(prior=())


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


def adapters_in(folder: Path) -> list[Path]:
    """The folders of adapters, ours and then PEFT's, at any depth."""
    found = [sorted(path.parent for path in folder.rglob(name)) for name in (DESCRIPTION, PEFT)]
    return list(dict.fromkeys([*found[0], *found[1]]))


def position(name: str) -> Position:
    """Role and layer, from the name of a matrix."""
    layer = re.search(r"\.(\d+)\.", name)
    return Position(role_of(name), int(layer[1]) if layer else None)


def label_of(source: Path) -> str:
    """The name of an adapter in tables: its run's name, else its folder's."""
    try:
        return str(read_json(source / RESULT)["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return source.resolve().name


def _from_factors(
    folder: Path, label: str, model: str | None, alpha: float | None, enable: Sequence[str]
) -> AdapterUpdates:
    if (folder / DESCRIPTION).is_file() and not read_description(folder)["target_modules"]:
        raise NeedsBase(f"{folder}: fully trained parameters are compared with the base's weights")
    if holds_base(folder):
        raise NeedsBase(
            f"{folder}: it holds tensors of its base, which only the base's weights tell from trained"
        )
    network = model_without_weights(folder, model, enable)
    known = _alone(network, folder, alpha, enable)
    if known.init_from_base:
        raise NeedsBase(f"{folder}: its initial factors come from the base's weights")
    factored = FactoredUpdates(label, inject_saved(network, known))
    for update in factored.values():
        if not isinstance(update, FactoredUpdate):
            raise NeedsBase(f"{folder}: ΔW of {factored.variant} depends on the base's weights")
    if not factored:  # PEFT's, of modules_to_save alone
        raise NeedsBase(f"{folder}: fully trained parameters are compared with the base's weights")
    return factored
