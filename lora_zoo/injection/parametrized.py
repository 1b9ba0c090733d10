"""The wrapper of a parameter that its module reads by itself."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from lora_zoo.core.host import Host
from lora_zoo.hosts.parameter import ParameterHost
from lora_zoo.injection.wrappers import AdapterWrapper, LayerWrapper, moved


class ParametrizedWeight(AdapterWrapper):
    """A parametrisation (torch.nn.utils.parametrize) of a parameter that its module reads by itself."""

    owner: nn.Module

    def __init__(self, name: str, owner: nn.Module, parameter: str) -> None:
        super().__init__(name)
        self.__dict__["owner"] = owner  # not a submodule: the owner contains this wrapper
        self.parameter = parameter
        self.within, self.kept = False, list[Tensor]()  # a list: a Parameter would be registered
        self.hooks: list[RemovableHandle] = []

    def forward(self, stored: Tensor) -> Tensor:
        """The effective tensor; of stacked experts, which are read once an expert, computed once a pass."""
        if not self.within or torch.compiler.is_compiling():
            return self.effective(stored)
        if not self.kept:
            self.kept.append(self.effective(stored))
        return self.kept[0]

    def _begin(self, *_: object) -> None:
        self.within = True

    def _end(self, *_: object) -> None:
        self.within, self.kept = False, []

    @property
    def stored(self) -> nn.Parameter:
        return ParameterHost(self.owner, self.parameter).tensor()  # type: ignore[return-value]

    def store(self, tensor: nn.Parameter, bias: nn.Parameter | None) -> None:
        setattr(self.owner, self.parameter, moved(tensor, self.stored))

    def install(self, model: nn.Module) -> None:
        self.follow(self.stored.device)
        self.owner.__dict__.setdefault(_ORDER, list(self.owner._parameters))
        _give_own_class(self.owner)
        parametrize.register_parametrization(self.owner, self.parameter, self, unsafe=True)
        if self.stored.ndim > 2:
            begin = self.owner.register_forward_pre_hook(self._begin)
            self.hooks = [begin, self.owner.register_forward_hook(self._end, always_call=True)]

    def uninstall(self, model: nn.Module) -> None:
        while self.hooks:
            self.hooks.pop().remove()
        _give_own_class(self.owner)
        parametrize.remove_parametrizations(self.owner, self.parameter, leave_parametrized=False)
        held = self.owner._parameters
        self.owner._parameters = {name: held[name] for name in self.owner.__dict__[_ORDER] if name in held}
        if not parametrize.is_parametrized(self.owner):
            del self.owner.__dict__[_ORDER]


_ORDER = "_parameters_order"
"""The owner\'s order of parameters: removing a parametrisation would append its parameter."""


def _give_own_class(owner: nn.Module) -> None:
    """Give a parametrised module its own class: copies share the one that torch adds properties to."""
    if parametrize.is_parametrized(owner):
        cls = type(owner)
        owner.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))


def make_wrapper(host: Host, name: str) -> AdapterWrapper:
    """Make the wrapper of the tensor called `name` that stores the matrix of `host`."""
    wrapper: AdapterWrapper
    if isinstance(host, ParameterHost):
        wrapper = ParametrizedWeight(name, host.layer, host.parameter)
    else:
        wrapper = LayerWrapper(name, host.layer)
    wrapper.training = host.layer.training
    return wrapper
