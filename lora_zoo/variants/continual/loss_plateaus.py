"""A detector of shifts in a stream of losses, and a memory of its hardest examples; state is in buffers.

Shapes: L losses of a window, N examples of a batch, M of the buffer, S positions.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

IGNORED = -100
EMPTY = -1.0
"""The loss of a place that no example has taken."""


class LossPlateaus(nn.Module):
    """Online-LoRA's detector: a plateau of the loss after a peak is the end of what was learned.

    A plateau is a window of `length` losses whose mean and variance lie below the two bounds. A peak is a
    window whose mean exceeds that of the last plateau by its standard deviation; the first needs none.
    """

    window_L: Tensor
    state: Tensor
    """Losses seen (at most L), 1 after a peak, the last plateau's mean and variance, plateaus so far."""

    def __init__(self, length: int, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("window_L", like.new_zeros(length))
        self.register_buffer("state", like.new_tensor([0, 1, 0, 0, 0]))

    @torch.no_grad()
    def step(self, loss: float, *, mean_below: float, variance_below: float) -> bool:
        """Take the next loss; True at a plateau."""
        self.window_L.copy_(self.window_L.roll(-1))
        self.window_L[-1] = loss
        self.state[0] = min(float(self.state[0]) + 1, len(self.window_L))
        seen = self.window_L[-int(self.state[0]) :]
        mean, variance = float(seen.mean()), float(seen.var(correction=0))
        peak, last = bool(self.state[1]), float(self.state[2]) + float(self.state[3]) ** 0.5
        peak = peak or mean > last
        plateau = peak and mean < mean_below and variance < variance_below
        self.state[1] = float(peak and not plateau)
        if plateau:
            self.state[2], self.state[3], self.state[4] = mean, variance, self.state[4] + 1
        return plateau


class HardExamples(nn.Module):
    """The `size` examples with the highest losses, of those in it and of each new batch.

    Longer ones than `longest` tokens are left out.
    """

    ids_MS: Tensor
    mask_MS: Tensor
    labels_MS: Tensor
    loss_M: Tensor

    def __init__(self, size: int, longest: int, like: Tensor) -> None:
        super().__init__()
        ids = torch.zeros(size, longest, dtype=torch.int64, device=like.device)
        self.register_buffer("ids_MS", ids)
        self.register_buffer("mask_MS", ids.clone())
        self.register_buffer("labels_MS", torch.full_like(ids, IGNORED))
        self.register_buffer("loss_M", like.new_full((size,), EMPTY))

    def inputs(self) -> dict[str, Tensor]:
        """Its examples as keyword arguments of a model, padded to the longest; {} while it is empty."""
        full_M = self.loss_M > EMPTY
        if not bool(full_M.any()):
            return {}
        mask_MS = self.mask_MS[full_M]
        width = int(mask_MS.any(0).nonzero().max()) + 1
        kept = {"input_ids": self.ids_MS, "attention_mask": self.mask_MS, "labels": self.labels_MS}
        return {name: tensor[full_M][:, :width] for name, tensor in kept.items()}

    @torch.no_grad()
    def update(self, batch: Mapping[str, Tensor], loss_N: Tensor, again_M: Tensor | None) -> None:
        """Keep the hardest of its own, with their losses of now, and of a batch with its losses."""
        width, longest = batch["input_ids"].shape[1], self.ids_MS.shape[1]
        if again_M is not None:
            self.loss_M[self.loss_M > EMPTY] = again_M.to(self.loss_M)
        if width > longest:
            return
        pad = (0, longest - width)
        news = {"ids_MS": (batch["input_ids"], 0), "mask_MS": (batch["attention_mask"], 0)}
        news |= {"labels_MS": (batch["labels"], IGNORED)}
        loss = torch.cat([loss_N.to(self.loss_M), self.loss_M])
        order = loss.argsort(descending=True, stable=True)[: len(self.loss_M)]
        for name, (tensor, empty) in news.items():
            own = getattr(self, name)
            padded = nn.functional.pad(tensor.to(own), pad, value=empty)
            own.copy_(torch.cat([padded, own])[order])
        self.loss_M.copy_(loss[order])


def row_losses(logits: Tensor, labels_NS: Tensor) -> Tensor:
    """The mean cross-entropy (N,) of each row's labels, logits (N, S, V) being of the next tokens."""
    shifted = logits[:, :-1].transpose(1, 2).float()
    each_NS = cross_entropy(shifted, labels_NS[:, 1:], ignore_index=IGNORED, reduction="none")
    return each_NS.sum(1) / (labels_NS[:, 1:] != IGNORED).sum(1).clamp_min(1)


def is_of_tokens(inputs: Mapping[str, Any]) -> bool:
    """True for a batch of a language model: ids, mask and labels of one shape (N, S)."""
    found = [inputs.get(name) for name in ("input_ids", "attention_mask", "labels")]
    shapes = {tuple(tensor.shape) for tensor in found if isinstance(tensor, Tensor)}
    return all(isinstance(tensor, Tensor) for tensor in found) and len(shapes) == 1
