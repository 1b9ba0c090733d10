"""Every notebook runs from top to bottom, in a fresh kernel, from a folder of its own.

On the results that are committed, and on a reader's own runs.
"""

import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.processes import Forked, run

nbformat = pytest.importorskip("nbformat", reason="needs the test extra")
local_provisioner = pytest.importorskip("jupyter_client.provisioning.local_provisioner")

pytestmark = pytest.mark.notebooks
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
OWN = "LORA_ZOO_RUNS"


@pytest.fixture(scope="module")
def own_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of a few steps, with checkpoints."""
    folder = tmp_path_factory.mktemp("own")
    grid = ["+variant=lora,full", "rank=2", "seed=0,1", "steps=4", "trainer.save_steps=2"]
    few = ["task.sizes={train: 32, validation: 4, test: 6}", "threads=1", "tracking=none"]
    few += ["batch_size=4", "task.max_new_tokens=4", "forgetting_text=null"]
    ended = run("-m", *grid, *few, f"out={folder}", at=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.fixture(scope="module")
def own_adapters(own_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA adapters of those runs, without their records."""
    folder = tmp_path_factory.mktemp("adapters")
    for adapter in own_runs.rglob("lora-*/adapter"):
        shutil.copytree(adapter, folder / adapter.parent.name)
    return folder


def warm_kernel(command: list[str], *, cwd: str, env: dict[str, str], **_: Any) -> Forked:
    """The kernel that Jupyter asks for, a process of its own, in which the libraries are loaded already."""
    module = command.index("-m") + 1
    return Forked(command[module], command[module + 1 :], Path(cwd), env, merged=True)


def shown(path: Path, cwd: Path, own: Path | None = None) -> str:
    """What the notebook's cells display, figures in words; an error in one of them is raised."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    environment = {key: value for key, value in os.environ.items() if key != OWN}
    environment |= {OWN: str(own)} if own else {}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(cwd)}})
    with mock.patch.object(local_provisioner, "launch_kernel", warm_kernel):
        client.execute(env=environment)
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(text(data) for data in outputs)


def text(data: dict[str, Any]) -> str:
    return str(data.get("text/html", data.get("text/plain", "")))


def test_notebooks_are_committed_without_output() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_reads_committed_results(path: Path, tmp_path: Path) -> None:
    assert "<figure>" in shown(path, tmp_path)
    assert OWN in path.read_text(), "one variable names a reader's own runs"
    assert not list(tmp_path.iterdir()), "a notebook that reads leaves nothing behind"


@pytest.mark.parametrize("path", NOTEBOOKS[3:6], ids=lambda path: path.stem)
def test_a_notebook_reads_the_runs_that_one_variable_names(
    path: Path, own_runs: Path, tmp_path: Path
) -> None:
    assert "<figure>" in shown(path, tmp_path, own_runs)


@pytest.mark.parametrize("path", NOTEBOOKS[:3], ids=lambda path: path.stem)
def test_a_notebook_on_spectra_takes_adapters_without_runs(
    path: Path, own_adapters: Path, tmp_path: Path
) -> None:
    assert "<figure>" in shown(path, tmp_path, own_adapters)
