"""Passes that torch computes again in the backward pass (gradient checkpointing), and how one is known again.

torch gives back the state of its CPU stream that the first computation met (`preserve_rng_state`). That
state begins with the seed last given, on which no number that is drawn depends any more: `stamp` leaves
another value there each time, so that whoever recomputes meets the stamps of the first computation.
"""

from typing import NamedTuple

import torch

MULTIPLIER, INCREMENT = 6364136223846793005, 1442695040888963407  # Knuth's MMIX: a cycle of 2^64 values
REMEMBERED = 256
"""So many passes of one site may wait for their backward passes."""


def in_backward() -> bool:
    """True within a backward pass: a forward pass there is a recomputation. torch.compile cannot tell."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0


def may_recur() -> bool:
    """True where the computation in hand may be repeated: nothing is saved, or a hook saves in its place."""
    return (
        in_backward()
        or not torch.is_grad_enabled()
        or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    )


def stamp() -> int:
    """A number of its own for this moment, the same one when it is recomputed; torch's draws do not change.

    RuntimeError where this version of torch keeps the seed elsewhere.
    """
    state = torch.get_rng_state()
    seed, given = state[:8].view(torch.int64), torch.initial_seed()
    found = int(seed)
    if found % 2**64 != given % 2**64:
        raise RuntimeError(f"torch {torch.__version__} does not begin its random state with the seed")
    torch.set_rng_state(
        state.index_put((torch.arange(8),), (seed * MULTIPLIER + INCREMENT).view(torch.uint8))
    )
    return found


class Numbered(NamedTuple):
    """The number of a call, and if its recomputation was seen."""

    number: int
    repeated: bool = False


class CallNumbers:
    """Numbers the calls of one site from 0; a call that is recomputed has the number that it had."""

    def __init__(self) -> None:
        self.next = 0
        self._known: dict[int, Numbered | None] = {}  # None: calls of two passes have this stamp

    def number(self) -> int:
        """The number of the call in hand. RuntimeError where a recomputed call is not known again."""
        if not may_recur():
            self.next += 1
            return self.next - 1
        now = stamp()
        return self._again(now) if in_backward() else self._first(now)

    def _first(self, now: int) -> int:
        before = self._known.pop(now, Numbered(0, repeated=True))
        self._known[now] = Numbered(self.next) if before and before.repeated else None
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        self.next += 1
        return self.next - 1

    def _again(self, now: int) -> int:
        known = self._known.get(now)
        if known is None:
            raise RuntimeError(
                "a dropout mask cannot be found again in the backward pass: gradient checkpointing needs "
                "preserve_rng_state=True, no seed set between passes that wait for their backward passes, "
                f"and at most {REMEMBERED} of those"
            )
        self._known[now] = Numbered(known.number, repeated=True)
        return known.number
