"""Rules of the code's shape that a person would forget to check."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapter_cases import MATRIX, adapt, lone

import lora_zoo.adapters
from lora_zoo.adapters.adapter import Adapter, Additive, Baseline, LowRank, Product, Variant
from lora_zoo.adapters.registry import register, variants

ADAPTERS = Path(lora_zoo.adapters.__file__).parent
FILES = {str(path.relative_to(ADAPTERS)): path for path in sorted(ADAPTERS.rglob("*.py"))}
VARIANT_FILES = {name: path for name, path in FILES.items() if name.startswith("variants")}
ALLOWED = {*sys.stdlib_module_names, "torch", "safetensors"}


def imports(path):
    """Every module that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: a relative import"
            yield node.module


@pytest.mark.parametrize("name", FILES)
def test_adapters_import_torch_and_each_other_alone(name):
    for module in imports(FILES[name]):
        assert module.split(".")[0] in ALLOWED or module.startswith("lora_zoo.adapters"), module


@pytest.mark.parametrize("name", VARIANT_FILES)
def test_a_variant_fits_on_a_screen_or_two(name):
    lines = VARIANT_FILES[name].read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 160


@pytest.mark.parametrize("name", VARIANT_FILES)
def test_a_variant_knows_no_other_variant(name):
    assert not [module for module in imports(VARIANT_FILES[name]) if "adapters.variants" in module]


@pytest.mark.parametrize("name", variants())
def test_no_variant_subclasses_another(name):
    """Abstract or final: what is inherited from is an interface that is no variant itself."""
    cls = variants()[name]
    assert not [other for other in variants().values() if other is not cls and issubclass(cls, other)]
    bases = {base for base in cls.__mro__[1:] if issubclass(base, Variant)}
    assert bases <= {Variant, Adapter, Product, LowRank, Additive, Baseline}


@pytest.mark.parametrize("name", variants())
def test_a_variant_states_its_facts(name):
    cls = variants()[name]
    assert cls.name == name
    assert cls.paper == "-" or cls.paper.startswith("arXiv:")
    assert cls.equation.startswith("W'")
    assert cls.__doc__ and inspect.getmodule(cls).__doc__
    assert inspect.getmodule(cls).__name__.startswith("lora_zoo.adapters.variants.")


@pytest.mark.parametrize("name", variants())
def test_every_hyperparameter_has_a_type_and_a_default(name):
    cls = variants()[name]
    for source in (cls.__init__, cls.method.__init__):
        for p in inspect.signature(source).parameters.values():
            if p.kind is p.KEYWORD_ONLY:
                assert p.annotation is not p.empty, p
                assert p.default is not None, p


@pytest.mark.parametrize("name", MATRIX)
def test_an_adapter_is_an_ordinary_module(name):
    """Its facts hide nothing that torch calls on any module."""
    adapter = adapt(lone("linear"), name).adapters["layer"]
    own = vars(torch.nn.Module).keys() - {"__init__", "__doc__", "__module__", "forward", "extra_repr"}
    for cls in type(adapter).__mro__:
        if cls.__module__.startswith("lora_zoo"):
            assert not own & {n for n in vars(cls) if not n.startswith("__")}, cls
    assert {id(p) for p in adapter.parameters()} == {id(p) for _, p in adapter.named_parameters()}
    adapter.zero_grad()


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="taken"):

        @register("lora")
        class Another(Baseline):
            paper = equation = "-"


def test_a_variant_must_state_its_paper():
    with pytest.raises(TypeError, match="paper"):

        @register("nameless")
        class Nameless(Baseline):
            equation = "-"

    assert "nameless" not in variants()


@pytest.mark.parametrize("module", ["lora_zoo", "lora_zoo.pocket", "lora_zoo.adapters.registry"])
def test_importing_the_package_does_not_import_torch(module):
    command = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
