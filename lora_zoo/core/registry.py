"""Named members of a kind, found by file or by entry point, imported when they are first asked for.

VARIANTS = Registry("variant", "lora_zoo.variants")       # scans the package's files, recursively

@VARIANTS.register("mine")                                # in any of those files
class Mine(Adapter): ...

Another distribution adds members by entry points in the group `lora_zoo.<kind>`, and a user's own file when
it is run (`user_files.run_file`).
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from lora_zoo.core.errors import unknown
from lora_zoo.core.user_files import names_in

T = TypeVar("T")
M = TypeVar("M")


class Registry(Mapping[str, T], Generic[T]):
    """The members of one kind by name, in alphabetical order.

    Iterating imports nothing: names are read from the sources. A file that cannot be imported costs its own
    members alone; asking for one of them raises ValueError with the reason. `check` may refuse a member,
    `attribute` is where a member keeps its own name. Where names are data of the files (`by_import`), the
    first look imports them all, and a warning names those that cannot be imported. `renamed` maps former
    names to present ones; they are found, with a warning, and not listed.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        *,
        check: Callable[[str, Any], None] = lambda name, member: None,
        attribute: str = "",
        by_import: bool = False,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self.package, self._check, self._attribute = kind, package, check, attribute
        self._by_import = self._unread = by_import
        self._renamed = renamed or {}
        self._members: dict[str, T] = {}
        self._origins: dict[str, tuple[str, str]] = {}

    def register(self, name: str) -> Callable[[M], M]:
        """Add what stands below under `name`. ValueError for a name that is taken."""

        def add(member: M) -> M:
            self.add(name, member)
            return member

        return add

    def add(self, name: str, member: Any, *, source: Any = None) -> None:
        """Add `member` under `name`. ValueError for a name that another member has.

        `source` is the class or function that it is made of, where it is neither itself. A module that is
        loaded again replaces its own members.
        """
        origin = _origin(source or member)
        taken = self._origins.get(name) or (self._modules.get(name, origin[0]), origin[1])
        again = _reloadable(source or member)
        if taken != origin or (not again and self._members.get(name, member) != member):
            raise ValueError(f"the {self.kind} name {name!r} is taken by {'.'.join(taken)}")
        self._check(name, member)
        if self._attribute:
            setattr(member, self._attribute, name)
        self._members[name], self._origins[name] = member, origin

    def find(self, name: str) -> T:
        """The member called `name`. ValueError with the nearest names, or with why it cannot be loaded."""
        if name in self._renamed:
            warnings.warn(f"{self.kind} {name!r} is called {self._renamed[name]!r} now", stacklevel=2)
            name = self._renamed[name]
        if name not in self:
            raise ValueError(unknown(self.kind, name, self))
        if name not in self._members:
            self._load(name)
        return self._members[name]

    def file_of(self, name: str) -> Path | None:
        """The file in which an installed member stands, found without importing it; None for another one."""
        point = self._entry_points.get(name)
        module = self._modules.get(name) or (point.module if point else "")
        spec = importlib.util.find_spec(module) if module else None
        return Path(spec.origin) if spec and spec.origin else None

    def __getitem__(self, name: str) -> T:
        if name in self._members:
            return self._members[name]
        if name not in self:
            raise KeyError(name)
        return self.find(name)

    def __contains__(self, name: object) -> bool:
        self._read()
        return (
            name in self._renamed
            or name in self._members
            or name in self._modules
            or name in self._entry_points
        )

    def __iter__(self) -> Iterator[str]:
        self._read()
        return iter(sorted({*self._members, *self._modules, *self._entry_points}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _read(self) -> None:
        """Import every file of the package, once, where that is how names are found."""
        if not self._unread:
            return
        for module in _files(self.package):
            before = dict(self._members)
            try:
                importlib.import_module(module)
            except (ImportError, SyntaxError) as reason:
                self._members = before
                warnings.warn(f"{self.kind}s of {module} are left out: {reason}", stacklevel=4)
        self._unread = False

    def _load(self, name: str) -> None:
        try:
            if name in self._modules:
                importlib.import_module(self._modules[name])
            else:
                self.add(name, self._entry_points[name].load())
        except Exception as error:  # another's file may raise anything; it disables itself alone
            raise ValueError(
                f"{self.kind} {name!r} cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    @cached_property
    def _modules(self) -> dict[str, str]:
        """Name -> the module of the package that registers it."""
        return {
            name: module
            for module, path in _files(self.package).items()
            for name in names_in(path)
            if not self._by_import
        }

    @cached_property
    def _entry_points(self) -> dict[str, Any]:
        group = f"lora_zoo.{self.kind.replace(' ', '_')}"
        return {point.name: point for point in entry_points(group=group)}


def _files(package: str) -> dict[str, Path]:
    """The modules of a package and of those in it, with their files."""
    spec = importlib.util.find_spec(package)
    return {
        ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
        for folder in map(Path, (spec.submodule_search_locations if spec else None) or ())
        for path in sorted(folder.rglob("*.py"))
    }


def _reloadable(member: Any) -> bool:
    """True for a class or a function, which a module that is loaded again makes anew."""
    return hasattr(member, "__qualname__")


def _origin(source: Any) -> tuple[str, str]:
    cls = type(source)
    return source.__module__, getattr(source, "__qualname__", cls.__qualname__)
