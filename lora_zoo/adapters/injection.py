"""Put adapters into any model, use it, merge or take them out again.

adapted = inject(model, "dora", rank=8, target_modules=["q", "v"])
train(model, adapted.parameters())
with adapted.disabled(): ...          # exactly the model from before
adapted.merge(); adapted.remove()     # an ordinary model with the effective weights
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.adapters.adapter import Adapter, Plan, Site, Variant
from lora_zoo.adapters.hosts import Host, find_host
from lora_zoo.adapters.method import Method
from lora_zoo.adapters.randomness import Clock
from lora_zoo.adapters.registry import accepted, check_hyperparameters, find_variant, unknown
from lora_zoo.adapters.targets import Targets


class Update(NamedTuple):
    """One matrix of an adapted model: W before, and ΔW = W' - W, both (O, I), float32 or wider."""

    name: str
    W_OI: Tensor
    dW_OI: Tensor


class Adapted(nn.Module):
    """Stands where the layer stood: the frozen layer, and the adapter that says what it effectively is."""

    def __init__(self, host: Host, adapter: Adapter) -> None:
        super().__init__()
        self.layer, self.adapter = host.layer, adapter
        self.host, self.active = host, True

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(x, self.host) if self.active else self.host.base(x)

    @property
    def weight(self) -> Tensor:
        """The effective weight in the layer's own layout, for code that reads `.weight`."""
        W_OI = self.host.matrix()
        effective = self.adapter.weight(W_OI).to(W_OI.dtype) if self.active else W_OI
        return self.host.stored(effective)

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.layer, "bias", None)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)  # in_features, padding_idx, …


