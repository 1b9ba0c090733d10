"""Runs whose adapter ends smaller than it began: what they record and save, and what can be done with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_zoo.formats.description import DESCRIPTION, WEIGHTS
from tests.processes import run

WORDS = (
    "+variant=sora", "rank=4", "steps=4", "batch_size=4", "lr=1e-2", "threads=1", "tracking=none",
    "task.sizes={train: 24, validation: 4, test: 4}", "target_modules=[q,v]", "task.max_new_tokens=2",
    "eval_before_training=false", "resume=true", "forgetting_text=null",
)  # fmt: skip
HARD = "variant.l1_weight=30"
LIKE_LORA = "variant.l1_weight=0"


def results(at: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) | {"folder": file.parent} for file in at.rglob("result.json")]


def result(at: Path) -> dict[str, Any]:
    (found,) = results(at)
    return found


def sizes(folder: Path) -> tuple[dict[str, int], int]:
    """The rank of each matrix, and the number of all entries."""
    state = load_file(folder / "adapter" / WEIGHTS)
    ranks = {name.removesuffix(".g_R"): len(g) for name, g in state.items() if name.endswith(".g_R")}
    assert all(bool(state[f"{name}.g_R"].all()) for name, rank in ranks.items() if rank > 1)
    return ranks, sum(tensor.numel() for tensor in state.values())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that shrinks, and what it printed."""
    folder = tmp_path_factory.mktemp("alone")
    ended = run(*WORDS, HARD, "eval_splits=[validation]", "out=r", at=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "r", ended.stdout


def test_a_run_ends_smaller_and_can_be_judged_and_merged_later(
    alone: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(alone[0], tmp_path / "r")
    done = result(tmp_path / "r")
    folder, counts = done["folder"], done["parameters"]
    ranks, entries = sizes(folder)
    assert len(ranks) == counts["adapted"] and max(ranks.values()) <= 4 and min(ranks.values()) < 4
    assert counts["final"] == entries < counts["trainable"]
    assert f"{entries:,} left at the end" in alone[1]
    assert json.loads((folder / "adapter" / DESCRIPTION).read_text())["patterns"]["rank"] | ranks == ranks

    # Another split and the merged model, asked for later: nothing trains, and the counts stay.
    later = run(*WORDS, HARD, "eval_splits=[validation,test]", "merge=true", f"out={tmp_path}/r", at=tmp_path)
    assert later.returncode == 0, later.stdout + later.stderr
    more = result(tmp_path / "r")
    assert more["adapter"] == done["adapter"] and more["parameters"] == counts
    assert more["metrics"]["validation"] == done["metrics"]["validation"] and "test" in more["metrics"]
    assert {u["name"]: u["norm"] for u in more["updates"]} == {u["name"]: u["norm"] for u in done["updates"]}
    assert (folder / "merged" / "config.json").is_file()


def test_a_damaged_adapter_is_not_used_and_trained_again(alone: tuple[Path, str], tmp_path: Path) -> None:
    words = (*WORDS, HARD, f"out={tmp_path}/r")
    shutil.copytree(alone[0], tmp_path / "r")
    done = result(tmp_path / "r")
    trained = load_file(done["folder"] / "adapter" / WEIGHTS)
    description = done["folder"] / "adapter" / DESCRIPTION
    description.write_text(description.read_text().replace('"alpha": 4.0', '"alpha": 400.0'))
    assert "400.0" in description.read_text()
    later = run(*words, "eval_splits=[validation,test]", at=tmp_path)
    assert later.returncode == 0, later.stdout + later.stderr
    more = result(tmp_path / "r")
    assert more["adapter"] == done["adapter"] and more["parameters"] == done["parameters"]
    assert "400.0" not in description.read_text()
    again = load_file(done["folder"] / "adapter" / WEIGHTS)
    assert all(torch.equal(again[name], tensor) for name, tensor in trained.items())


def test_in_a_pack_each_job_ends_with_ranks_of_its_own(alone: tuple[Path, str], tmp_path: Path) -> None:
    words = (*WORDS, "eval_splits=[validation]")
    packed = run("-m", *words, f"{LIKE_LORA},30", "hydra/launcher=packed", f"out={tmp_path}/p", at=tmp_path)
    assert packed.returncode == 0, packed.stdout + packed.stderr
    found = {r["config"]["variant"]["l1_weight"]: r for r in results(tmp_path / "p")}
    assert "final" not in found[0]["parameters"] and found[30]["packed"]["jobs"] == 2
    expected = result(alone[0])
    assert found[30]["parameters"] == expected["parameters"]
    assert found[30]["adapter"]["description"] == expected["adapter"]["description"]
    mine, other = (load_file(r["folder"] / "adapter" / WEIGHTS) for r in (found[30], expected))
    torch.testing.assert_close(mine, other)
