"""Rules of the whole package: which way imports point, and names that are unique."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_zoo

ROOT = Path(lora_zoo.__file__).parent
ROOMS = (
    {"core"},
    {"hosts", "inits", "kernels", "compositions"},
    {"injection"},
    {"formats"},
    {"variants", "programs"},
    {"pocket", "metrics", "config"},
    {"runs", "models"},
    {"terminal", "tasks", "updates"},
    {"training"},
    {"launchers"},
    {"analysis"},
    {"claims"},
    {"sweeps"},
    {"report"},
    {"bench"},
    {"conformance"},
)
"""From the bottom up: a room imports itself and what lies below it."""
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
COMMANDS = {"run", "compare", "merge", "compose", "export", "load", "spectra", "docs_tables", "__main__", ""}
"""Modules at the top: commands, and the package itself, which loads its names when they are asked for."""
LIFTED = {"core", "hosts", "inits", "kernels", "compositions", "injection", "formats", "variants"}
"""Rooms of the adapters: someone can lift them out, so they need torch, the standard library, and `regex`."""
FOREIGN_TO_ANALYSIS = {"hydra", "omegaconf", "wandb", "transformers", "datasets"}


def modules() -> dict[str, Path]:
    def dotted(path: Path) -> str:
        return ".".join(("lora_zoo", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")

    return {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """Every module that a module imports: within functions and for types alone, too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{module}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


GRAPH = {module: set(imports(module)) & MODULES.keys() - {module} for module in MODULES}


def room_of(module: str) -> str:
    return ([*module.split("."), ""])[1]


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = dict(GRAPH)
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"in a circle, or above one: {sorted(left)}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    room = room_of(module)
    for other in GRAPH[module]:
        below = room_of(other)
        if room in COMMANDS:
            continue
        assert below in LEVEL or other == "lora_zoo", f"{module} imports the command {other}"
        assert below in ("", room) or LEVEL[below] < LEVEL[room], f"{module} imports {other}"
        assert below != "variants" or room == "variants", f"{module} imports {other}: variants are scanned"


def test_a_variant_knows_no_other_variant() -> None:
    from lora_zoo.core.variants import VARIANTS

    for module in {cls.__module__ for cls in VARIANTS.values()}:
        assert not GRAPH[module] & {cls.__module__ for cls in VARIANTS.values()}, module


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in LIFTED])
def test_adapters_import_torch_and_the_standard_library_alone(module: str) -> None:
    for other in imports(module):
        top = other.split(".")[0]
        assert top in {*sys.stdlib_module_names, "torch", "safetensors", "regex", "lora_zoo"}, other


@pytest.mark.parametrize(
    "module", [module for module in MODULES if room_of(module) in ("analysis", "claims")]
)
def test_analysis_knows_nothing_that_trains(module: str) -> None:
    for other in imports(module):
        assert other.split(".")[0] not in FOREIGN_TO_ANALYSIS, other


def test_class_names_are_unique() -> None:
    names: Counter[str] = Counter()
    for path in MODULES.values():
        names.update(n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


DOCSTRINGS = [
    (module, node.name if not isinstance(node, ast.Module) else "", ast.get_docstring(node) or "")
    for module, path in MODULES.items()
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
]


def test_docstrings_open_with_an_imperative_or_a_noun_phrase() -> None:
    questions = ("What ", "Whether ", "Who ", "Which ", "Where ", "When ", "How ", "Why ")
    asking = [
        f"{module}:{name}: {text[:60]}" for module, name, text in DOCSTRINGS if text.startswith(questions)
    ]
    assert not asking, "\n".join(asking)


def test_functions_have_names_that_say_what_they_return() -> None:
    riddles = {"said", "told", "named", "listed", "shown", "there", "at"}
    found = [
        f"{module}: {node.name}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.strip("_") in riddles
    ]
    assert not found
