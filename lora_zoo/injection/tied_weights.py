"""Tied weights: one parameter under several names, an `lm_head` and its embedding for example."""

import warnings
from collections.abc import Collection, Iterable

from torch import nn

from lora_zoo.injection.base_model import base_parameters


def names_by_parameter(model: nn.Module) -> dict[int, list[str]]:
    """The `id` of each parameter -> its names: several where it is tied."""
    names: dict[int, list[str]] = {}
    for name, parameter in base_parameters(model).items():
        names.setdefault(id(parameter), []).append(name)
    return names


def cost_of_untying(parameter: nn.Parameter) -> str:
    """The memory that a copy costs, in words."""
    size = parameter.numel() * parameter.element_size() / 2**20
    return f"the model grows by a copy of {parameter.numel():,} parameters ({size:.1f} MiB)"


def warn_if_tied(key: str, original: nn.Parameter, names: dict[int, list[str]]) -> None:
    """Warn where a merge unties `key` from other names of its parameter; removes it from `names`."""
    others = [n for n in names[id(original)] if n != key and n.rpartition(".")[0] != key]
    names[id(original)] = others
    if others:
        warnings.warn(f"merging unties {key} from {others[0]}: {cost_of_untying(original)}", stacklevel=6)


class Tying:
    """Keeps `config.tie_word_embeddings` true to the model while merges and full training untie weights."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.config = model, getattr(model, "config", None)
        self.configured = getattr(self.config, "tie_word_embeddings", None)
        self.had_ties = has_ties(model)

    def update(self) -> None:
        """Set the configuration so that transformers saves and loads an untied model untied."""
        if self.configured is not None:
            still = has_ties(self.model) or not self.had_ties
            self.config.tie_word_embeddings = self.configured and still  # type: ignore[union-attr]


def has_ties(model: nn.Module) -> bool:
    return any(len(names) > 1 for names in names_by_parameter(model).values())


def untie(
    model: nn.Module, fully_trained: Iterable[str], apart: Collection[str] = ()
) -> dict[str, nn.Parameter]:
    """Copy each fully trained parameter; tied ones share a copy, but where several are named in `apart`.

    Warns of a parameter that is tied to one that stays frozen: its copy is no longer tied.
    """
    every, names, chosen = base_parameters(model), names_by_parameter(model), dict.fromkeys(fully_trained)
    copies: dict[int | str, nn.Parameter] = {}

    def key(name: str) -> int | str:
        others = [n for n in names[id(every[name])] if n in apart]
        return name if name in others[1:] else id(every[name])

    for name in chosen:
        base = every[name]
        if key(name) not in copies:
            copies[key(name)] = nn.Parameter(base.detach().clone())
            frozen = [n for n in names[id(base)] if n not in chosen]
            if frozen:
                warnings.warn(
                    f"{name} is tied to {frozen[0]}; it trains as a copy of its own: {cost_of_untying(base)}",
                    stacklevel=4,
                )
    return {name: copies[key(name)] for name in chosen}
