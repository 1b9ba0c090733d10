"""A variant's part that spans layers or time. Every hook has a neutral default.

The order of a training step: `objective` inside `forward_context`, by default one forward pass -> task loss +
its extra + `regularizer` -> backward ->
`on_after_backward` -> clipping -> optimiser step -> `on_step_end` -> schedule -> gradients to zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from lora_zoo.core.dropout import ForwardCounter

WITHIN_STEP = ("forward_context", "objective", "regularizer", "switch")
"""Hooks that act between the forward pass and its backward: they could reach other jobs of the same model."""


class Progress(NamedTuple):
    """Optimiser steps: `step` counts from 1 (the step in hand), `total` is the whole run's.

    `rate` is the schedule's factor of this step: every learning rate is so many times its first value.
    `gradients_of_step` tells `on_after_backward` of a variant with `parts` the gradients that the batches of
    an earlier step give at the weights of now, all calls with the same dropout masks; what is in hand stays.
    It raises ValueError with float16's loss scale, and is None outside this project's trainer.
    """

    step: int
    total: int
    rate: float = 1.0
    gradients_of_step: Callable[[int], Mapping[nn.Parameter, Tensor]] | None = None


Pass = tuple[Tensor, Any]
"""The task's loss and the model's outputs."""
Groups = list[dict[str, Any]]
"""An optimiser's groups of parameters, each with its rate, decay and whatever else its steps read."""
MakeOptimizer = Callable[[Groups], Optimizer]


def split(
    named: Mapping[str, nn.Parameter],
    ending: str | tuple[str, ...],
    own: Mapping[str, Any],
    *,
    lr: float,
    weight_decay: float,
) -> Groups:
    """Two groups, of which the second holds the parameters whose names end so, with values of their `own`."""
    usual = {"lr": lr, "weight_decay": weight_decay}
    second = [p for name, p in named.items() if name.endswith(ending)]
    first = [p for name, p in named.items() if not name.endswith(ending)]
    return [{"params": first, **usual}, {"params": second, **usual, **own}]


