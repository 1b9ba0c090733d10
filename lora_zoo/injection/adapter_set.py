"""The set of named adapters of one model: activate, merge, isolate and delete them.

adapters = adapters_of(model)                  # {"style": Injection, "tone": Injection}
adapters.activate("style", "tone")             # both changes are added; no name at all: the plain model
adapters.activate("style", "tone", weights=[0.7, 0.3])          # or composition=…, see lora_zoo.compositions
with adapters.disabled(): ...
with adapters.rows(["style", BASE, "tone"]): model.generate(**batch)     # an adapter of its own for each row
adapters["tone"].remove()
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lora_zoo.core.composition import Composition, composition_of
from lora_zoo.core.errors import unknown
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.injection.base_model import BESIDE, base_parameters
from lora_zoo.injection.batched import BatchRows, RowGroup
from lora_zoo.injection.compose import LayerParameters, NamedAdapter, check_compatible, merged_parameters
from lora_zoo.injection.effective import EffectiveWeights
from lora_zoo.injection.entries import Entries
from lora_zoo.injection.module_names import unwrapped
from lora_zoo.injection.named_rows import BASE, NamedRows, own_tensors
from lora_zoo.injection.parametrized import make_wrapper
from lora_zoo.injection.save_guard import guard, unguard
from lora_zoo.injection.tied_weights import Tying
from lora_zoo.injection.wrappers import AdapterWrapper, put

_KEY = "_lora_zoo_adapters"


A = TypeVar("A", bound=NamedAdapter)


class AdapterSet(Mapping[str, A]):
    """A model's adapters by name. The first one freezes the model; deleting the last one restores it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.active: tuple[str, ...] = ()
        self.composition = composition_of("sum", (), {})
        self._by_name: dict[str, A] = {}
        self._shown: set[str] = set()
        """The adapters of which the model may hold what they train in full."""
        self._wrappers: dict[str, AdapterWrapper] = {}
        self._merged: dict[str, LayerParameters] | None = None
        self._required_grad = {n: p.requires_grad for n, p in base_parameters(model).items()}
        self._tying = Tying(model)

    def __getitem__(self, name: str) -> A:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def merged(self) -> bool:
        return self._merged is not None

    def add(self, injection: A) -> None:
        """Add a new adapter and make it the active one. Where that fails, the model is as it was."""
        active, composition, merged = self.active, self.composition, self.merged
        try:
            self._enter(injection)
        except BaseException:
            if injection.name in self._by_name:
                self.delete(injection.name)
            if self._by_name:
                self.activate(*active, composition=composition)
            if merged:
                self.merge()
            raise

    def _enter(self, injection: A) -> None:
        self.unmerge()
        if not self._by_name:
            self.model.requires_grad_(False)
            self.model.__dict__[_KEY] = self
            guard(self.model, self._adapted)
            self._passes = self.model.register_forward_pre_hook(_without_tasks, with_kwargs=True)
        self._by_name[injection.name] = injection
        for matrix in injection.matrices.values():
            if matrix.tensor not in self._wrappers:
                wrapper = make_wrapper(matrix.host, matrix.tensor)
                wrapper.install(self.model)
                self._wrappers[matrix.tensor] = wrapper
            self._wrappers[matrix.tensor].add(injection.name, matrix.host, injection.adapters[matrix.name])
        self.activate(injection.name)

    def activate(self, *names: str, composition: str | Composition | None = None, **options: Any) -> None:
        """Make `names` and their priors the active adapters, all others idle; merged ones are unmerged first.

        `composition` and its `options` are those of `lora_zoo.compositions`: the sum of all changes, or of
        weighted ones where `weights` are given; by default what one of them has for its priors. Raises
        ValueError for an unknown name, a wrong option, and where adapters cannot be active together.
        """
        for name in names:
            if name not in self._by_name:
                raise ValueError(unknown("adapter", name, self._by_name))
        asked = composition or (not options and self._of_priors(names)) or None
        together = composition_of(asked, tuple(dict.fromkeys(names)), options)
        names = self._with_priors(names)
        check_compatible([self._by_name[name] for name in names], together)
        self.unmerge()
        self._compose(names, together)
        every = self._by_name.values()
        switched = [one for one in every if (one.name in names) != (one.name in self._shown)]
        for shown in (False, True):
            for injection in switched:
                if (injection.name in names) == shown:
                    self._show(injection, shown)
        for wrapper in self._wrappers.values():
            wrapper.activate(names, together)
        self.composition = together
        self._switch(names)
        if any(injection.trained for injection in switched):
            self._tying.update()

    def _compose(self, names: tuple[str, ...], together: Composition) -> None:
        """Let `together` enter the model in the place of the composition that there is."""
        self.composition.leave()
        try:
            together.enter(self.model, self._entries_of(names))
        except BaseException:
            together.leave()
            self.composition.enter(self.model, self._entries_of(self.active))
            raise

    def _entries_of(self, names: Sequence[str]) -> dict[str, dict[str, Entries]]:
        """Stored tensor -> adapter -> its entries there."""
        found: dict[str, dict[str, Entries]] = {}
        for key, wrapper in self._wrappers.items():
            if own := {name: entries for name, entries in wrapper.entries.items() if name in names}:
                found[key] = {name: own[name] for name in names if name in own}
        return found

    def _switch(self, names: tuple[str, ...]) -> None:
        """Tell the hooks of those that become active or idle."""
        before, self.active = self.active, names
        for name in {*before, *names} & self._by_name.keys():
            if (name in before) != (name in names):
                self._by_name[name].hooks.switch(name in names)

    def _with_priors(self, names: Iterable[str]) -> tuple[str, ...]:
        """Each name after those of the adapters that it was trained on."""
        found = dict[str, None]()
        for name in names:
            found |= dict.fromkeys([*self._with_priors(self._by_name[name].prior), name])
        return tuple(found)

    def _of_priors(self, names: Sequence[str]) -> Composition | None:
        """The composition that one of the adapters has for those under it."""
        return next((own for name in names if (own := self._by_name[name].hooks.composition())), None)

    def _show(self, injection: A, shown: bool) -> None:
        """Put what an adapter trains in full into the model, or the base's own back.

        With it comes the module of an adapter that has no matrix in which it could lie.
        """
        key = f"{BESIDE}{injection.name}"
        self._shown.add(injection.name)  # also where it fails halfway
        if shown and injection.shared is not None and not injection.matrices:
            self.model.add_module(key, injection.shared)
        else:
            self.model._modules.pop(key, None)
        for name, parameter in (injection.trained if shown else injection.originals).items():
            put(self.model, name, parameter)
        injection.buffers.show(shown)
        if not shown:
            self._shown.discard(injection.name)

    def isolate(self, name: str) -> None:
        """Activate one adapter and hide the others: faster than `activate`, for adapters that take turns.

        `model.parameters()` and `train()` then see this adapter alone; passes leave what others emitted.
        """
        for other in self.active:
            self._show(self._by_name[other], False)
        self._show(self._by_name[name], True)
        self.composition.leave()
        self.composition = composition_of("sum", (name,), {})
        for wrapper in self._wrappers.values():
            wrapper.isolate(name, self.composition)
        for other, injection in self._by_name.items():
            injection.counter.runs = other == name
        self._switch((name,))

    def show_all(self) -> None:
        """Undo `isolate`: all adapters are in the model again, and none is active."""
        for wrapper in self._wrappers.values():
            wrapper.show_all()
        for injection in self._by_name.values():
            injection.counter.runs = True
        self.activate()

    @contextlib.contextmanager
    def batched_forward(self, row_groups: Sequence[RowGroup]) -> Iterator[None]:
        """Inside, each row group of a batch goes through the adapter of its name.

        ValueError for an adapter that acts on the whole model, not on rows at a matrix.
        """
        with self._batch(BatchRows(row_groups, *self._of_rows(group.name for group in row_groups))):
            yield

    @contextlib.contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """Inside, each row of a batch goes through the adapter of its name, or through none for `BASE`.

        `names` are those of a batch's rows, in their order; in `generate` they are also those of a row's
        beams and returned sequences. Priors come with their adapter; other adapters are idle, and merged ones
        are merged again afterwards. ValueError for an unknown name, another number of rows, in training mode,
        and for an adapter that does not act on rows.
        """
        if self.model.training:
            raise ValueError("rows: a mixed batch is for inference; call model.eval() first")
        for name in {*names} - {BASE}:
            if name not in self._by_name:
                raise ValueError(unknown("adapter", name, [*self._by_name, BASE]))
        with self.disabled():
            batch = NamedRows(names, *self._of_rows(names))
            used = {name: self._by_name[name] for own in batch.active.values() for name in own}
            own = {name: {**one.trained, **one.buffers.own()} for name, one in used.items()}
            with batch.of(self.model), self._batch(batch), own_tensors(self.model, batch, own):
                yield

    def _of_rows(self, names: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], Composition]:
        """The adapters that act on the rows of each name, and their composition."""
        active = {name: self._with_priors((name,)) for name in names if name in self._by_name}
        for name in {name for own in active.values() for name in own}:
            injection = self._by_name[name]
            hooks = injection.hooks
            if type(hooks).switch is not AdapterHooks.switch or hooks.composition() is not None:
                raise ValueError(f"{name!r} ({injection.variant.name}) acts on whole batches")
        return active, composition_of("sum", (), {})

    @contextlib.contextmanager
    def _batch(self, batch: BatchRows) -> Iterator[None]:
        for wrapper in self._wrappers.values():
            wrapper.batch = batch
        try:
            yield
        finally:
            for wrapper in self._wrappers.values():
                wrapper.batch = None

    @contextlib.contextmanager
    def tasks(self, ids: Tensor | None) -> Iterator[None]:
        """Inside, passes without `task_ids` of their own have these: int64, one an example; None for none.

        For what calls the model itself (`generate`), which may repeat each example.
        """
        counters = [injection.counter for injection in self._by_name.values()]
        before = [counter.tasks for counter in counters]
        for counter in counters:
            counter.tasks = ids
        try:
            yield
        finally:
            for counter, own in zip(counters, before, strict=True):
                counter.tasks = own

    @contextlib.contextmanager
    def disabled(self, *, keep: Sequence[str] = ()) -> Iterator[None]:
        """Inside, `keep` alone are active, by default none; the active adapters return afterwards."""
        with self.unmerged():
            active, composition = self.active, self.composition
            try:
                self.activate(*keep)
                yield
            finally:
                self.activate(*active, composition=composition)

    @contextlib.contextmanager
    def effective(self, *, max_memory: int | None = None) -> Iterator[EffectiveWeights]:
        """Inside, passes without gradients in evaluation mode use effective weights that are formed once.

        They are formed anew when adapters change; where and when they are not used, `EffectiveWeights` says.
        They take the memory of the adapted weights once more, at most `max_memory` bytes (half of what is
        free): layers for which none is left do without. ValueError for a negative number.
        """
        kept = EffectiveWeights(lambda: {} if self.merged else self._wrappers, max_memory=max_memory)
        begin = self.model.register_forward_pre_hook(kept.begin)
        end = self.model.register_forward_hook(kept.end, always_call=True)
        try:
            yield kept
        finally:
            begin.remove()
            end.remove()

    @contextlib.contextmanager
    def unmerged(self) -> Iterator[None]:
        """Inside, nothing is merged; merged adapters are merged again afterwards."""
        merged = self.merged
        try:
            self.unmerge()
            yield
        finally:
            if merged:
                self.merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Write the active adapters' effective weights and biases into their layers, which become plain ones.

        The original parameters are kept, so that `unmerge` is exact, until `remove`. Raises ValueError where
        an active adapter is no function of the weight. Where anything fails, the model is as it was.
        """
        if self._merged is not None:
            return
        self.composition.require_weight("merged")
        for name in self.active:
            self._by_name[name].variant.require_weight("merged")
        merged = merged_parameters(self.model, self._wrappers)
        self._merged = {}
        try:
            for key, parameters in merged.items():
                wrapper = self._wrappers[key]
                original = LayerParameters(wrapper.stored, wrapper.stored_bias)
                wrapper.uninstall(self.model)
                self._merged[key] = original
                wrapper.store(*parameters)
            self._tying.update()
        except BaseException:
            self.unmerge()
            raise

    def unmerge(self) -> None:
        """Undo `merge`, to the bit."""
        for key, original in (self._merged or {}).items():
            self._wrappers[key].store(*original)
            self._wrappers[key].install(self.model)
        if self._merged is not None:
            self._tying.update()
        self._merged = None

    def delete(self, name: str) -> None:
        """Remove one adapter and keep the others. ValueError while several are merged, and for a prior."""
        if len(self) == 1:
            self.remove()
            return
        if self.merged:
            raise ValueError(
                f"{', '.join(self)} are merged: unmerge() first, or adapters_of(model).remove() to keep it so"
            )
        if later := [other for other, injection in self.items() if name in injection.prior]:
            raise ValueError(f"{name!r} is a prior of {', '.join(later)}, which would be nothing without it")
        others = (other for other in self.active if other != name)
        self.activate(*others, composition=self.composition)
        self._by_name.pop(name).forget()
        for key, wrapper in list(self._wrappers.items()):
            wrapper.drop(name)
            if not wrapper.entries:
                wrapper.uninstall(self.model)
                del self._wrappers[key]

    def remove(self) -> nn.Module:
        """Remove all adapters: merged weights stay, otherwise the model is as it was before the first one."""
        if self._merged is None:
            self.activate()
            for wrapper in self._wrappers.values():
                wrapper.uninstall(self.model)
        for injection in self._by_name.values():
            injection.forget()
        for name, parameter in base_parameters(self.model).items():
            parameter.requires_grad_(self._required_grad.get(name, True))
        self._by_name, self._wrappers, self._merged, self.active = {}, {}, None, ()
        self.model.__dict__.pop(_KEY, None)
        unguard(self.model)
        self._passes.remove()
        return self.model

    def _adapted(self) -> str:
        """The words for what a saved folder would load with or without; "" where the model is plain."""
        beside = next((key for key in self.model._modules if key.startswith(BESIDE)), "")
        if beside:
            return f"without {beside.removeprefix(BESIDE)!r}"
        wrapped = "" if self.merged else next(iter(self._wrappers), "")
        return f"with random weights in {wrapped}" if wrapped else ""


def _without_tasks(model: nn.Module, given: Any, named: dict[str, Any]) -> Any:
    """The last of the model's hooks that see a pass: adapters know its tasks, the model does not."""
    return given, {key: value for key, value in named.items() if key != "task_ids"}


def adapters_of(model: nn.Module) -> AdapterSet[Any]:
    """The named adapters of `model`; empty where it has none."""
    model = unwrapped(model)
    return model.__dict__.get(_KEY) or AdapterSet(model)
