"""Put adapters into any model, use it, merge or take them out again.

adapted = inject(model, "dora", rank=8, target_modules=["q", "v"])
train(model, adapted.parameters())
with adapted.disabled(): ...          # exactly the model from before
adapted.merge(); adapted.remove()     # an ordinary model with the effective weights
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_zoo.core.adapter import Variant
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dropout import Dropout, ForwardCounter
from lora_zoo.core.dtypes import uncast, wide
from lora_zoo.core.errors import unknown
from lora_zoo.core.hooks import AdapterHooks, Groups, MakeOptimizer
from lora_zoo.core.hyperparameters import accepted
from lora_zoo.core.routing import RoutingRecord
from lora_zoo.core.statistics import Statistics
from lora_zoo.hosts.quantized import numel
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.adapter_tensors import adapter_tensors, parameters, saved
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.effective import EffectiveWeights
from lora_zoo.injection.matrices import TargetMatrix
from lora_zoo.injection.module_names import unwrapped
from lora_zoo.injection.named_rows import BASE
from lora_zoo.injection.plan import (
    InjectionPlan,
    Patterns,
    build,
    check_present,
    hyperparameters_at,
    plan_injection,
)
from lora_zoo.injection.recoded import RecodedLayers
from lora_zoo.injection.shrinking import shrink
from lora_zoo.injection.statistics import allotted, collect
from lora_zoo.injection.targets import Layers, Names
from lora_zoo.injection.tied_weights import untie
from lora_zoo.injection.trained_buffers import FrozenStatistics, TrainedBuffers, names_of_buffers


class Update(NamedTuple):
    """One matrix of an adapted model: W before, and ΔW = W' - W, both (O, I), float32 or wider."""

    name: str
    W_OI: Tensor
    dW_OI: Tensor