class Injection:
    """The adapters of one model by the names of their layers. Made by `inject`; works in place."""

    def __init__(
        self, model: nn.Module, variant: type[Variant], plan: Plan, hyper: Mapping[str, Any], seed: int
    ) -> None:
        self.model, self.variant, self.adapted = model, variant, plan.adapted
        self.hyper, self.seed, self.clock = dict(hyper), seed, Clock()
        self._required_grad = {id(p): p.requires_grad for p in model.parameters()}
        self._tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
        self._merged: dict[str, nn.Parameter] | None = None
        self.layers = self._build()
        self.adapters: dict[str, Adapter] = {n: layer.adapter for n, layer in self.layers.items()}
        self.method: Method = variant.method(
            self.adapters,
            **accepted(variant.method.__init__, hyper),
        )
        # Up to here the model is as it was: nothing below refuses.
        self._untied = _untie(model, plan.in_full)
        self.in_full = list({id(model.get_parameter(n)): n for n in reversed(plan.in_full)}.values())[::-1]
        self.originals = {n: model.get_parameter(n).detach().clone() for n in self.in_full}
        model.requires_grad_(False)
        for name, layer in self.layers.items():
            _put(model, name, layer)
        for name in self.in_full:
            model.get_parameter(name).requires_grad_(True)
        self._hook = model.register_forward_pre_hook(self.clock.advance)

    def _build(self) -> dict[str, Adapted]:
        hosts: dict[str, Host] = {}
        for name in self.adapted:
            host = find_host(self.model.get_submodule(name))
            assert host is not None, name
            hosts[name] = host
        shapes = {name: (host.matrix().shape[0], host.matrix().shape[1]) for name, host in hosts.items()}
        shared = self.variant.method.shared(shapes, **self.hyper)
        arguments = accepted(self.variant.__init__, self.hyper)
        return {
            name: Adapted(host, self.variant(Site(name, host, self.seed, self.clock, shared), **arguments))  # type: ignore[call-arg, arg-type]
            for name, host in hosts.items()
        }

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name: the adapters' own, then those that train in full."""
        return self._adapter_parameters() | {n: self.model.get_parameter(n) for n in self.in_full}

    def _adapter_parameters(self) -> dict[str, nn.Parameter]:
        every = (
            (f"{name}.{p_name}", p) for name, a in self.adapters.items() for p_name, p in a.named_parameters()
        )
        return {name: p for name, p in every if p.requires_grad}

    def parameters(self) -> list[nn.Parameter]:
        return list(self.named_parameters().values())

    def __len__(self) -> int:
        return len(self.adapters)

    def __iter__(self) -> Iterator[Update]:
        """Every changed matrix as `name, W, ΔW`, detached; W is the matrix from before the injection."""
        with torch.no_grad(), self._unmerged():
            for name, adapter in self.adapters.items():
                W_OI = _wide(self.layers[name].host.matrix())
                yield Update(name, W_OI, adapter.weight(W_OI) - W_OI)
            for name, original in self.originals.items():
                if original.ndim == 2:
                    W_OI = _wide(original)
                    yield Update(
                        name.removesuffix(".weight"), W_OI, _wide(self.model.get_parameter(name)) - W_OI
                    )

    def param_groups(self, *, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Optimiser groups: the variant's own for its adapters, and one or two for what trains in full.

        Of the latter, matrices decay and vectors (biases, norms) do not, as in transformers' Trainer.
        """
        own = self._adapter_parameters()
        groups = self.method.param_groups(own, lr=lr, weight_decay=weight_decay) if own else []
        full = [self.model.get_parameter(n) for n in self.in_full]
        for decay, members in (
            (weight_decay, [p for p in full if p.ndim > 1]),
            (0.0, [p for p in full if p.ndim <= 1]),
        ):
            groups += [{"params": members, "lr": lr, "weight_decay": decay}] if members else []
        return groups

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is exactly the one from before the injection."""
        with self._unmerged():
            self.enable(False)
            trained = {n: self.model.get_parameter(n).detach().clone() for n in self.in_full}
            self._write(self.originals)
            try:
                yield
            finally:
                self._write(trained)
                self.enable()

    @contextlib.contextmanager
    def _unmerged(self) -> Iterator[None]:
        """Inside, merged weights are out of their layers; they are put back afterwards."""
        merged = self._merged is not None
        self.unmerge()
        try:
            yield
        finally:
            if merged:
                self.merge()

    def enable(self, active: bool = True) -> None:
        """Switch the adapters on (or off; `disabled` also restores what trains in full)."""
        for layer in self.layers.values():
            layer.active = active

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.model.get_parameter(name).copy_(value)

    def merge(self) -> None:
        """Write each effective weight into its layer and put the plain layer back in its place.

        The original parameters are kept, so that `unmerge` is exact; `remove` lets go of them.
        """
        if self._merged is not None:
            return
        if not self.variant.mergeable:
            raise ValueError(f"{self.variant.name} is no function of the weight alone and cannot be merged")
        self._merged = {}
        for name, layer in self.layers.items():
            original: nn.Parameter = layer.layer.weight  # type: ignore[assignment]
            _warn_if_tied(self.model, name, original)
            layer.layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
            self._merged[name] = original
            _put(self.model, name, layer.layer)

    def unmerge(self) -> None:
        """Undo `merge`, to the bit."""
        for name, original in (self._merged or {}).items():
            self.layers[name].layer.weight = original
            _put(self.model, name, self.layers[name])
        self._merged = None
        _state_tied(self.model, self._tied and not self._untied)

    def remove(self) -> nn.Module:
        """Take the adapters out for good: merged weights stay, otherwise the model is as it was before."""
        if self._merged is None:
            for name, layer in self.layers.items():
                _put(self.model, name, layer.layer)
            self._write(self.originals)
            for name, tied in self._untied.items():
                _put(self.model, name, tied)
            _state_tied(self.model, self._tied)
        self._hook.remove()
        for name, original in (self._merged or {}).items():
            merged: nn.Parameter = self.layers[name].layer.weight  # type: ignore[assignment]
            self._required_grad[id(merged)] = self._required_grad[id(original)]
        for parameter in self.model.parameters():
            parameter.requires_grad_(self._required_grad.get(id(parameter), True))
        self.layers, self.adapters, self.in_full, self._merged = {}, {}, [], None
        return self.model

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the adapted model has and the base has not: `layer.tensor` by name."""
        own = {f"{n}.{k}": v for n, a in self.adapters.items() for k, v in a.state_dict().items()}
        return own | {n: self.model.get_parameter(n).detach() for n in self.in_full}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` in. ValueError where a tensor is missing, left over or of another shape."""
        mine = self.state_dict()
        for name in mine.keys() ^ state.keys():
            raise ValueError(f"adapter state: {name!r} is {'missing' if name in mine else 'not expected'}")
        for name, tensor in mine.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"adapter state: {name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
                )
            tensor.copy_(state[name])

    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def total(self) -> int:
        """Number of parameters of model and adapters together, tied ones once."""
        return sum(p.numel() for p in self.model.parameters())


