"""The keys of a task that are only defaults of a run's own keys: beside these they have no effect."""

from collections.abc import Mapping, Sequence

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

_LENGTH = ("steps", "epochs")
DEFAULTS = {"lr": ("lr",), "batch_size": ("batch_size",), "steps": _LENGTH, "epochs": _LENGTH}
"""A key of the task -> the keys of a run, of which any takes its place."""


def unused(config: DictConfig) -> dict[str, str]:
    """The keys of the task that a job does not use, each with what stands in its place (`lr=0.001`)."""
    given = {
        key: f"{key}={config[key]}"
        for key in DEFAULTS
        if not OmegaConf.is_interpolation(config, key) and config[key] is not None
    }
    return {f"task.{key}": given[own] for key, owns in DEFAULTS.items() for own in owns if own in given}


def swept_without_effect(swept: Sequence[Override], jobs: Sequence[Mapping[str, str]]) -> str:
    """The complaint about the first key of several values that no job uses; "" where there is none.

    `jobs` holds what is `unused` in each.
    """
    for override in swept:
        key = override.key_or_group
        if all(key in job for job in jobs):
            instead = " and ".join(dict.fromkeys(job[key] for job in jobs))
            return (
                f"{override.input_line} has no effect: it is a default, and {instead} takes its place; "
                "drop one of them"
            )
    return ""
