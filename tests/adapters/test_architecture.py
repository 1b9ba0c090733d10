"""Rules of the code's shape that a person would forget to check."""

import inspect
import subprocess
import sys
from abc import ABC
from pathlib import Path

import pytest
import torch

import lora_zoo
from lora_zoo.conformance.cases import MATRIX, adapt, lone
from lora_zoo.core.adapter import Adapter, Baseline, Variant
from lora_zoo.core.variants import VARIANTS, register

FOLDER = Path(lora_zoo.__file__).parent
VARIANT_FILES = {
    str(path.relative_to(FOLDER)): path
    for path in sorted((FOLDER / "variants").rglob("*.py"))
    if path.name != "__init__.py"
}


def test_a_variant_fits_on_a_screen_or_two():
    for name, path in VARIANT_FILES.items():
        assert sum(bool(line.strip()) for line in path.read_text().splitlines()) <= 160, name


def test_no_variant_subclasses_another():
    """Abstract or final: what is inherited from is an interface that is no variant itself."""
    every = list(VARIANTS.values())
    for cls in every:
        others = [other for other in every if other is not cls and issubclass(cls, other)]
        assert others == ([VARIANTS[cls.preset_of]] if cls.preset_of else []), cls
        bases = {base for base in cls.__mro__[1:] if issubclass(base, Variant)} - set(others)
        assert all(ABC in base.__bases__ for base in bases - {Adapter}), cls


@pytest.mark.parametrize("name", [name for name, cls in VARIANTS.items() if cls.preset_of])
def test_a_preset_is_its_variant_with_another_init(name):
    """Same tensors to the bit, and no code of its own."""
    cls = VARIANTS[name]
    code = {key for key, value in vars(cls).items() if callable(value)} - {"__class__"}
    assert not code, code
    init = cls.defaults["init"]
    one, other = adapt(lone("linear"), name), adapt(lone("linear"), cls.preset_of, init=init)
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_variant_states_its_facts():
    for name, cls in VARIANTS.items():
        assert cls.name == name
        assert cls.paper == "-" or cls.paper.startswith(("arXiv:", "https://openreview.net/forum?id=")), name
        assert cls.equation.startswith("W'"), name
        assert cls.__doc__ and inspect.getmodule(cls).__doc__, name
        assert inspect.getmodule(cls).__name__.startswith("lora_zoo.variants."), name


def test_every_hyperparameter_has_a_type_and_a_default():
    for name, cls in VARIANTS.items():
        for source in (cls.__init__, cls.hooks.__init__):
            for p in inspect.signature(source).parameters.values():
                if p.kind is p.KEYWORD_ONLY:
                    assert p.annotation is not p.empty, (name, p)
                    assert p.default is not p.empty, (name, p)
                    assert p.default is not None or "None" in str(p.annotation), (name, p)


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

    assert "nameless" not in VARIANTS


@pytest.mark.parametrize("module", ["lora_zoo", "lora_zoo.pocket", "lora_zoo.core.registry"])
def test_importing_the_package_does_not_import_torch(module):
    command = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