def inject(
    model: nn.Module,
    variant: str | type[Variant] = "lora",
    *,
    target_modules: Targets = ("q", "v"),
    modules_to_save: Sequence[str] = (),
    seed: int = 0,
    **hyper: Any,
) -> Injection:
    """Freeze `model`, adapt it in place and return the handle to the adapters.

    `hyper` are the variant's own keyword arguments (rank, alpha, init, …). Raises ValueError for a name,
    target, value or combination that does not exist, before anything is changed.
    """
    cls = find_variant(variant) if isinstance(variant, str) else variant
    complete = check_hyperparameters(cls, hyper)
    if complete.get("rank", 1) < 1:
        raise ValueError(f"{cls.name}: rank must be at least 1; got {complete['rank']}")
    init = complete.get("init")
    if init is not None and not cls.allows(init):
        raise ValueError(f"{cls.name} cannot start from init={init}: " + unknown("init", init, cls.inits))
    if any(isinstance(module, Adapted) for module in model.modules()):
        raise ValueError("the model is adapted already; call remove() on its injection first")
    plan = cls.plan(model, target_modules, modules_to_save)
    for name in plan.in_full:
        if any(name.startswith(f"{adapted}.") for adapted in plan.adapted):
            raise ValueError(f"{name} cannot both be adapted and train in full; drop it from one of the two")
    return Injection(model, cls, plan, complete, seed)


def _put(model: nn.Module, name: str, part: nn.Module | nn.Parameter) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, part)


def _wide(W: Tensor) -> Tensor:
    return W.detach().to(torch.promote_types(W.dtype, torch.float32))


def _names_of(model: nn.Module, parameter: nn.Parameter) -> list[str]:
    return [n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter]


def _untie(model: nn.Module, in_full: Sequence[str]) -> dict[str, nn.Parameter]:
    """Give a parameter that trains in full its own copy where it is tied to one that stays frozen."""
    untied: dict[str, nn.Parameter] = {}
    for name in in_full:
        parameter = model.get_parameter(name)
        frozen = [n for n in _names_of(model, parameter) if n not in in_full]
        if frozen:
            untied[name] = parameter
            warnings.warn(f"{name} is tied to {frozen[0]}; it trains as a copy of its own", stacklevel=4)
            _put(model, name, nn.Parameter(parameter.detach().clone()))
            _state_tied(model, False)
    return untied


def _warn_if_tied(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    others = [n for n in _names_of(model, parameter) if not n.startswith(f"{name}.")]
    if others:
        warnings.warn(f"merging unties {name} from {others[0]}: the model grows by a copy", stacklevel=3)
        _state_tied(model, False)


def _state_tied(model: nn.Module, tied: bool) -> None:
    """Tell transformers whether the saved model's head is its embedding."""
    config = getattr(model, "config", None)
    if hasattr(config, "tie_word_embeddings"):
        config.tie_word_embeddings = tied  # type: ignore[union-attr]
