"""Two levels of parameters, each learned on a part of the training data of its own."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lora_zoo.core.hooks import AdapterHooks, Progress

INNER, OUTER = "inner", "outer"


class TwoLevels(AdapterHooks):
    """One tensor of each adapter learns on the outer part, all others on the inner one, in turns of steps.

    The upper level's gradient is that of the loss at the lower level's values of the moment (first order),
    without the unrolled step of the lower level that DARTS and its kin differentiate through: it would need
    the inner part's last batch at a step of the outer part.
    """

    who: ClassVar[str]
    """The variant's name, for errors."""
    upper: ClassVar[str]
    """The attribute of an adapter that is the upper level."""

    def __init__(
        self,
        adapters: Mapping[str, Any],
        *,
        outer_share: float = 0.2,
        inner_steps: int = 1,
        outer_steps: int = 1,
    ) -> None:
        super().__init__(adapters)
        self.parts(outer_share=outer_share)
        if min(inner_steps, outer_steps) < 1:
            needs = "needs inner_steps >= 1 and outer_steps >= 1"
            raise ValueError(f"{self.who}: {needs}; got {inner_steps} and {outer_steps}")
        self.turns, self.inner_steps = inner_steps + outer_steps, inner_steps

    @classmethod
    def parts(cls, *, outer_share: float = 0.2, **hyper: Any) -> Mapping[str, float]:
        if not 0 < outer_share < 1:
            raise ValueError(f"{cls.who}: outer_share must lie between 0 and 1; got {outer_share}")
        return {INNER: 1 - outer_share, OUTER: outer_share}

    def part(self, step: int) -> str:
        return INNER if (step - 1) % self.turns < self.inner_steps else OUTER

    def on_after_backward(self, progress: Progress) -> None:
        upper_rests = self.part(progress.step) == INNER
        for adapter in self.adapters.values():
            for name, p in adapter.named_parameters():
                if (name == self.upper) == upper_rests:
                    p.grad = None

    def law(self) -> None:
        """Of each round of turns, the lower level has `inner_steps`, and they come first."""
        seen = [self.part(step) for step in range(1, 2 * self.turns + 1)]
        assert seen == 2 * (self.inner_steps * [INNER] + (self.turns - self.inner_steps) * [OUTER])
