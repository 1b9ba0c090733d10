"""The source that decides what an adapter learns: files of its members and, with them, what they import.

Hashed as a syntax tree, so that comments, docstrings, formatting, the texts of errors and facts for people
alone do not count.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lora_zoo.core.adapter import Variant
from lora_zoo.core.composition import COMPOSITIONS
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.init import INITS, find_init
from lora_zoo.core.kernel import KERNELS
from lora_zoo.core.program import PROGRAMS
from lora_zoo.core.user_files import OWN
from lora_zoo.core.variants import VARIANTS
from lora_zoo.hosts.find import HOSTS
from lora_zoo.injection.inject import inject

ROOMS = ("core", "compositions", "hosts", "inits", "injection", "kernels", "variants", "programs")
"""The rooms of lora_zoo in which imports are followed: those whose code an adapter is made of."""
_FINDING = ("core.errors", "core.lazy", "core.registry", "core.user_files")
"""What finds members and words errors, and computes nothing."""
FOR_PEOPLE = ("title", "baseline")
"""Facts of a variant that reports show and that nothing computes with."""

Source = Callable[[type[Variant], Mapping[str, Any]], str]
"""The text that stands for the code of a run: of its variant and its configuration."""


def own_files(variant: type[Variant], config: Mapping[str, Any]) -> str:
    """The files of variant and program alone, letter by letter: all that older records hash."""
    return "\n".join(map(_text_of, (variant, *_programs(config))))


def with_imports(variant: type[Variant], config: Mapping[str, Any]) -> str:
    """The syntax of every file that decides a run: of its members, and of what they import."""
    members = tuple(_members(variant, config))
    if members not in _OF_OURS:
        text, ours = _with_imports(members)
        if not ours:  # a user's own file may change, or be loaded, while this process runs
            return text
        _OF_OURS[members] = text
    return _OF_OURS[members]


_OF_OURS: dict[tuple[Any, ...], str] = {}
"""The text of members whose files are all ours, by the members."""


def _with_imports(members: Iterable[Any]) -> tuple[str, bool]:
    """The text, and True where every file is ours."""
    files, bare = dict[str, Path](), list[str]()
    for made in members:
        if file := _file_of(made.__module__):
            _follow(made.__module__, file, files)
        else:
            bare.append(f"{made.__module__}.{made.__qualname__}")  # defined interactively: it has no file
    stamped = ((_label(name), _syntax(file, _changed(name, file))) for name, file in files.items())
    text = "\n".join([*sorted(bare), *(f"{label} {syntax}" for label, syntax in sorted(stamped))])
    return text, not bare and all(name.startswith("lora_zoo.") for name in files)


def _programs(config: Mapping[str, Any]) -> list[Any]:
    chosen = config.get("program") or {}
    return [PROGRAMS.find(chosen["name"])] if chosen else []


def _text_of(made: Any) -> str:
    try:
        return Path(inspect.getfile(made)).read_text()
    except (OSError, TypeError):
        return str(made.__qualname__)  # defined interactively: it has no file


def _members(variant: type[Variant], config: Mapping[str, Any]) -> Iterator[Any]:
    """The classes and functions that make a run's adapter, and variants that it or its program names."""
    programs = _programs(config)
    inner = [*variant.made_of, *([variant.shared_form, *config["program"].values()] if programs else [])]
    inner = [name for name in inner if isinstance(name, str)]
    for cls in (variant, *(VARIANTS.find(name) for name in inner if name in VARIANTS)):
        lineage = (base for owner in (cls, cls.hooks) for base in owner.__mro__)
        yield from (base for base in lineage if _decides(base.__module__, cls.__module__))
        if kernel := getattr(cls, "kernel", ""):
            yield KERNELS.find(kernel)
    if "init" in hyperparameters(variant):
        asked = config.get("init", "auto")
        init = find_init(hyperparameters(variant)["init"].default if asked == "auto" else asked)
        yield INITS[init.family].draw
    if composition := hyperparameters(variant).get("composition"):
        yield COMPOSITIONS.find((config.get("variant") or {}).get("composition", composition.default))
    yield from (inject, *HOSTS.values(), *programs)


