"""Two processes that train one run learn what one does with the same batches."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from lora_zoo.injection.inject import inject
from lora_zoo.training.together import divide_base
from tests.processes import run

pytestmark = pytest.mark.xdist_group("together")  # one worker: they share the runs
RUNS = {
    "lora": ["init=eva", "calibration_examples=2", "trainer.gradient_accumulation_steps=2"],
    "dora": ["trainer.save_steps=2"],
    "adalora": ["variant.tinit=1", "variant.tfinal=1", "variant.deltaT=1"],
    "vera": ["trainer.eval_steps=2", "trainer.load_best_model_at_end=true"],
    "bilora": ["trainer.label_smoothing_factor=0.1"],
}
"""Further overrides by variant: a start from data, sums over micro-batches, checkpoints, evaluations."""
SHORT = (
    *("task=pocket-nli", "steps=7", "batch_size=4", "threads=1", "eval_before_training=false"),
    *("task.sizes={train: 21, validation: 3}", "eval_splits=[validation]", "tracking=none"),
    *("forgetting_text=null", "trainer.logging_steps=1"),
)
"""Of the last of an epoch's batches, one row, the second process has nothing."""
MASKED = {"hira": ["lora_dropout=0.1"]}
"""As RUNS, of processes with masks of their own: no single process learns the same."""
DIVIDED = ("fsdp=true", "out=divided")


def words(name: str, *more: str) -> list[str]:
    return ["lora_zoo.run", f"+variant={name}", *(RUNS | MASKED)[name], *SHORT, *more]


def chained(*commands: list[str]) -> list[str]:
    return [word for command in commands for word in ("--", *command)][1:]


