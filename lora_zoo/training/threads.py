"""The number of CPU threads by the work of a step: a small step is not faster with a second one."""

from collections.abc import Sized
from typing import Any

import torch
from torch import nn

from lora_zoo.config.schema import Settings

PER_THREAD = 2e10
"""Floating-point operations of a step that pay for a further thread: some tenths of a second of one core."""
_SEEN = 64


def choose_threads(settings: Settings, model: nn.Module, examples: list[Any]) -> int:
    """Set torch's threads as `threads=` says, else by the work of a step, and return their number.

    At most as many are chosen as torch has already: all cores, a worker's part, or what OMP_NUM_THREADS says.
    """
    known = torch.get_num_threads()
    wanted = settings.threads or min(known, max(1, round(work(settings, model, examples) / PER_THREAD)))
    if wanted != known:
        torch.set_num_threads(wanted)
    return wanted


def work(settings: Settings, model: nn.Module, examples: list[Any]) -> float:
    """The floating-point operations of a step: six a parameter and token, forward and backward."""
    lengths = [_length(example) for example in examples[:_SEEN]]
    tokens = settings.batch_size * sum(lengths) / max(1, len(lengths))
    return 6 * tokens * sum(parameter.numel() for parameter in model.parameters())


def _length(example: Any) -> int:
    """The tokens of an example, of all its texts."""
    values = example.values() if isinstance(example, dict) else [example]
    return max((len(value) for value in values if isinstance(value, Sized)), default=1)
