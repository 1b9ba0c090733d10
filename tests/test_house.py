"""Rules of the whole package: which way imports point, and names that are unique."""

import ast
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_zoo

ROOT = Path(lora_zoo.__file__).parent
ROOMS = (
    {"core"},
    {"quantizers"},
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
COMMANDS = {"run", "compare", "merge", "compose", "export", "load", "spectra", "quantization", "docs_tables"}
COMMANDS |= {"docs_pages", "docs_evidence", "choices", "completion", "doctor", "__main__", ""}
"""Modules at the top: commands, and the package itself, which loads its names when they are asked for."""
LIFTED = {"core", "quantizers", "hosts", "inits", "kernels", "compositions", "injection", "formats"}
LIFTED |= {"variants"}
"""Rooms of the adapters: someone can lift them out, so they need torch, the standard library, and `regex`."""
FOREIGN_TO_ANALYSIS = {"hydra", "omegaconf", "wandb", "transformers", "datasets"}


def modules() -> dict[str, Path]:
    def dotted(path: Path) -> str:
        return ".".join(("lora_zoo", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")

    return {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}


MODULES = modules()


@functools.cache
def nodes(module: str) -> list[ast.AST]:
    """The nodes of a module's syntax tree that import, or have a name or a docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.Import, ast.ImportFrom)
    return [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, kinds)]


def imports(module: str) -> Iterator[str]:
    """Every module that a module imports: within functions and for types alone, too."""
    for node in nodes(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{module}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


@pytest.fixture(scope="module", name="graph")
def imported_by_each() -> dict[str, set[str]]:
    return {module: set(imports(module)) & MODULES.keys() - {module} for module in MODULES}


def room_of(module: str) -> str:
    return ([*module.split("."), ""])[1]


def test_no_modules_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    left = dict(graph)
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"in a circle, or above one: {sorted(left)}"


def test_imports_point_down(graph: dict[str, set[str]]) -> None:
    for module, other in ((module, other) for module, others in graph.items() for other in others):
        room, below = room_of(module), room_of(other)
        if room in COMMANDS:
            continue
        assert below in LEVEL or other == "lora_zoo", f"{module} imports the command {other}"
        assert below in ("", room) or LEVEL[below] < LEVEL[room], f"{module} imports {other}"
        assert below != "variants" or room == "variants", f"{module} imports {other}: variants are scanned"


def test_a_variant_knows_no_other_variant(graph: dict[str, set[str]]) -> None:
    from lora_zoo.core.variants import VARIANTS

    for module in {cls.__module__ for cls in VARIANTS.values()}:
        assert not graph[module] & {cls.__module__ for cls in VARIANTS.values()}, module


def test_adapters_import_torch_and_the_standard_library_alone() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "safetensors", "regex", "lora_zoo"}
    for module in (module for module in MODULES if room_of(module) in LIFTED):
        for other in imports(module):
            assert other.split(".")[0] in allowed, f"{module} imports {other}"


def test_analysis_knows_nothing_that_trains() -> None:
    for module in (module for module in MODULES if room_of(module) in ("analysis", "claims")):
        for other in imports(module):
            assert other.split(".")[0] not in FOREIGN_TO_ANALYSIS, f"{module} imports {other}"


def test_class_names_are_unique() -> None:
    names: Counter[str] = Counter()
    for module in MODULES:
        names.update(node.name for node in nodes(module) if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_docstrings_open_with_an_imperative_or_a_noun_phrase() -> None:
    questions = ("What ", "Whether ", "Who ", "Which ", "Where ", "When ", "How ", "Why ")
    asking = [
        f"{module}:{getattr(node, 'name', '')}: {text[:60]}"
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and (text := ast.get_docstring(node) or "").startswith(questions)
    ]
    assert not asking, "\n".join(asking)


def test_functions_have_names_that_say_what_they_return() -> None:
    riddles = {"said", "told", "named", "listed", "shown", "there", "at"}
    found = [
        f"{module}: {node.name}"
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.FunctionDef) and node.name.strip("_") in riddles
    ]
    assert not found
