"""One file a variant; a file here is a registered variant. `lora_zoo.variants()` lists their names.

The package is itself the function, since both are called by this name.
"""

import sys
from types import ModuleType


def variants() -> list[str]:
    """The names of all registered variants, in alphabetical order."""
    from lora_zoo.core.variants import VARIANTS

    return list(VARIANTS)


class _CallablePackage(ModuleType):
    def __call__(self) -> list[str]:
        return variants()


sys.modules[__name__].__class__ = _CallablePackage
