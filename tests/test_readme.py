"""What the README says is so: its table, its commands, and its example of a new variant."""

import re
import shutil
import subprocess
import sys
from os import environ
from pathlib import Path

import pytest

from lora_zoo import docs_tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_of_variants_is_the_registrys() -> None:
    assert docs_tables.written(README) == README, "run: python -m lora_zoo.docs_tables --write README.md"


def test_there_are_exactly_two_commands_and_ci_runs_the_second() -> None:
    section = README.partition("## Two commands")[2].partition("\n## ")[0]
    commands = re.findall(r"```bash\n(.*?)\n```", section, re.DOTALL)
    assert len(commands) == 2
    install, test = commands[1].split(" && ")
    script = (ROOT / ".ci" / "run").read_text()
    assert f"\n{install} && {test}\n" in script


def examples() -> dict[str, str]:
    found = re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the README's example variant in it."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("lora_zoo", "conf", "tests"):
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
