"""Layer types by name, and the host of a layer."""

from torch import nn

from lora_zoo.core.host import Host, LayerHost
from lora_zoo.core.registry import Registry

HOSTS: Registry[type[Host]] = Registry("layer type", "lora_zoo.hosts", attribute="kind")


def find_host(layer: nn.Module) -> LayerHost | None:
    """The host of `layer`, or None where no layer type accepts it."""
    hosts = (cls for cls in HOSTS.values() if issubclass(cls, LayerHost))
    return next((cls(layer) for cls in hosts if cls.accepts(layer)), None)