class AdapterHooks(nn.Module):
    """Hooks over all adapters of one model; buffers are saved and resumed with checkpoints, not exported.

    Keyword-only arguments of a subclass's constructor are hyperparameters of the variant, beside the
    adapter's own.
    """

    def __init__(self, adapters: Mapping[str, Any]) -> None:
        super().__init__()
        object.__setattr__(self, "adapters", dict(adapters))  # owned by their layers, not by the method

    adapters: dict[str, Any]
    packable: ClassVar[bool] = False
    """True if what this class does within a step (WITHIN_STEP) does not reach other jobs of the same model; a
    class that overrides one of them and does not say so trains by itself."""
    over_priors: ClassVar[bool] = False
    """True if it is about the frozen adapters under these: in a sequence of tasks each has a new one."""
    needs_priors: ClassVar[bool] = False
    """True if a run without prior adapters would be one of the base alone."""
    pointwise_views: ClassVar[bool] = True
    """False where a view is no weight (an average of outputs): inside it, reading one raises ValueError."""
    model: nn.Module
    matrices: Mapping[str, Any]
    seed: int
    counter: ForwardCounter
    common: nn.Module | None
    """The adapted model, its target matrices by name, the seed, what its passes count and what `shared` made;
    set by `attach`."""
    prior: Mapping[str, Mapping[str, Any]]
    """The frozen adapters under these: name -> matrix -> adapter; set by `attach` as well."""

    def attach(
        self,
        model: nn.Module,
        matrices: Mapping[str, Any],
        *,
        seed: int,
        counter: ForwardCounter,
        common: nn.Module | None = None,
        prior: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Show the hooks the adapted model; called once by `inject`, before anything else."""
        about = {"model": model, "matrices": matrices, "seed": seed, "counter": counter}
        self.__dict__.update(about, common=common, prior=prior)  # not submodules

    def show_prior(self, name: str, adapters: Mapping[str, Any]) -> None:
        """Show one more frozen adapter under these: what earlier stages of a program have settled."""
        self.__dict__["prior"] = {**self.prior, name: adapters}

    def switch(self, on: bool) -> None:
        """Put into the model, or take out of it, what is in no matrix (a soft prompt's hook, say).

        Called whenever the adapter becomes active or idle: after `attach`, around `disabled()`, before it is
        removed. A variant whose hooks override this is not `pointwise`: no weight does what they do.
        """

    @classmethod
    def not_packable(cls) -> str:
        """The method within a step that keeps jobs with these hooks from sharing a model, or "".

        The class that overrides it, or one derived from that, may declare `packable = True`.
        """
        for method in WITHIN_STEP:
            lineage = cls.__mro__[: next(n for n, c in enumerate(cls.__mro__) if method in vars(c)) + 1]
            if lineage[-1] is not AdapterHooks and not any(vars(c).get("packable") for c in lineage):
                return method
        return ""

    def emitted(self) -> Tensor | float:
        """The sum of the scalars that the adapters emitted in the last training pass."""
        return sum(self.counter.emitted, 0.0)

    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> nn.Module | None:
        """The module of all that belongs to no single matrix: shared factors, a soft prompt, a global router.

        `shapes` maps each adapted matrix's name to its (O, I). Tensors belong on the device of `like`,
        trainable ones in its dtype. They train, are counted, saved and resumed once, under their names in the
        module; gradients add over the matrices. Adapters find it in `context.shared`, hooks in `common`, and
        `switch` is the place to let it act. `hyper` holds the greatest rank, the plain `model`, and `prior`,
        the names of the frozen adapters under these.
        """
        return None

    @classmethod
    def parts(cls, **hyper: Any) -> Mapping[str, float]:
        """The parts into which the training examples are divided once, name -> share; {} for no division.

        Each optimiser step is given batches of one part; it counts as a step, and its examples as examples,
        like those of any variant. A parameter that is not to learn from it has its gradient set to None in
        `on_after_backward`: no optimiser then moves or decays it. `hyper` is complete.
        """
        return {}

    @classmethod
    def gathers(cls, **hyper: Any) -> str:
        """Its use of all examples of a batch, "" where a step needs no more than their gradients.

        Said of the variant, as "balances its experts over all tokens". Several processes, each of which has a
        part of every batch, are refused then. Gradients, in `on_after_backward`, are those of all of them.
        `hyper` is complete.
        """
        return ""

    def part(self, step: int) -> str:
        """The part from which an optimiser step's batches are drawn, by its number, from 1, alone."""
        return ""

    def composition(self) -> Any:
        """The `Composition` of the frozen adapters under these while these are active; None: their sum."""
        return None

    def to_adapters(self) -> None:
        """Move the buffers to the device of the first adapter."""
        for adapter in [*self.adapters.values()][:1]:
            self.to(next(adapter.parameters()).device)

    def on_train_begin(self, total: int) -> None:
        """Training of `total` optimiser steps is about to start; may be called again before it does.

        ValueError where a schedule does not fit.
        """

    def param_groups(self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> Groups:
        """Optimiser groups over the adapters' trainable parameters; see also `split`."""
        return [{"params": list(named.values()), "lr": lr, "weight_decay": weight_decay}]

    def optimizer(self, groups: Groups, make: MakeOptimizer) -> Optimizer:
        """The optimiser of all groups, those of fully trained parameters among them.

        `make` makes the one that the user has chosen, here as it is. torch's `register_step_pre_hook` and
        `register_step_post_hook` act around each step: gradients are clipped and not scaled, a group's `lr`
        is the step's own, and a skipped step has no gradients. A `lr` that changes before the step and is put
        back after it is a factor on the schedule's; `state.pop(p)` resets moments. Another class may be
        returned; what it remembers belongs in its `state`, which checkpoints hold.
        """
        return make(groups)

    def objective(self, once: Callable[[], Pass], progress: Progress) -> tuple[Tensor, Any, Tensor | float]:
        """The loss that is reported, the outputs, and an extra that is differentiated and not reported.

        `once()` is one pass of the batch in hand; more calls are more passes, each with dropout masks of its
        own. The extra is in the loss's units, as another `once()` gives. By default: one pass, no extra.
        """
        loss, outputs = once()
        return loss, outputs, 0.0

    def regularizer(self) -> Tensor | float:
        """Added to the loss that is differentiated, never to the loss that is reported."""
        return 0.0

    def forward_context(self, progress: Progress) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def on_after_backward(self, progress: Progress) -> None:
        """Gradients exist and are not yet clipped; weights are those that the gradients belong to."""

    def on_step_end(self, progress: Progress) -> None:
        """The optimiser has stepped; gradients are still there, or None where the step was skipped."""

    def on_train_end(self) -> None:
        """Training is over."""

    def kept(self) -> Mapping[str, Tensor]:
        """The components that remain, asked once training is over: matrix -> int64 indices, ascending.

        The others are dropped before the adapter is saved: what is kept computes the same function. At least
        one stays in each matrix; a matrix that is not named keeps all.
        """
        return {}

    def ranks(self) -> Mapping[str, float]:
        """The number of components that each matrix has at this moment; asked before, in and after training.

        {} where it is the rank that was asked for from beginning to end. A matrix may have none.
        """
        return {}

    def views(self) -> Mapping[str, contextlib.AbstractContextManager[Any]]:
        """Further evaluations of the one trained model: inside a view's context, the model is that view.

        Names are of letters, digits, =, _ and -. Asked anew for each use once training is over, and for the
        names alone before it. A run judges each view on its splits, by its metrics, beside the whole model.
        ValueError for a view that was asked for and cannot be.
        """
        return {}

    def of_group(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """Inside, the model is told that all rows belong to this group, a value of the column `task.groups`.

        A run judges each group (a task of a sequence, say) apart. By default the model makes no use of it.
        """
        return contextlib.nullcontext()

    def expert_of(self, name: str) -> int | None:
        """The number of the expert that is made for the rows of this group; None where none is.

        The mean weight that the group's rows give to it is their `routing_accuracy`.
        """
        return None

    def law(self) -> None:
        """Assert what makes this method itself (called by the conformance suite)."""
