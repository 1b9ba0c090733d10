"""Inject adapters into any model. The package is callable: `lora_zoo.inject(model, "dora", rank=8)`."""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that calls its function `inject`: both are called `lora_zoo.inject`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from lora_zoo.inject.injection import inject

        return inject(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
