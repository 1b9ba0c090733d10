"""Every notebook runs from top to bottom, in a fresh kernel, from a folder of its own.

On the results that are committed, and on a reader's own runs. Notebooks are committed with the outputs of the
former: `python -m tests.test_notebooks --write` makes them.
"""

import html
import os
import re
import shutil
import sys
import tempfile
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


def executed(path: Path, cwd: Path, own: Path | None = None) -> Any:
    """The notebook with the outputs of a run of all its cells; an error in one of them is raised."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    environment = {key: value for key, value in os.environ.items() if key != OWN}
    environment |= {OWN: str(own)} if own else {}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(cwd)}})
    with mock.patch.object(local_provisioner, "launch_kernel", warm_kernel):
        client.execute(env=environment)
    return notebook


def shown(notebook: Any) -> list[str]:
    """The outputs of each cell in one text, figures as SVG."""
    return [
        "\n".join(str(next(iter(_kept(o.get("data", {})).values()), "")) for o in cell.get("outputs", []))
        for cell in notebook.cells
    ]


def _kept(data: dict[str, Any]) -> dict[str, Any]:
    """An output in the one form that a reader sees."""
    return {kind: data[kind] for kind in ("text/html", "text/plain") if data.get(kind)}


NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")


def words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    """The words of an output, without markup, and the numbers between them."""
    text = html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL))
    text = text.replace("\N{MINUS SIGN}", "-")
    return NUMBER.sub(" # ", text).split(), [float(n.replace(",", "")) for n in NUMBER.findall(text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_the_committed_results_give(path: Path, tmp_path: Path) -> None:
    """In words the same as its committed outputs, and in numbers to one in a hundred."""
    kept, found = shown(nbformat.read(path, as_version=4)), shown(executed(path, tmp_path))
    assert any("<figure>" in text for text in found)
    for number, (theirs, ours) in enumerate(zip(kept, found, strict=True)):
        (words, numbers), (expected, given) = map(words_and_numbers, (ours, theirs))
        assert words == expected, f"cell {number}: python -m tests.test_notebooks --write"
        assert numbers == pytest.approx(given, rel=1e-2, abs=1e-3), f"cell {number}"
    assert OWN in path.read_text(), "one variable names a reader's own runs"
    assert not list(tmp_path.iterdir()), "a notebook that reads leaves nothing behind"


@pytest.mark.parametrize("path", NOTEBOOKS[3:6], ids=lambda path: path.stem)
def test_a_notebook_reads_the_runs_that_one_variable_names(
    path: Path, own_runs: Path, tmp_path: Path
) -> None:
    assert any("<figure>" in text for text in shown(executed(path, tmp_path, own_runs)))


@pytest.mark.parametrize("path", NOTEBOOKS[:3], ids=lambda path: path.stem)
def test_a_notebook_on_spectra_takes_adapters_without_runs(
    path: Path, own_adapters: Path, tmp_path: Path
) -> None:
    assert any("<figure>" in text for text in shown(executed(path, tmp_path, own_adapters)))


def write(path: Path) -> None:
    """Execute the notebook and keep each output in the one form that a reader sees."""
    with tempfile.TemporaryDirectory() as nowhere:
        notebook = executed(path, Path(nowhere))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if "outputs" in cell:
            displayed = [output for output in cell.outputs if _kept(output.get("data", {}))]
            for output in displayed:
                output["data"] = dict([next(iter(_kept(output["data"]).items()))])
            cell.outputs = displayed
    nbformat.write(notebook, path)


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], "usage: python -m tests.test_notebooks --write"
    for notebook_of in NOTEBOOKS:
        write(notebook_of)
