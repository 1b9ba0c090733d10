"""README and docs/ say what is so: tables, the two commands, the example of a variant, generated pages."""

import re
import shutil
import subprocess
import sys
from os import environ
from pathlib import Path

import pytest

from lora_zoo import docs_evidence, docs_pages, docs_tables
from lora_zoo.core.init import INITS
from lora_zoo.core.variants import VARIANTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def test_each_table_stands_on_one_page_and_is_the_registrys() -> None:
    found = [name for text in DOCS.values() for name in docs_tables.tables_in(text)]
    assert sorted(found) == sorted(docs_tables.TABLES)
    for name, text in DOCS.items():
        assert docs_tables.written(text) == text, f"{name}: run python -m lora_zoo.docs_tables --write docs"


def test_every_variant_and_initialisation_has_a_page_with_its_definition_and_code() -> None:
    pages = docs_pages.pages()
    for name, cls in VARIANTS.items():
        assert cls.equation in pages[f"variants/{name}.md"]
        assert f'register("{name}")' in pages[f"variants/{name}.md"] or cls.preset_of
    held = "".join(text for path, text in pages.items() if path.startswith("initialisations/"))
    assert all(init.source in held for init in INITS.values())
    assert "0.659 ± 0.026" in pages["variants/lora.md"]  # from experiments/zoo
    assert "bakeoff_rank" in pages["variants/dora.md"].partition("## Claims")[2]


def test_verdicts_are_read_back_from_the_pages_of_experiments() -> None:
    found = docs_evidence.verdicts()["dora/over-lora"]
    assert {one.experiment for one in found} >= {"bakeoff_rank", "digits"}
    assert all(one.verdict in ("supported", "not supported", "inconclusive") for one in found)
    assert found[0].n.isdigit()


def test_there_are_exactly_two_commands_and_ci_runs_the_second() -> None:
    section = README.partition("## Two commands")[2].partition("\n## ")[0]
    commands = re.findall(r"```bash\n(.*?)\n```", section, re.DOTALL)
    assert len(commands) == 2
    install, test = commands[1].split(" && ")
    script = (ROOT / ".ci" / "run").read_text()
    assert f"\n{install} && {test}\n" in script


def examples() -> dict[str, str]:
    found = re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", DOCS["adding-a-variant.md"], re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the example variant of docs/ in it."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("lora_zoo", "hydra_plugins", "conf", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for path, text in examples().items():
        (copy / path).write_text(text)
    return copy


def run(extended: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environ | {"PYTHONPATH": str(extended), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    env.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=extended, env=env, capture_output=True, text=True, check=False)


def test_the_example_is_about_thirty_lines() -> None:
    (code,) = (text for path, text in examples().items() if path.endswith(".py"))
    assert len(code.strip().splitlines()) <= 36


def test_the_example_runs_from_the_command_line(extended: Path) -> None:
    quick = ("steps=2", "task.sizes={train: 8, validation: 2, test: 2}", "tracking=none", "threads=1")
    quick += ("batch_size=4", "task.max_new_tokens=2")
    ended = run(extended, "lora_zoo.run", "+variant=hira", "rank=8", *quick)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "16,384 of" in ended.stdout  # eight matrices, 8 x (128 + 128) each
    assert "hira" in run(extended, "lora_zoo.run", "--help").stdout


def test_the_example_passes_the_conformance_suite_untold(extended: Path) -> None:
    ended = run(
        extended, "pytest", "lora_zoo/conformance/test_variants.py", "tests/adapters/test_models.py",
        "tests/test_configuration.py", "-k", "hira", "-p", "no:cacheprovider",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert int(re.findall(r"(\d+) passed", ended.stdout)[0]) > 20
