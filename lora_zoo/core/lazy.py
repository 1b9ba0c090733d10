"""Names of a package that are imported when they are first asked for."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(
    package: str, homes: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """A package's `__getattr__`: a name of `homes` comes from the module `package.<home>`.

    `renamed` maps former names, which warn, to present ones: names of `homes`, or modules of the package.
    AttributeError for another name.
    """

    def attribute(name: str) -> Any:
        present = (renamed or {}).get(name, name)
        if present != name:
            warnings.warn(f"{package}.{name} is now {package}.{present}", DeprecationWarning, stacklevel=2)
        if present in homes:
            return getattr(import_module(f"{package}.{homes[present]}"), present)
        if present != name:
            return import_module(f"{package}.{present}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(homes)}")

    return attribute


__all__ = ["lazy"]
