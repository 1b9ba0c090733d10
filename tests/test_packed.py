"""Packed training: jobs that share a base come out as they do alone, whatever befalls the others."""

import functools
import json
import logging
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from greenlet import getcurrent
from torch import Tensor, nn

from lora_zoo.bench.paths import takes_dropout
from lora_zoo.conformance.cases import bases, fitting, nearest_rank, settings
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.batched import RowGroup
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.launchers.packed.backbone import Backbone
from lora_zoo.launchers.packed.compatibility import unfit
from lora_zoo.launchers.packed.grouping import groups
from lora_zoo.launchers.packed.job import PackedJob, Waiting
from lora_zoo.launchers.packed.joining import join
from lora_zoo.launchers.packed.scheduler import Pack
from lora_zoo.launchers.packed.signals import SharedSignalHandler
from lora_zoo.pocket import HUB
from lora_zoo.training.signals import Stopped, live_on
from tests.processes import start

ADAPTING = [name for name, variant in VARIANTS.items() if variant.count]
OF_ROWS = [name for name in ADAPTING if VARIANTS[name].hooks.switch is AdapterHooks.switch]


def model(**changes: Any) -> tf.LlamaForCausalLM:
    torch.manual_seed(0)
    usual = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = tf.LlamaConfig(**(usual | {"num_attention_heads": 2, "pad_token_id": 0} | changes))
    return tf.LlamaForCausalLM(config).double()


def batch(rows: int, length: int, seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 40, (rows, length), generator=source)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def stirred(injection: Injection) -> Injection:
    """Away from the start, at which many gradients are zero."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source, dtype=parameter.dtype))
    return injection


TARGETS: dict[str, Any] = {"linear": ["q", "v"], "all": ["q", "k", "v", "o", "down", "embed"]}


@functools.cache
def places(name: str, targets: str) -> Any:
    return fitting(name, model(), TARGETS[targets])


def adapted(net: nn.Module, name: str, targets: str, seed: int, as_called: str) -> Injection:
    where = places(name, targets)
    hyper = settings(name, nearest_rank(name, net, 2 + seed, where))
    hyper |= {"lora_dropout": 0.3} if takes_dropout(name) else {}
    return stirred(inject(net, name, target_modules=where, seed=seed, name=as_called, **hyper))


def outcome(injection: Injection, states: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The states and the gradients of a loss of them."""
    for parameter in injection.parameters():
        parameter.grad = None
    states.square().sum().backward()
    return states.detach(), [p.grad.clone() for p in injection.parameters() if p.grad is not None]


