"""Watch generation: for the end of an answer, and for logits that are no numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from lora_zoo.tasks.judgeable import NotFinite


class EndsWith(StoppingCriteria):
    """Stops a row once what it has written from position `start` on ends with these tokens."""

    def __init__(self, end: Sequence[int], start: int) -> None:
        self.end, self.start = torch.tensor(end), start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        last = input_ids[:, self.start :][:, -len(self.end) :]
        if last.shape[1] < len(self.end):
            return torch.zeros(len(last), dtype=torch.bool, device=last.device)
        return (last == self.end.to(last.device)).all(dim=1)


class AllNumbers(LogitsProcessor):
    """Notes logits that are NaN, of which a search would make a text all the same."""

    def __init__(self) -> None:
        self.broken: Tensor | bool = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.broken = scores.isnan().any() | self.broken
        return scores

    def check(self) -> None:
        """ValueError where there was one."""
        if bool(self.broken):
            raise NotFinite("the model answers with NaN; there is nothing to judge")


def before_end(ids: list[int], end: Sequence[int]) -> list[int]:
    """The tokens before the first occurrence of `end`; all where there is none."""
    size, end = len(end), list(end)
    return next((ids[:n] for n in range(len(ids) - size + 1) if ids[n : n + size] == end), ids)