def _decides(module: str, of: str) -> bool:
    """True if a module's source is a part of what the module `of` does: of our rooms, or its own package."""
    top, _, rest = module.partition(".")
    ours = rest.partition(".")[0] in ROOMS and rest not in _FINDING
    return ours if top == "lora_zoo" else top == of.partition(".")[0]


def _file_of(module: str) -> Path | None:
    try:
        loaded = sys.modules.get(module)
        spec = importlib.util.find_spec(module) if loaded is None else None
    except (ImportError, ValueError):
        return None
    origin = getattr(loaded, "__file__", None) if loaded else spec and spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _label(module: str) -> str:
    """The module's name; none of a user's own file, whose place does not count."""
    return "" if module.startswith(OWN) else module


def _follow(module: str, file: Path, found: dict[str, Path]) -> None:
    """Add to `found` the module and what it imports of ours, of its own package, or from its own folder."""
    found[module] = file
    changed = _changed(module, file)
    # Ours are where they are; a user's own file may appear, or be loaded, while this process runs.
    decide = _deciding_of_ours if module.startswith("lora_zoo.") else _deciding
    for name, imported in decide(module, file, changed):
        if name not in found:
            _follow(name, imported, found)


def _changed(module: str, file: Path) -> int:
    """The time of the last change of a file; of one of ours, as this process has found it first."""
    return _first_changed(file) if module.startswith("lora_zoo.") else file.stat().st_mtime_ns


@functools.cache
def _first_changed(file: Path) -> int:
    return file.stat().st_mtime_ns


def _deciding(module: str, file: Path, changed: int) -> tuple[tuple[str, Path], ...]:
    """The name and file of each import of a module that decides what the module does."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names = _imported(file, package, changed)
    return tuple((name, found) for name in names if (found := _deciding_file(name, module, file)))


_deciding_of_ours = functools.cache(_deciding)


def _deciding_file(name: str, importer: str, file: Path) -> Path | None:
    if _decides(name, importer):
        return _installed(name) if name.startswith("lora_zoo.") else _file_of(name)
    beside = file.parent.joinpath(*name.split(".")).with_suffix(".py")
    return beside if not importer.startswith("lora_zoo.") and beside.is_file() else None


_installed = functools.cache(_file_of)


def _imported(file: Path, package: str, changed: int) -> tuple[str, ...]:
    """The modules that a file imports by their whole names, or might: a name may be one's function."""
    names = list[str]()
    for level, module, imported in _parsed(file, changed).imports:
        near = importlib.util.resolve_name("." * level, package) if level and package else ""
        origin = ".".join(filter(None, (near, module)))
        names += [origin, *(f"{origin}.{name}" for name in imported)] if origin else imported
    return tuple(dict.fromkeys(names))


def _syntax(file: Path, changed: int) -> str:
    return _parsed(file, changed).digest


class _Parsed(NamedTuple):
    """The digest of a file, and the level, module and names of each of its imports."""

    digest: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]


@functools.cache
def _parsed(file: Path, changed: int) -> _Parsed:
    tree = ast.parse(file.read_text())
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = tuple(alias.name for alias in node.names)
            of = (node.level, node.module or "") if isinstance(node, ast.ImportFrom) else (0, "")
            imports.append((*of, names))
    return _Parsed(_digest(tree), tuple(imports))


def digest(source: str) -> str:
    """SHA-256 of Python source without its comments, docstrings, formatting and errors' texts."""
    return _digest(ast.parse(source))


def _digest(tree: ast.Module) -> str:
    return hashlib.sha256(_canonical(tree).encode()).hexdigest()


def _canonical(node: Any) -> str:
    if isinstance(node, list):
        return f"[{','.join(_canonical(part) for part in node if not _says_nothing(part))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields: Iterable[tuple[str, Any]] = ast.iter_fields(node)
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        fields = [("exc", node.exc.func)]
    # What is empty is left out: newer versions of Python have fields that older ones lack.
    told = (f"{name}={_canonical(value)}" for name, value in fields if value is not None and value != [])
    return f"{type(node).__name__}({','.join(told)})"


def _says_nothing(node: Any) -> bool:
    """True for a string that stands by itself, a docstring, and for the facts that people alone read."""
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(isinstance(target, ast.Name) and target.id in FOR_PEOPLE for target in targets)
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