@pytest.fixture(scope="module", name="two")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs by two processes, in one launch."""
    at = tmp_path_factory.mktemp("two")
    both = [words(name, *more) for name in RUNS | MASKED for more in ((), DIVIDED)]
    ended = run(*chained(*both), at=at, module="tests.torchrun")
    assert ended.returncode == 0, ended.stderr
    return at


@pytest.fixture(scope="module", name="one")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("one")
    for name in RUNS:
        assert run(*words(name)[1:], at=at).returncode == 0
    return at


def result(at: Path, name: str, out: str = "runs") -> tuple[Path, dict[str, Any]]:
    [folder] = (at / out).glob(f"{name}-*")
    return folder, json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_does(name: str, one: Path, two: Path) -> None:
    (alone, expected), (folder, found) = result(one, name), result(two, name)
    of = [[(e["step"], e.get("loss")) for e in own["history"] if "loss" in e] for own in (expected, found)]
    assert len(of[0]) == 7
    for (step, loss), (same, its) in zip(*of, strict=True):
        assert step == same and its == pytest.approx(loss, abs=1e-5)
    theirs, ours = (load_file(own / "adapter" / "adapter.safetensors") for own in (folder, alone))
    assert theirs.keys() == ours.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=0, atol=1e-4)  # a hundredth of the rate
    assert found["metrics"] == expected["metrics"] and found["parameters"] == expected["parameters"]
    assert found["identity"] != expected["identity"] and found["config"]["processes"] == 2
    assert found["command"].startswith("torchrun --nproc-per-node 2 -m lora_zoo.run ")
    assert {p.name for p in folder.iterdir()} == {p.name for p in alone.iterdir()}


@pytest.mark.parametrize("name", RUNS | MASKED)
def test_processes_that_divide_the_base_learn_the_same_to_the_bit(name: str, two: Path) -> None:
    """Also of a batch that is one row: the second process passes it as well, and learns nothing of it."""
    (_, whole), (_, found) = result(two, name), result(two, name, "divided")
    assert found["adapter"]["sha256"] == whole["adapter"]["sha256"]
    for key in ("metrics", "updates", "parameters", "ranks"):
        assert found.get(key) == whole.get(key), key
    nll, of = (own["likelihood"]["validation"]["nll"] for own in (found, whole))
    assert nll == pytest.approx(of, rel=1e-5), "no effective weights are formed of divided ones"
    losses = [[e["loss"] for e in own["history"] if "loss" in e] for own in (whole, found)]
    assert losses[0] == losses[1] and found["identity"] != whole["identity"]


def test_blocks_that_processes_skip_at_random_are_not_divided() -> None:
    sizes = {"vocab_size": 11, "hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 8}
    model = OPTForCausalLM(OPTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, layerdrop=0.1))
    with pytest.raises(ValueError, match=r"layerdrop=0\.1 .* set layerdrop to 0"):
        divide_base(inject(model, "lora", target_modules=["q"]))


def test_a_base_of_which_all_trains_is_not_divided(tmp_path: Path) -> None:
    ended = run("lora_zoo.run", "+variant=full", *SHORT, *DIVIDED, at=tmp_path, module="tests.torchrun")
    assert ended.returncode == 2 and "variant=full trains all of it" in ended.stdout


@pytest.mark.parametrize("more", [(), DIVIDED], ids=["whole", "divided"])
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_to_the_bit(
    more: tuple[str, ...], two: Path, tmp_path: Path
) -> None:
    ended = run(*words("dora", *more), at=tmp_path, module="tests.torchrun", STOP="1:3")
    out = "divided" if more else "runs"
    folder, stopped = result(tmp_path, "dora", out)
    assert ended.returncode == 128 + signal.SIGTERM and stopped["state"] == "interrupted"
    assert {own.name for own in (folder / "checkpoints").iterdir()} == {"checkpoint-2", "checkpoint-3"}
    assert run(*words("dora", *more), "resume=true", at=tmp_path, module="tests.torchrun").returncode == 0
    found, (_, whole) = result(tmp_path, "dora", out)[1], result(two, "dora", out)
    assert found["resumed"][0]["step"] == 3 and found["identity"] == whole["identity"]
    assert found["adapter"]["sha256"] == whole["adapter"]["sha256"]
    assert found["metrics"] == whole["metrics"]


LATE = """
import os, sys, time
time.sleep(2 * (os.environ["RANK"] == "0"))
from lora_zoo.run import main
main(sys.argv[1:])
"""


def test_a_mistake_is_told_though_the_process_that_speaks_is_last(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    ended = run("late", "+variant=lora", "batch_size=3", at=tmp_path, module="tests.torchrun")
    assert ended.returncode == 2 and "batch_size=3 is of all processes together" in ended.stderr


APART = """
import os, sys, torch
from lora_zoo.core.processes import current, join
rank = int(os.environ["RANK"])
join(os.environ)
assert "RANK" not in os.environ and current().rank == rank and current().leads == (rank == 0)
assert [*current().part([0, 1, 2])] == ([0, 2], [1])[rank] and not [*current().part([0])][1 - rank:]
one, two = torch.tensor([1.0 + rank]), torch.tensor([[2, 3]]) + rank
current().add_up([one, two])
assert one.item() == 3 and two.tolist() == [[5, 7]]
p, q, r = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
p.grad = torch.ones(2) if rank else None
q.grad = torch.ones(2, dtype=q.dtype) * (rank + 1)
current().add_up_gradients([p, q, r])
assert p.grad.tolist() == [1, 1] and q.grad.tolist() == [3, 3] and r.grad is None
assert current().greatest(15 * rank) == 15
assert current().from_first(lambda: f"of {rank}") == "of 0"
try:
    current().from_first(lambda: 1 / 0)
except (ZeroDivisionError, RuntimeError) as error:
    assert type(error) is (RuntimeError if rank else ZeroDivisionError)
current().check_alike({"a": one}, "now")
try:
    current().check_alike({"a": one, "b": torch.tensor(float(rank))}, "after step 7")
except RuntimeError as error:
    assert str(error) == "b of process 1 is not that of process 0 after step 7"
else:
    raise AssertionError
from transformers import T5Config, T5ForConditionalGeneration
torch.manual_seed(0)
sizes = dict(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
model = T5ForConditionalGeneration(T5Config(**sizes)).requires_grad_(False).eval()
passes = lambda: model.generate(torch.tensor([[3, 4]]), max_new_tokens=4, min_new_tokens=4)
whole, name = passes(), model._get_name()
current().divide(model, [model.decoder.block[0], model.encoder.block[0]], set())
assert hasattr(model.shared.weight, "full_tensor") and model._get_name() == name
assert passes().equal(whole)
"""


def test_what_processes_exchange(tmp_path: Path) -> None:
    (tmp_path / "apart.py").write_text(APART)
    ended = run("apart", at=tmp_path, module="tests.torchrun")
    assert ended.returncode == 0, ended.stderr
