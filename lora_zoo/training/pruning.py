"""Give a run up in the middle of training, by its validation scores: for trials of a search."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState

GivenUp = Callable[[int, dict[str, float]], bool]
"""Takes a step and the values of the metrics there; True where the run is to be given up."""
WATCHED: dict[str, GivenUp] = {}
"""By identity: runs of this process that somebody watches."""


class Pruned(RuntimeError):
    """A trial that its search gave up. It is unfinished: whoever asks for the run has it go on."""


class PruneCallback(TrainerCallback):
    """Tells who watches the run of its evaluations. `before` are the steps of earlier stages."""

    def __init__(self, given_up: GivenUp, before: int = 0) -> None:
        self.given_up, self.before = given_up, before

    def on_evaluate(self, args: Any, state: TrainerState, *_: Any, **given: Any) -> None:
        step = self.before + state.global_step
        values = {name.removeprefix("eval_"): value for name, value in given["metrics"].items()}
        if self.given_up(step, values):
            raise Pruned(f"given up at step {step} by its search")
