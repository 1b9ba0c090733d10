"""One process, one device a run; threads by the work, which wait without spinning."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from lora_zoo import run
from lora_zoo.config.schema import Model, Settings, Task
from lora_zoo.core import processes
from lora_zoo.core.hyperparameters import check_hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.launchers.joblib import FRONT, Joblib
from lora_zoo.runs.processes import refuse_several, take_part
from lora_zoo.runs.together import divided
from lora_zoo.training.arguments import _on_one_device
from lora_zoo.training.threads import PER_THREAD, choose_threads, work


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
@pytest.mark.parametrize("words", [["-m", "seed=0,1"], ["seed=0"]])
def test_one_of_several_processes_is_refused_before_anything_is_written(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "2")
    with pytest.raises(SystemExit) as ended:
        run.main([*words, "tracking=none"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and f"{name}=2" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_USE_FSDP", "true", "one process was started"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "accelerate launch --use_fsdp"),
        ("FSDP_OFFLOAD_PARAMS", "True", "weights stay on the device"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "give trainer.bf16=true"),
    ],
)
def test_what_accelerate_may_ask_for_and_is_not_ours_is_refused(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run.main(["tracking=none"])
    heard = capsys.readouterr().err
    assert ended.value.code == 2 and heard.count("\n") == 1 and said in heard


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_of_one_run_refuse_a_sweep_and_one_of_them_says_so(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(processes, "_HERE", [processes.Several(rank, 2, "")])
    with pytest.raises(SystemExit) as ended:
        run.main(["-m", "seed=0,1", "tracking=none"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 - rank
    assert ("2 processes train one run" in said) == (rank == 0)


@pytest.mark.parametrize("asked", ["processes=2", "fsdp=true"])
def test_a_sweep_of_runs_that_need_several_processes_is_refused_before_its_folder_is_made(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run.main(["-m", "seed=0,1", asked, "tracking=none"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "start torchrun --nproc-per-node" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"batch_size": 7}, "batch_size=7 is of all processes together, and 2 cannot divide it"),
        ({"processes": 3}, "processes=3, and there is 2: start torchrun --nproc-per-node 3"),
        ({"program": {"name": "relora"}}, "program=relora is for one process, and 2 were started"),
        ({"dropbp": 0.5}, "dropbp=0.5 is for one process"),
        ({"fsdp": True, "merge": True}, "merge=true cannot be given with fsdp=true: run lora-zoo merge"),
        ({"fsdp": True, "trainer": {"torch_compile": True}}, "trainer.torch_compile=true cannot be given"),
        ({"fsdp": True, "model": Model("m", "m", quantization="nf4")}, "quantization=nf4 cannot be"),
        ({"fsdp": True, "model": Model("m", "m", device_map="auto")}, "device_map=auto cannot be"),
    ],
)
def test_what_several_processes_cannot_train_is_refused(
    more: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_HERE", [processes.Several(1, 2, "")])
    assert divided(settings()).processes == divided(settings(processes=2)).processes == 2
    with pytest.raises(ValueError, match=said):
        divided(settings(**more))


def test_one_process_has_the_identity_that_it_had() -> None:
    assert divided(settings(processes=1)).processes is divided(settings()).processes is None
    with pytest.raises(ValueError, match="processes=2, and there is 1"):
        divided(settings(processes=2))
    with pytest.raises(ValueError, match="and there is one: start torchrun"):
        divided(settings(fsdp=True))


def test_accelerate_asks_for_a_divided_base_by_variables_that_no_library_sees_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_HERE", [processes.Processes()])
    asked = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    environment = asked | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "OTHER": "1"}
    take_part(environment)
    assert {*environment} == {"MASTER_ADDR", "MASTER_PORT", "OTHER"}
    assert divided(settings()).fsdp and processes.current().size == 2


def test_a_dry_run_tells_what_each_of_several_processes_keeps_of_the_base(capsys: Any) -> None:
    def base(*more: str) -> tuple[float, str]:
        with pytest.raises(SystemExit):
            run.main(["dry_run=true", "tracking=none", *more])
        said = re.search(r"base ([\d.]+) (kB|MB) \((.*?)\)", capsys.readouterr().out)
        assert said
        return float(said[1]) * {"kB": 1e3, "MB": 1e6}[said[2]], said[3]

    (whole, of), (part, divided_of) = base(), base("fsdp=true", "processes=4")
    assert part == pytest.approx(whole / 4, rel=0.01)
    assert of == "float32" and divided_of == "float32, of 4 processes each its part"


@pytest.mark.parametrize(
    ("name", "more", "gathers"),
    [
        ("prilora", {}, "the norms of its layers' inputs"),
        ("mixlora", {"balance": 0.1}, "balances its experts"),
        ("mixlora", {"balance": 0.0}, ""),
        ("sparse_adapter", {"score": "grasp"}, "differentiates the gradient"),
        ("sparse_adapter", {}, ""),
        ("online_lora", {}, "the hardest of all examples"),
        ("color", {"tasks": ["a"]}, "features of all examples"),
        ("adalora", {}, ""),
    ],
)
def test_variants_say_what_they_take_from_whole_batches(
    name: str, more: dict[str, Any], gathers: str
) -> None:
    cls = VARIANTS[name]
    found = cls.hooks.gathers(**check_hyperparameters(cls, more))
    assert bool(found) == bool(gathers) and gathers in found


def test_one_process_of_a_launcher_is_none_of_several() -> None:
    refuse_several({"WORLD_SIZE": "1", "RANK": "0", "SLURM_STEP_NUM_TASKS": ""})


def test_of_several_gpus_a_run_takes_one_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4)
    arguments._n_gpu = 3
    assert arguments.train_batch_size == 12, "transformers would split a batch of 12"
    _on_one_device(arguments)
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 4
    assert "3 GPUs are visible" in caplog.messages[0]


@pytest.mark.parametrize(
    ("devices", "asked", "jobs", "fits"),
    [(0, "8", 8, True), (1, "2", 8, False), (2, "2", 8, True), (2, "4", 2, True), (1, "1", 8, True)],
)
def test_workers_on_gpus_have_one_each_or_are_refused(
    devices: int, asked: str, jobs: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    given = {"hydra.launcher.n_jobs": asked}
    if fits:
        Joblib.check(given, jobs)
    else:
        with pytest.raises(ValueError, match=f"would share {devices} GPU"):
            Joblib.check(given, jobs)


@pytest.mark.parametrize("visible", ["", "5,7"])
def test_each_worker_takes_another_gpu(visible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for _ in range(2):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        Joblib(tmp_path)._take_device(2)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == (visible or "0,1").split(",")
    Joblib(tmp_path)._clear()
    assert not list(tmp_path.iterdir()) and FRONT not in os.environ


class Sized(nn.Module):
    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(parameters, device="meta"))


def settings(**more: Any) -> Settings:
    usual: dict[str, Any] = {"lr": 1.0, "model": Model(name="m", path="p"), "task": Task(name="t")}
    return Settings(**usual | more)


@pytest.mark.parametrize(
    ("parameters", "threads"), [(10**6, 1), (10**7, 4), (10**9, 16)], ids=["pocket", "small", "large"]
)
def test_threads_follow_the_work_of_a_step(
    parameters: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    now: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    examples = [{"input_ids": [1] * 80, "labels": [1] * 80}] * 3
    assert work(settings(), Sized(parameters), examples) == 6 * 16 * 80 * parameters
    assert choose_threads(settings(), Sized(parameters), examples) == threads
    assert now == ([] if threads == 16 else [threads])
    assert choose_threads(settings(threads=3), Sized(parameters), examples) == 3, "threads= decides"
    assert PER_THREAD > 6 * 16 * 80 * 10**6, "a step of the pocket model has one"


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_the_command_waits_passively_before_torch_is_there(own: dict[str, str]) -> None:
    code = (
        "import json, os, sys\n"
        "from lora_zoo import run\n"
        "assert 'torch' not in sys.modules\n"
        "run.main(['--help'])\n"
        "names = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')\n"
        "print(json.dumps({name: os.environ.get(name) for name in names}))\n"
    )
    without = {name: value for name, value in os.environ.items() if name[:4] not in ("OMP_", "GOMP")}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=without | own, check=True
    )
    assert json.loads(ended.stdout.splitlines()[-1]) == {
        "OMP_WAIT_POLICY": own.get("OMP_WAIT_POLICY", "PASSIVE"),
        "GOMP_SPINCOUNT": "0",
    }