class Injection:
    """One named adapter of a model, its matrices by name. Made by `inject`; changes the model in place."""

    def __init__(
        self,
        model: nn.Module,
        plan: InjectionPlan,
        *,
        seed: int,
        name: str,
        statistics: Mapping[str, Statistics] | None = None,
        prior: Sequence[str] = (),
        state: Mapping[str, Tensor] | None = None,
        partial: bool = False,
    ) -> None:
        """Check everything, then change the model; `state` holds its tensors, or some where `partial`."""
        if not re.fullmatch(r"[\w-]+", name) or name == BASE:
            raise ValueError(
                f"an adapter's name is made of letters, digits, _ and -, not {BASE}; got {name!r}"
            )
        self.model = model = unwrapped(model)
        check_present(model, plan)
        self.name, self.seed, self.counter = name, seed, ForwardCounter()
        self.variant, self.hyper, self.patterns = plan.variant, plan.hyperparameters, plan.patterns
        self.matrices: dict[str, TargetMatrix] = {matrix.name: matrix for matrix in plan.matrices}
        self._adapter_set, self.prior = adapters_of(model), tuple(dict.fromkeys(prior))
        for below in self.prior:
            if below not in self._adapter_set:
                raise ValueError(f"prior: {unknown('adapter', below, self._adapter_set)}")
        hosts = {matrix.name: matrix.host for matrix in plan.matrices}
        self.recoded = RecodedLayers(model, self.hyper.get("init"), hosts, others=list(self._adapter_set))
        with self._adapter_set.disabled(), self.recoded.undone_by_an_error():
            self.adapters, self.shared = build(
                plan, model, seed=seed, counter=self.counter, statistics=statistics, prior=self.prior
            )
            self.recoded.know(self.adapters)
            self.hooks = self._new_hooks()
            every = base_parameters(model)
            self.trained = untie(model, plan.fully_trained, state or ())
            self.originals = {name: every[name] for name in self.trained}
            self.buffers = TrainedBuffers(model, names_of_buffers(model, self.trained))
            self.statistics = FrozenStatistics(model, self.buffers.own())
        self.fully_trained = list({id(p): n for n, p in reversed(self.trained.items())}.values())[::-1]
        if state is not None:
            with self.recoded.undone_by_an_error():
                self.load_state_dict({**self.state_dict(), **state} if partial else state)
        self._pass_counter = model.register_forward_pre_hook(
            self.counter.begin, prepend=True, with_kwargs=True
        )
        try:
            self._adapter_set.add(self)
        except BaseException:
            self._pass_counter.remove()
            self.recoded.undo()
            raise
        for below in self.prior:
            self._adapter_set[below].freeze()

    def _new_hooks(self) -> AdapterHooks:
        hooks = self.variant.hooks(self.adapters, **accepted(self.variant.hooks, self.hyper))
        prior = {name: self._adapter_set[name].adapters for name in self.prior}
        seed, counter, common = self.seed, self.counter, self.shared
        hooks.attach(self.model, self.matrices, seed=seed, counter=counter, common=common, prior=prior)
        return hooks

    def shrink(self, kept: Mapping[str, Tensor] | None = None) -> bool:
        """Drop the components of trained adapters that are not `kept`; True if there were any.

        `kept` maps matrices to int64 indices, ascending; by default those that the hooks name, which do not
        change the function. Parameters and hooks are new ones where something was dropped, so that an
        optimiser has to be made anew. ValueError, before any change, for an unknown matrix or wrong indices.
        """
        found = shrink(self.adapters, self.hooks.kept() if kept is None else kept)
        if found:
            own = {key: {**self.patterns.get(key, {}), **values} for key, values in found.items()}
            active = self.name in self._adapter_set.active
            if active:
                self.hooks.switch(False)
            self.patterns, self.hooks = {**self.patterns, **own}, self._new_hooks()
            if active:
                self.hooks.switch(True)
        return bool(found)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name: the adapters' own, then the fully trained ones."""
        return self._adapter_parameters() | {name: self.trained[name] for name in self.fully_trained}

    def _adapter_parameters(self) -> dict[str, nn.Parameter]:
        every = adapter_tensors(self.adapters, self.shared, parameters)
        return {name: p for name, p in every.items() if p.requires_grad}

    def parameters(self) -> list[nn.Parameter]:
        return list(self.named_parameters().values())

    def __repr__(self) -> str:
        """Variant, hyperparameters, matrices and parameters, in one line."""
        own = ", ".join(f"{key}={value}" for key, value in self.hyper.items() if value is not None)
        name = f"{self.variant.name}({own})" + ("" if self.name == "default" else f" as {self.name!r}")
        if not self.matrices and not self.trained:
            return f"<{name}: taken out of its model>"
        ends = ", ".join(dict.fromkeys(matrix.rpartition(".")[2] for matrix in self.matrices))
        parts = [f"{len(self.matrices)} matrices: {ends}"] if self.matrices else []
        parts += [f"{len(self.fully_trained)} parameters in full"] if self.fully_trained else []
        trainable, total = self.trainable(), self.total()
        share = f"trainable {trainable:,} of {total:,} ({trainable / total:.2%})"
        return f"<{name}; {'; '.join([*parts, share])}>"

    def __len__(self) -> int:
        return len(self.adapters)

    def __iter__(self) -> Iterator[Update]:
        """Every matrix that this adapter changes as `name, W, ΔW`, detached; W is the frozen one."""
        return map(self.update, self.matrix_names())

    def matrix_names(self) -> list[str]:
        """The names of the matrices that this adapter changes, fully trained ones last."""
        whole = [name for name in self.fully_trained if self.originals[name].ndim == 2]
        adapted = self.adapters if self.variant.changes_weight else ()
        return [*adapted, *(name.removesuffix(".weight") for name in whole)]

    def base_weight(self, name: str) -> Tensor:
        """The frozen W (O, I) of one of the matrices that change, in float32 or wider."""
        if name not in self.adapters:
            return wide(self.originals[self._parameter_name(name)])
        with self._adapter_set.unmerged():
            return wide(self.matrices[name].host.matrix())

    @torch.no_grad()
    def update(self, name: str) -> Update:
        """`name, W, ΔW` of one of the matrices that change."""
        W_OI = self.base_weight(name)
        if name in self.adapters:
            self.variant.require_weight("read as a ΔW")
        else:
            return Update(name, W_OI, wide(self.trained[self._parameter_name(name)]) - W_OI)
        with uncast(W_OI.device):
            return Update(name, W_OI, self.adapters[name].weight(W_OI) - W_OI)

    def _parameter_name(self, name: str) -> str:
        return name if name in self.trained else f"{name}.weight"

    def param_groups(self, *, lr: float, weight_decay: float = 0.0) -> Groups:
        """Optimiser groups: the variant's own for its adapters, and one or two for fully trained parameters.

        Of the latter, matrices decay and vectors (biases, norms) do not, as in transformers' Trainer.
        """
        own = self._adapter_parameters()
        groups = self.hooks.param_groups(own, lr=lr, weight_decay=weight_decay) if own else []
        full = [self.trained[name] for name in self.fully_trained]
        for decay, members in (
            (weight_decay, [p for p in full if p.ndim > 1]),
            (0.0, [p for p in full if p.ndim <= 1]),
        ):
            groups += [{"params": members, "lr": lr, "weight_decay": decay}] if members else []
        return groups

    def optimizer(self, make: MakeOptimizer, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
        """The optimiser of `param_groups`: `make(groups)`, where the variant does not wrap or replace it."""
        optimizer = self.hooks.optimizer(self.param_groups(lr=lr, weight_decay=weight_decay), make)
        grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(grouped) == len(set(grouped)), "a parameter is in two optimiser groups"
        assert set(grouped) == set(map(id, self.parameters())), "a trainable parameter is in no group"
        return optimizer

    def freeze(self) -> None:
        """End its training for good: nothing of it takes a gradient or drops out any more."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for module in (part for adapter in self.adapters.values() for part in adapter.modules()):
            if isinstance(module, Dropout):
                module.end()

    @contextlib.contextmanager
    def recorded_routing(self) -> Iterator[RoutingRecord]:
        """Inside, the weights that its adapters give to experts are noted in the record."""
        before, self.counter.routing = self.counter.routing, RoutingRecord()
        try:
            yield self.counter.routing
        finally:
            self.counter.routing = before

    def activate(self) -> None:
        """Make this the model's only active adapter, above its priors."""
        self._adapter_set.activate(self.name)

    def disabled(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model is exactly the one that was adapted: the base, with this adapter's priors.

        Priors that the adapter is made of are a part of it.
        """
        return self._adapter_set.disabled(keep=() if self.hooks.needs_priors else self.prior)

    def effective(
        self, *, max_memory: int | None = None
    ) -> contextlib.AbstractContextManager[EffectiveWeights]:
        """Inside, passes without gradients use effective weights of the active adapters: see AdapterSet."""
        return self._adapter_set.effective(max_memory=max_memory)

    def enable(self, active: bool = True) -> None:
        """Switch this adapter on or off, beside the other active ones, in the composition that there is."""
        others = [name for name in self._adapter_set.active if name != self.name]
        own = [self.name] if active else []
        self._adapter_set.activate(*others, *own, composition=self._adapter_set.composition)

    def merge(self) -> None:
        """Write the effective weights of the model's active adapters into plain layers: see AdapterSet.

        ValueError where this adapter is not among them.
        """
        if self.name not in self._adapter_set.active:
            raise ValueError(f"the adapter {self.name!r} is not active; activate() it before merging")
        self._adapter_set.merge()

    def unmerge(self) -> None:
        """Undo `merge`, to the bit."""
        self._adapter_set.unmerge()

    def remove(self) -> nn.Module:
        """Take this adapter out; merged weights stay, otherwise the model is as if it had not been there."""
        self._adapter_set.delete(self.name)
        return self.model

    def forget(self) -> None:
        """Let go of the model (called by its `AdapterSet` when the adapter is out)."""
        self._pass_counter.remove()
        if not self._adapter_set.merged:
            self.recoded.undo()
        self.matrices, self.adapters, self.fully_trained, self.trained, self.originals = {}, {}, [], {}, {}
        self.buffers = TrainedBuffers(self.model, ())

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that the base lacks: the adapters', those that they share, what trains in full."""
        every = adapter_tensors(self.adapters, self.shared, saved)
        own = {name: tensor.detach() for name, tensor in every.items()}
        return own | {name: self.trained[name].detach() for name in self.fully_trained} | self.buffers.own()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` in. ValueError where a tensor is missing, left over, of another shape or kind."""
        mine = self.state_dict()
        for name in mine.keys() ^ state.keys():
            raise ValueError(f"adapter state: {name!r} is {'missing' if name in mine else 'not expected'}")
        for name, tensor in mine.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"adapter state: {name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
                )
            if not _of_one_kind(state[name], tensor):
                raise ValueError(f"adapter state: {name} is {state[name].dtype}, not {tensor.dtype}")
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self.recoded.follow(self.adapters)

    def scales(self) -> list[float]:
        """The different scales s of its updates, ascending; none for a variant without one."""
        every = (hyperparameters_at(m, self.hyper, self.patterns) for m in self.matrices.values())
        return sorted({s for s in map(self.variant.scale_with, every) if s is not None})

    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def total(self) -> int:
        """Number of parameters of the model with this adapter alone, tied ones once."""
        base = base_parameters(self.model) | self.trained
        own = adapter_tensors(self.adapters, self.shared, parameters).values()
        return sum(numel(p) for p in {id(p): p for p in (*base.values(), *own)}.values())


def inject(
    model: nn.Module,
    variant: str | type[Variant] = "lora",
    *,
    target_modules: Names = "auto",
    exclude_modules: Names = (),
    layers: Layers | None = None,
    modules_to_save: Sequence[str] = (),
    rank_pattern: Mapping[str, int | str] | None = None,
    alpha_pattern: Mapping[str, Alpha] | None = None,
    patterns: Patterns | None = None,
    budget: int | str | None = None,
    seed: int = 0,
    name: str = "default",
    batches: Iterable[Mapping[str, Any]] | None = None,
    prior: Sequence[str] = (),
    branch_dtype: torch.dtype | str | None = None,
    **hyper: Any,
) -> Injection:
    """Freeze `model`, adapt it in place and return the handle to the adapter, which is then the active one.

    `target_modules="auto"` are the variant's own, q and v unless its class says otherwise; `layers` is a
    number, a range "2-5", "random:4" (drawn by `seed`) or a list of them; `rank_pattern` and `alpha_pattern`
    map targets to values of their own, the first that fits counts, where the rank "4-12" rises with depth;
    `patterns` holds such a map for any hyperparameter; `budget` ("300k") finds the rank instead of taking
    one; `batches` are keyword arguments of the model, labels included and without padding, on which an
    initialisation that looks at data (EVA, LoRA-GA) collects its statistics; `prior` names adapters of the
    model that stay active and frozen under the new one, whose ΔW is its own change alone; `branch_dtype` is
    that of the adapter's products on a bfloat16 base, where a kernel makes them: float32 or bfloat16, by
    default the latter where the device multiplies it (`kernels.dense.narrowed`); `hyper` are the variant's
    own keyword arguments (rank, alpha, init, …), with the command line's defaults: alpha is the paper's for
    the rank that is used, or "2r", twice that rank. Raises ValueError for a name, target, value
    or combination that does not exist, before anything is changed.
    """
    narrow = branch_dtype if branch_dtype is None else _branch_dtype(branch_dtype)
    if name in adapters_of(model):
        raise ValueError(f"the model is adapted already by {name!r}; remove() it, or give another name")
    plan = plan_injection(
        model,
        variant,
        target_modules=target_modules,
        exclude_modules=exclude_modules,
        layers=layers,
        modules_to_save=modules_to_save,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        patterns=patterns,
        budget=budget,
        seed=seed,
        **hyper,
    )
    if plan.unmatched:
        raise ValueError(plan.unmatched[0])
    statistics = collect(model, plan, batches, prior)
    allowed = allotted(plan, statistics)
    for matrix in allowed.matrices:
        matrix.host.branch_dtype = narrow
    return Injection(model, allowed, seed=seed, name=name, statistics=statistics, prior=prior)


def _branch_dtype(asked: torch.dtype | str) -> torch.dtype:
    known = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16)}
    word = str(asked).removeprefix("torch.")
    if word not in known:
        raise ValueError(unknown("branch_dtype", word, known))
    return known[word]


def _of_one_kind(given: Tensor, tensor: Tensor) -> bool:
    """True where both count or both measure; older files made for PEFT count in whole floats."""
    if given.is_floating_point() and not tensor.is_floating_point():
        return bool((given == given.round()).all())
    return given.is_floating_point() == tensor.is_floating_point()