def alone(name: str, targets: str, seed: int, own: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    net = model().train()
    injection = adapted(net, name, targets, seed, "default")
    return outcome(injection, net.base_model(**own).last_hidden_state)


BATCHES = [batch(2, 5, 1), batch(3, 7, 2), batch(1, 4, 3)]


@functools.cache
def neighbour() -> tuple[Tensor, list[Tensor]]:
    return alone("lora", "linear", 2, BATCHES[2])


@pytest.mark.parametrize(  # what is particular to a host, each representative meets
    ("name", "targets"), [*((n, "all") for n in OF_ROWS), *((n, "linear") for n in OF_ROWS if n in bases())]
)
def test_each_adapter_gets_its_own_rows_and_gradients(name: str, targets: str) -> None:
    """Three jobs: this variant twice, at other ranks, seeds and lengths, and LoRA on another target."""
    chosen = [(name, targets, 0), (name, targets, 1), ("lora", "linear", 2)]
    expected = [*(alone(*job, own) for job, own in zip(chosen[:2], BATCHES, strict=False)), neighbour()]
    net = model().train()
    backbone = Backbone(net)
    jobs = [adapted(net, variant, where, seed, f"job{seed}") for variant, where, seed in chosen]
    outputs, passed = backbone.forward([job.name for job in jobs], BATCHES)
    for own in outputs:
        own.last_hidden_state.square().sum().backward()
    backbone.backward(passed)
    for job, own, (states, gradients) in zip(jobs, outputs, expected, strict=True):
        torch.testing.assert_close(own.last_hidden_state.detach(), states)
        found = [p.grad for p in job.parameters() if p.grad is not None]
        assert len(found) == len(gradients) > 0
        for ours, theirs in zip(found, gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_job_of_no_numbers_keeps_them_to_itself() -> None:
    net = model().train()
    jobs = [adapted(net, "lora", "all", seed, f"job{seed}") for seed in (0, 1)]
    with torch.no_grad():
        jobs[0].parameters()[0].fill_(float("nan"))
    backbone = Backbone(net)
    outputs, passed = backbone.forward(["job0", "job1"], [batch(2, 5, 1), batch(2, 7, 2)])
    for own in outputs:
        own.last_hidden_state.sum().backward()
    backbone.backward(passed)
    assert outputs[0].last_hidden_state.isnan().all()
    assert outputs[1].last_hidden_state.isfinite().all()
    assert all(p.grad.isfinite().all() for p in jobs[1].parameters() if p.grad is not None)


def test_a_job_that_left_before_going_back_leaves_the_others_their_gradients() -> None:
    net = model().train()
    jobs = [adapted(net, "lora", "all", seed, f"job{seed}") for seed in (0, 1)]
    backbone = Backbone(net)
    outputs, passed = backbone.forward(["job0", "job1"], [batch(2, 5, 1), batch(2, 7, 2)])
    outputs[1].last_hidden_state.sum().backward()
    backbone.backward(passed)
    assert all(not p.grad.any() for p in jobs[0].parameters() if p.grad is not None)
    assert any(p.grad.any() for p in jobs[1].parameters() if p.grad is not None)


def test_while_one_job_is_shown_the_model_is_its_own() -> None:
    net = model()
    one, other = (adapted(net, "lora", "all", seed, f"job{seed}") for seed in (0, 1))
    group = adapters_of(net)
    group.isolate("job0")
    inside = {id(p) for p in net.parameters()}
    assert {id(p) for p in one.parameters()} <= inside
    assert inside.isdisjoint(id(p) for p in other.parameters())
    net.train()(**batch(1, 3, 0))
    assert [max(i.counter.counts.values()) for i in (one, other)] == [1, 0]
    group.show_all()
    assert {id(p) for p in other.parameters()} <= {id(p) for p in net.parameters()}
    group.delete("job0")
    group.delete("job1")
    assert {id(p) for p in net.parameters()} == {id(p) for p in net.parameters() if p.requires_grad}


def test_inputs_that_cannot_be_joined_are_refused() -> None:
    row_groups = [RowGroup("a", 1, 3), RowGroup("b", 2, 5)]
    joined = join(row_groups, [batch(1, 3, 0), {"input_ids": batch(2, 5, 0)["input_ids"]}], padding=7)
    assert joined["input_ids"].shape == (3, 5)
    assert joined["input_ids"][0, 3:].tolist() == [7, 7]
    assert joined["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1] * 5]
    with pytest.raises(ValueError, match="use_cache differ"):
        join(row_groups, [batch(1, 3, 0) | {"use_cache": True}, batch(2, 5, 0) | {"use_cache": False}], 0)
    with pytest.raises(ValueError, match="position_ids is not given for each row"):
        join(row_groups, [batch(1, 3, 0) | {"position_ids": torch.arange(3)[None]}, batch(2, 5, 0)], 0)


# --- which models can be shared ----------------------------------------------------------------------------


class Counting(tf.LlamaModel):
    """Keeps a count of the batches that it has seen, as batch norm does."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self.batches += self.training
        return super().forward(*arguments, **named)


class Mixing(tf.LlamaModel):
    """Lets the rows of a batch see each other."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        found = super().forward(*arguments, **named)
        found.last_hidden_state = found.last_hidden_state - found.last_hidden_state.mean(0)
        return found


def with_trunk(cls: type[tf.LlamaModel]) -> nn.Module:
    net = model()
    net.model = cls(net.config).double()
    return net


def bert(**changes: Any) -> tf.BertForSequenceClassification:
    torch.manual_seed(0)
    usual = {"vocab_size": 725, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.1}
    return tf.BertForSequenceClassification(
        tf.BertConfig(**(usual | {"num_attention_heads": 2} | still | changes))
    )


UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "decoder": (model, ""),
    "encoder": (bert, ""),
    "dropout": (lambda: bert(hidden_dropout_prob=0.1), "draws at random"),
    "attention dropout": (lambda: bert(attention_probs_dropout_prob=0.1), "draws at random"),
    "counts": (lambda: with_trunk(Counting), "keeps model.batches of all batches"),
    "mixes rows": (lambda: with_trunk(Mixing), "depends on the rows"),
    "no trunk": (lambda: model().model, "no part below its head"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_model_that_cannot_be_shared_says_why(case: str) -> None:
    make, reason = UNFIT[case]
    net = make().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = unfit(net)
    assert (reason in found) and bool(found) == bool(reason), found
    assert not net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# --- turns -------------------------------------------------------------------------------------------------


def pack(most: int = 8) -> Pack:
    return Pack(SharedSignalHandler(), most)


def test_each_job_has_a_process_of_its_own_as_far_as_it_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", "theirs")
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    seen: dict[str, list[float]] = {"alone": [], "packed": []}

    def draws(into: list[float], rest: Callable[[], None]) -> None:
        torch.manual_seed(3)
        random.seed(3)
        with warnings.catch_warnings(action="ignore"):
            os.environ["WANDB_DATA_DIR"] = "mine"
            log, handler = logging.getLogger("lora_zoo"), logging.NullHandler()
            before = list(log.handlers)
            log.addHandler(handler)
            for _ in range(3):
                into += [float(torch.rand(())), random.random()]
                rest()
                assert warnings.filters[0][0] == "ignore"
                assert os.environ["WANDB_DATA_DIR"] == "mine"
                assert "WANDB_SILENT" not in os.environ
                assert log.handlers == [*before, handler]
            log.removeHandler(handler)

    def body(job: PackedJob) -> None:
        draws(seen["packed"] if job.name == "job1" else [], lambda: together.run_alone("it wants to be"))

    def noise(job: PackedJob) -> None:
        torch.rand(5)
        random.random()
        os.environ.pop("WANDB_DATA_DIR")
        os.environ["WANDB_SILENT"] = "true"
        warnings.simplefilter("error")

    draws(seen["alone"], lambda: None)
    monkeypatch.setenv("WANDB_DATA_DIR", "theirs")
    together = pack()
    together.run([noise, body, body, noise])
    assert seen["packed"] == seen["alone"]
    assert os.environ["WANDB_DATA_DIR"] == "theirs"
    assert warnings.filters[0][0] != "error"


def test_jobs_fill_the_seats_in_order_and_the_lonely_come_last() -> None:
    order: list[str] = []
    together = pack(most=2)

    def body(job: PackedJob) -> str:
        assert getcurrent() is not job.hub
        if job.name == "job0":
            together.run_alone("it is shy")
        order.append(job.name)
        if job.name == "job1":
            raise ValueError("this one fails")
        return job.name

    ended_jobs = together.run([body] * 4)
    assert order == ["job1", "job2", "job3", "job0"]
    assert [job.outcome for job in ended_jobs] == ["job0", None, "job2", "job3"]
    assert str(ended_jobs[1].error) == "this one fails"
    assert ended_jobs[0].reason == "it is shy"


def test_no_more_jobs_are_under_way_than_there_are_seats() -> None:
    events: list[str] = []

    def body(job: PackedJob) -> None:
        events.append(f"{job.name} begins")
        job.wait(Waiting.FORWARD)
        events.append(f"{job.name} ends")

    pack(most=1).run([body, body])
    assert events == ["job0 begins", "job0 ends", "job1 begins", "job1 ends"]


def trained(
    net: nn.Module, injection: Injection, extra: dict[str, Any], back: Callable[[], None]
) -> list[float]:
    """Three steps of a loop of one's own; the losses."""
    optimizer, losses = torch.optim.SGD(injection.parameters(), lr=0.1), []
    for step in range(3):
        states = net.base_model(**batch(2, 5 + injection.seed, step), **extra).last_hidden_state
        loss = states.square().mean() + injection.hooks.regularizer()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        back()
        optimizer.step()
    return losses


@pytest.mark.parametrize("caches", [(False, False), (True, False)], ids=["joined", "apart"])
def test_batches_that_cannot_be_joined_cost_a_warning_and_no_result(
    caches: tuple[bool, bool], caplog: pytest.LogCaptureFixture
) -> None:
    extras = [{"use_cache": cache} for cache in caches]
    expected = []
    for seed, extra in enumerate(extras):
        net = model().train()
        expected.append(trained(net, adapted(net, "lora", "all", seed, "default"), extra, lambda: None))
    net, together = model().train(), pack()
    backbone = Backbone(net)
    together.share(backbone)

    def body(job: PackedJob) -> list[float]:
        number = int(job.name[-1])
        adapters_of(net).show_all()
        job.injection = adapted(net, "lora", "all", number, job.name)
        adapters_of(net).isolate(job.name)
        return trained(net, job.injection, extras[number], together.backward)

    ended_jobs = together.run([body, body])
    assert [job.outcome for job in ended_jobs] == [pytest.approx(losses) for losses in expected]
    assert [job.most for job in ended_jobs] == ([2, 2] if len(set(caches)) == 1 else [1, 1])
    assert ("use_cache differ" in caplog.text) == (len(set(caches)) == 2)
    assert not adapters_of(net) and not any("adapters" in name for name, _ in net.named_modules())
    assert "forward" not in net.base_model.__dict__


@functools.cache
def configured(*words: str) -> Any:
    from hydra import compose, initialize_config_dir

    from lora_zoo.config import schema
    from lora_zoo.config.groups import folder
    from lora_zoo.config.validate import resolved
    from lora_zoo.runs.identity import specify

    schema.register()
    with initialize_config_dir(str(folder()), version_base="1.3"):
        try:
            return specify(resolved(compose("config", overrides=list(words))))
        except ValueError:
            return None  # as the launcher has it


@pytest.mark.parametrize(
    ("changes", "jobs", "reason"),
    [
        (("seed=1", "lr=0.1", "rank=2", "steps=7", "batch_size=3"), [0, 1], ""),
        (("variant=dora", "init=pissa", "target_modules=[o]"), [0, 1], ""),
        (("trainer.gradient_accumulation_steps=2", "trainer.optim=sgd"), [0, 1], ""),
        (("task=pocket-nli",), [1], ""),
        (("trainer.bf16=true",), [1], ""),
        (("model.dtype=bfloat16",), [1], ""),
        (("threads=2", "seed=1"), [1], ""),
        (("out=elsewhere",), [1], "the same run as another"),
        (("dry_run=true",), [1], "trains nothing"),
        (("trainer.torch_compile=true",), [1], "torch_compile"),
        (("steps=3", "epochs=3"), [1], "cannot be run as given"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else None,
)
def test_which_jobs_can_be_packed(changes: tuple[str, ...], jobs: list[int], reason: str) -> None:
    found = groups([configured(), configured(*changes)])
    (group,) = [group for group in found if 1 in group.jobs]
    assert group.jobs == jobs
    assert reason in group.reason and bool(group.reason) == bool(reason)


def test_a_signal_ends_the_job_whose_turn_it_is_and_lets_those_that_train_finish_their_step() -> None:
    signals, ended = SharedSignalHandler(), []
    together = Pack(signals, most=2)

    def trains(job: PackedJob) -> None:
        with signals.defer():
            together.run_alone("a step is under way")
            ended.append(("step", signals.received))

    def metrics(job: PackedJob) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        ended.append(("judged", None))

    def comes_later(job: PackedJob) -> None:
        ended.append(("began", None))

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as told, signals.listening():
        ended_jobs = together.run([trains, metrics, comes_later])
    live_on()
    assert told.value.code == 143
    assert ended == [("step", signal.SIGTERM)]
    assert isinstance(ended_jobs[1].error, Stopped)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# --- whole sweeps ------------------------------------------------------------------------------------------

COMMON = (
    *("task.sizes.train=40", "task.sizes.test=6", "task.sizes.validation=6", "task.max_new_tokens=4"),
    *("threads=1", "eval_before_training=false", "trainer.logging_steps=1", "batch_size=6", "tracking=none"),
    *("eval_splits=[validation]", "forgetting_text=null"),
)
PACKED = "hydra/launcher=packed"


started = functools.partial(start, "-m", merged=True)


def both(*arguments: str, at: Path, packing: tuple[str, ...] = ()) -> tuple[list[str], list[int]]:
    """The output of the sweep, one run after the other and packed, and the exit codes."""
    ways = [started(*arguments, "out=plain", at=at)]
    ways.append(started(PACKED, *arguments, *packing, "out=packed", at=at))
    said = [way.communicate(timeout=300)[0] for way in ways]
    return said, [way.returncode for way in ways]


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.rglob("result.json")}


SAME_KEYS = ("step", "epoch", "loss", "grad_norm", "learning_rate", "train_loss", "eval_exact_match")


def assert_same_runs(at: Path) -> dict[str, dict[str, Any]]:
    """Returns the packed ones."""
    plain, packed = results(at / "plain"), results(at / "packed")
    assert plain.keys() == packed.keys()
    for name, one in plain.items():
        other = packed[name]
        assert one["state"] == other["state"], (name, other.get("error"))
        assert one.get("metrics") == other.get("metrics")
        assert one.get("diverged") == other.get("diverged")
        assert one.get("parameters") == other.get("parameters")
        descriptions = [path.read_text() for path in at.rglob(f"*/{name}/adapter/adapter.json")]
        assert len(descriptions) in (0, 2) and len(set(descriptions)) <= 1
        assert len(one.get("history", [])) == len(other.get("history", []))
        for ours, theirs in zip(other.get("history", []), one.get("history", []), strict=True):
            assert ours.keys() == theirs.keys()
            for key in ours.keys() & set(SAME_KEYS):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-5, nan_ok=True), (
                    name,
                    key,
                    theirs["step"],
                )
    return packed


@pytest.mark.xdist_group("packed-a")
def test_a_packed_sweep_equals_the_same_runs_one_after_the_other(tmp_path: Path) -> None:
    """Dropout, AdaLoRA's schedule over two numbers of steps; jobs that join while others train.

    Of those, some fail at their start and some are to train alone.
    """
    words = ("+variant=lora,adalora,hra,full", "lora_dropout=0.1", "steps=2,4", "rank=3")
    packing = ("hydra.launcher.max_jobs=3",)
    said, codes = both(*words, "trainer.eval_steps=2", *COMMON, at=tmp_path, packing=packing)
    assert codes == [1, 1], said
    packed = assert_same_runs(tmp_path)
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for result in packed.values():
        by_variant.setdefault(result.get("variant", {}).get("name", "-"), []).append(result)
    side_by_side = {
        (name, result["config"]["steps"]): result["packed"]["jobs"]
        for name in ("lora", "adalora")
        for result in by_variant[name]
    }
    assert side_by_side.pop(("adalora", 4)) == 2, "it joins one that trains, when two have ended"
    assert len(side_by_side) == 3 and set(side_by_side.values()) == {3}
    assert all("must be even" in result["error"]["message"] for result in by_variant["hra"])
    assert all("fully trained" in result["packed"]["alone"] for result in by_variant["full"])
    assert said[1].count("runs by itself") == 2
    assert "at most 3 side by side" in said[1]


@pytest.mark.xdist_group("packed-b")
def test_accumulation_clipping_and_divergence_are_each_jobs_own(tmp_path: Path) -> None:
    """Of a wrapped optimiser and of a variant that trains on parts of the data in turns, too."""
    words = ("+variant=riemannian_lora,bilora", "lr=5e-3,1e30", "rank=2")
    words += ("trainer.optim=sgd", "trainer.max_grad_norm=0.05")
    more = ("trainer.gradient_accumulation_steps=2", "epochs=1.5", "+trainer.gradient_checkpointing=true")
    said, codes = both(*words, *more, *COMMON, at=tmp_path, packing=("tracking=offline",))
    assert codes == [1, 1], said
    packed = assert_same_runs(tmp_path)
    assert sorted(result["state"] for result in packed.values()) == ["diverged"] * 2 + ["done"] * 2
    assert all(result["packed"] == {"jobs": 4} for result in packed.values())
    clipped = [e["grad_norm"] for r in packed.values() for e in r["history"] if "grad_norm" in e]
    assert max(clipped) > 0.05  # clipping had something to do
    for name, result in packed.items():  # each run of W&B holds its own curve
        (folder,) = tmp_path.rglob(f"packed/*/{name}")
        (mirrored,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        losses = [e["loss"] for e in result["history"] if "loss" in e]
        assert mirrored_losses(mirrored) == pytest.approx(losses, nan_ok=True)


def mirrored_losses(file: Path) -> list[float]:
    from tests.test_tracking import of_kind, parsed

    items = [item for entry in of_kind(parsed(file.read_bytes()), "history") for item in entry.item]
    return [
        json.loads(i.value_json)
        for i in items
        if "/".join(i.nested_key) == "train/loss" or i.key == "train/loss"
    ]


@pytest.mark.xdist_group("packed-c")
def test_heads_start_from_their_own_seed_and_train_in_full(tmp_path: Path) -> None:
    """A classifier: heads per job, a classifier's dropout, sentences of many lengths."""
    bert().bert.save_pretrained(tmp_path / "encoder")
    tf.AutoTokenizer.from_pretrained(str(HUB)).save_pretrained(tmp_path / "encoder")
    rows = [f"{'which names are there ' * (1 + n % 4)},{'ab'[n % 2]}" for n in range(60)]
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    words = (
        "model=./encoder",
        "task=classification",
        "task.dataset=csv",
        "task.data_files={train: data.csv}",
    )
    more = ("+variant=lora,linear_probe", "seed=0,1", "lr=1e-2", "steps=3")
    said, codes = both(*words, *more, *COMMON, at=tmp_path)
    assert codes == [0, 0], said
    packed = assert_same_runs(tmp_path)
    assert all(result["packed"] == {"jobs": 4} for result in packed.values())
    first = {r["history"][0]["loss"] for r in packed.values() if r["variant"]["name"] == "lora"}
    assert len(first) == 2


HELD = """
import os, pathlib, time
from lora_zoo.training import trainer
plain, here = trainer.ZooTrainer.training_step, pathlib.Path({folder!r})
def training_step(self, *given, **more):
    if self.state.global_step + 1 == 3 and not getattr(self, "held", False):
        self.held = True
        (here / "held").touch()
        until = time.monotonic() + 120
        while not (here / "go").exists() and time.monotonic() < until: time.sleep(0.01)
    return plain(self, *given, **more)
trainer.ZooTrainer.training_step = training_step
"""
"""A sitecustomize.py: the jobs wait in their third step."""


@pytest.mark.xdist_group("packed-d")
def test_being_told_to_stop_saves_every_job_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = ("+variant=lora,adalora", "lora_dropout=0.1", "steps=6", *COMMON)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HELD.format(folder=str(tmp_path)))
    stopped = started(PACKED, *words, "out=stopped", at=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    whole = started(PACKED, *words, "out=whole", at=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "held").exists():
        assert stopped.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    said = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 143, said
    broken = results(tmp_path / "stopped")
    assert [result["state"] for result in broken.values()] == ["interrupted"] * 2, said
    assert len(list((tmp_path / "stopped").rglob("checkpoint-3/manifest.json"))) == 2
    again = started(PACKED, *words, "out=stopped", at=tmp_path)
    assert again.communicate(timeout=120)[0].count("resuming from step 3") == 2
    assert again.returncode == whole.wait(120) == 0
    for one in (tmp_path / "whole").rglob("adapter.safetensors"):
        (other,) = (tmp_path / "stopped").rglob(f"{one.parent.parent.name}/adapter/{one.name}")
        assert one.read_bytes() == other.read_bytes()
    idle = started(PACKED, *words, "out=stopped", at=tmp_path)
    assert idle.communicate(timeout=120)[0].count("done already") == 2


def test_mistakes_are_answered_before_anything_is_trained(tmp_path: Path) -> None:
    for wrong, answer in (("max_jobs=0", "must be at least 1; got 0"), ("most=3", "most")):
        ended = started(PACKED, "+variant=lora", "seed=0,1", f"hydra.launcher.{wrong}", *COMMON, at=tmp_path)
        said = ended.communicate(timeout=60)[0]
        assert ended.returncode == 2 and answer in said, said
        assert len(said.strip().splitlines()) == 1, said
    assert not results(tmp_path)
