"""Keys that are computed from a run's size (`alpha: ${mul:2,${rank}}`), where the size is found later.

An alpha in proportion to the rank is kept as the multiple that it is, "2r", for whichever rank is used; with
`budget=`, any other key that looks at what the budget finds is refused.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_zoo.config.schema import INERT, Settings
from lora_zoo.config.spec import FLAT, variant_of
from lora_zoo.core.alpha import multiple


def with_multiples(config: DictConfig, settings: Settings) -> Settings:
    """Settings whose alphas are multiples of the rank where `config` computes them so. ValueError else."""
    if settings.budget is not None:
        _refuse_computed(config, settings)
    alphas = OmegaConf.masked_copy(config, ["alpha", "alpha_pattern"])
    written: Any = OmegaConf.to_container(alphas, resolve=False)
    if "${" not in f"{written['alpha']} {written['alpha_pattern']}":
        return settings
    later = settings.budget is not None or bool(settings.rank_pattern)
    own = {k: _multiple(config, f"alpha_pattern.{k}", v, later) for k, v in settings.alpha_pattern.items()}
    return replace(settings, alpha=_multiple(config, "alpha", settings.alpha, later), alpha_pattern=own)


def _multiple(config: DictConfig, key: str, alpha: Any, later: bool) -> Any:
    """`alpha`, as a multiple of the rank where it grows with it. ValueError where it grows otherwise."""
    ranks = [factor * config.rank for factor in (1, 2, 3)]
    values = [_value_of(_sized(config, "rank", rank), key) for rank in ranks]
    if values[0] == values[1] or not all(isinstance(v, (int, float)) for v in values):
        return alpha
    factors = [value / rank for value, rank in zip(values, ranks, strict=True)]
    if all(math.isclose(factor, factors[0], rel_tol=1e-9) for factor in factors):
        return multiple(factors[0])
    if later:
        raise ValueError(
            f"{key} is computed from a rank that is not the one used here, and not in proportion to it; "
            "give a number, or a multiple of the rank ('2r')"
        )
    return alpha


def _refuse_computed(config: DictConfig, settings: Settings) -> None:
    size = variant_of(settings).sized_by
    key = size if size in FLAT else f"variant.{size}"
    if not isinstance(now := _value_of(config, key), (int, float)):
        return
    trees = (_plain(config), _plain(_sized(config, key, now + 1)))
    for place in _differing(*trees):
        if place not in (key, "alpha") and not place.startswith("alpha_pattern."):
            raise ValueError(
                f"{place} is computed from {key}, which budget= finds when the model is known; give a value"
            )


def _sized(config: DictConfig, key: str, value: Any) -> DictConfig:
    other = copy.deepcopy(config)
    OmegaConf.update(other, key, value)
    return other


def _value_of(config: DictConfig, key: str) -> Any:
    return OmegaConf.select(config, key)


def _plain(config: DictConfig) -> dict[str, Any]:
    tree = OmegaConf.to_container(config, resolve=True)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items() if key not in INERT}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in one.items():
        if isinstance(value, Mapping):
            yield from _differing(value, other[key], f"{prefix}{key}.")
        elif value != other[key]:
            yield f"{prefix}{key}"
