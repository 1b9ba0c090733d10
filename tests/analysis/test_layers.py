"""Which way imports point: analysis reads results, adapters and their ΔW, and knows nothing that trains."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_zoo.analysis

FOLDER = Path(lora_zoo.analysis.__file__).parent
FILES = {str(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*.py"))}
OURS = ("lora_zoo.analysis", "lora_zoo.results", "lora_zoo.adapters", "lora_zoo.deltas")
FOREIGN = ("hydra", "omegaconf", "wandb", "transformers", "datasets")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("name", FILES)
def test_analysis_imports_results_adapters_and_deltas_alone(name: str) -> None:
    for module in imports(FILES[name]):
        if module.startswith("lora_zoo"):
            assert module == "lora_zoo" or module.startswith(OURS), module
        assert module.split(".")[0] not in FOREIGN, module
