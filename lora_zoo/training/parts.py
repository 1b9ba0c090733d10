"""Parts of the training examples, and the order in which optimiser steps draw from them."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainingArguments

from lora_zoo.core.seeding import generator

Parts = Mapping[str, Tensor]
"""Name -> the numbers of its examples, int64."""


def check_order(arguments: TrainingArguments, who: str) -> None:
    """Raise ValueError, in the name of `who`, for arguments that would order the examples in another way."""
    if arguments.train_sampling_strategy != "random":
        key, value = "train_sampling_strategy", arguments.train_sampling_strategy
    elif arguments.ignore_data_skip:
        key, value = "ignore_data_skip", "true"
    else:
        return
    raise ValueError(f"trainer.{key}={value}: {who} trains on parts of the data, whose order is data_seed's")


def divided(shares: Mapping[str, float], examples: int, seed: int, least: int) -> dict[str, Tensor]:
    """So many examples in parts, drawn by `seed` alone. ValueError for a part of fewer than `least`."""
    total = math.fsum(shares.values())
    if min(shares.values()) <= 0 or abs(total - 1) > 1e-9:
        raise ValueError(f"parts must have shares above 0 that add up to 1; got {dict(shares)}")
    order = torch.randperm(examples, generator=generator("parts", seed))
    reached = [round(examples * math.fsum(list(shares.values())[:n])) for n in range(len(shares) + 1)]
    found = {name: order[start:end] for name, start, end in zip(shares, reached, reached[1:], strict=False)}
    for name, own in found.items():
        if len(own) < least:
            text = f"its share of {examples} training examples is {len(own)}, and a batch has {least}"
            raise ValueError(f"the part {name!r} is too small: {text}")
    return found


class TurnSampler(Sampler[int]):
    """The examples of one epoch, each optimiser step's from the part that is due.

    An epoch has as many examples and steps as without parts. Each part is gone through to its last example
    before it begins again in another order, across epochs; what is drawn follows from `seed` and the epoch.
    """

    def __init__(
        self,
        parts: Parts,
        part: Callable[[int], str],
        arguments: TrainingArguments,
        batch_size: int,
        seed: int,
    ) -> None:
        self.parts, self.part, self.seed, self.epoch = parts, part, seed, 0
        self._order: dict[str, tuple[int, Tensor]] = {}
        self.a_step = batch_size * arguments.gradient_accumulation_steps
        examples = sum(map(len, parts.values()))
        self.examples = examples - examples % batch_size if arguments.dataloader_drop_last else examples

    def __len__(self) -> int:
        return self.examples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        for turn in self._turns():
            if turn.epoch > self.epoch:
                return
            if turn.epoch == self.epoch:
                yield from self._examples(turn)

    def of_step(self, step: int) -> list[int]:
        """The examples of an optimiser step, by its number, from 1, whichever epoch is under way."""
        return list(self._examples(next(itertools.islice(self._turns(), step - 1, None))))

    def _examples(self, turn: "_Turn") -> Iterator[int]:
        return (self._example(turn.name, number) for number in turn.numbers)

    def _example(self, name: str, number: int) -> int:
        """The example that a part gives as its `number`-th, over all passes through it."""
        own = self.parts[name]
        passed, place = divmod(number, len(own))
        if self._order.get(name, (-1,))[0] != passed:
            drawn = torch.randperm(len(own), generator=generator("part", self.seed, name, passed))
            self._order[name] = passed, drawn
        return int(own[self._order[name][1][place]])

    def _turns(self) -> Iterator["_Turn"]:
        """Those of all optimiser steps from the first one on, without end."""
        steps, taken = math.ceil(self.examples / self.a_step), Counter[str]()
        for number in itertools.count():
            epoch, place = divmod(number, steps)
            count = min(self.a_step, self.examples - place * self.a_step)
            name = self.part(number + 1)
            yield _Turn(epoch, name, range(taken[name], taken[name] + count))
            taken[name] += count


class _Turn(NamedTuple):
    """One optimiser step's epoch, its part, and which of the examples that the part gives it takes."""

    epoch: int
    name: str
    numbers: range
