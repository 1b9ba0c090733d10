"""The Trainer with an adapter's hooks: what is optimised, reported, ordered, saved and resumed."""

import contextlib
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from lora_zoo.bench.paths import takes_dropout
from lora_zoo.conformance.cases import firsts
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.training import divergence
from lora_zoo.training.checkpoints import newest, seal
from lora_zoo.training.dropbp import BackwardDropper
from lora_zoo.training.optimizers import RunArguments
from lora_zoo.training.state import REQUIRED, TrainState
from lora_zoo.training.trainer import ZooTrainer, length_of


def examples(count: int = 48) -> list[dict[str, list[int]]]:
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 40, (count, 9), generator=g).tolist()
    return [{"input_ids": row, "attention_mask": [1] * 9, "labels": row} for row in rows]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in batch]) for name in batch[0]}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def loss_of(injection: Injection) -> float:
    return injection.model.eval()(**collate(examples())).loss.item()


class Seen:
    """An evaluator of nothing and a collator that notes its batches."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.routing: dict[str, dict[str, Any]] = {}

    def evaluate_split(self, split: str) -> tuple[dict[str, float], dict[str, float]]:
        return {"nothing": 0.0}, {}

    def collate(self, batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        self.batches.append([row["input_ids"] for row in batch])
        return collate(batch)


def trainer(
    folder: Path, injection: Injection, seen: Seen | None = None, skip: bool = False, **changes: Any
) -> ZooTrainer:
    seen = seen or Seen()
    usual = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "data_seed": 3, "report_to": [], "disable_tqdm": True, "remove_unused_columns": False,
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "logging_nan_inf_filter": False,
    }  # fmt: skip
    return ZooTrainer(
        injection,
        evaluator=seen,
        skip=skip,
        args=RunArguments(**(usual | changes)),
        data_collator=seen.collate,
        train_dataset=examples(),
    )


def small(name: str, **more: Any) -> dict[str, Any]:
    return more | ({"rank": 2} if "rank" in hyperparameters(VARIANTS[name]) else {})


TRAINED = [name for name, cls in VARIANTS.items() if name != "zero_shot" and not cls.hooks.needs_priors]


@pytest.mark.parametrize("name", TRAINED)
def test_every_variant_trains_and_its_loss_falls(name: str, tmp_path: Path) -> None:
    injection = inject(model(), name, target_modules=["q", "v"], **small(name))
    before = loss_of(injection)
    run = trainer(tmp_path, injection, max_steps=8)
    run.train()
    # The examples are random: what a variant with parts learns on one of them says nothing of the others.
    assert loss_of(injection) < before or run.parts
    assert len([entry for entry in run.state.log_history if "loss" in entry]) == 8
    assert run.train_state.timer.summary()["steps"] == 8
    injection.hooks.law()


def test_the_logged_loss_is_the_tasks_alone(tmp_path: Path) -> None:
    """Two regularisers of very different weight log the same first loss: that of the untouched model."""
    first = []
    for weight in (0.0, 1000.0):
        injection = inject(model(), "adalora", rank=2, orth_reg_weight=weight)
        run = trainer(tmp_path / str(weight), injection, max_steps=1, gradient_accumulation_steps=2)
        run.train()
        first.append(run.state.log_history[0]["loss"])
    assert first[0] == pytest.approx(first[1], rel=1e-5)


class TwoPasses(AdapterHooks):
    """R-drop's form: a second pass whose loss is differentiated `share` times, beside the first one's."""

    share, losses = 3.0, list[tuple[float, float]]()

    def objective(self, once: Any, progress: Any) -> Any:
        loss, outputs = once()
        again, _ = once()
        self.losses.append((loss.item(), again.item()))
        return loss, outputs, self.share * again


@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_objective_of_two_passes_is_differentiated_whole_and_reported_by_its_first(
    accumulated: int, tmp_path: Path
) -> None:
    gradients, logged = [], []
    for hooks in (AdapterHooks, TwoPasses):
        variant = type("Twice", (VARIANTS["lora"],), {"name": "twice", "hooks": hooks})
        injection = inject(model(), variant, rank=2)
        run = trainer(
            tmp_path / hooks.__name__, injection, max_steps=1, gradient_accumulation_steps=accumulated,
            max_grad_norm=0.0, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        )  # fmt: skip
        before = {name: p.detach().clone() for name, p in injection.named_parameters().items()}
        run.train()
        gradients.append({name: before[name] - p for name, p in injection.named_parameters().items()})
        logged.append(run.state.log_history[0]["loss"])
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name].detach(), (1 + TwoPasses.share) * gradient.detach())


def test_each_pass_of_an_objective_has_dropout_masks_of_its_own(tmp_path: Path) -> None:
    variant = type("Twice", (VARIANTS["lora"],), {"name": "twice", "hooks": TwoPasses})
    injection = inject(model(), variant, rank=2, lora_dropout=0.5, init="both_random")
    TwoPasses.losses.clear()
    trainer(tmp_path, injection, max_steps=2).train()
    assert all(first != second for first, second in TwoPasses.losses)


def test_accumulating_gradients_equals_one_large_batch(tmp_path: Path) -> None:
    ends = []
    for size, times in ((8, 1), (4, 2)):
        injection = inject(model(), "adalora", rank=2, orth_reg_weight=0.3)
        run = trainer(
            tmp_path / str(size), injection,
            per_device_train_batch_size=size, gradient_accumulation_steps=times, max_steps=3,
        )  # fmt: skip
        run.train()
        ends.append(injection.state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-4, atol=1e-6)


def test_all_variants_of_a_seed_see_the_same_batches(tmp_path: Path) -> None:
    orders = []
    for name in ("lora", "dora", "vera", "full"):
        torch.manual_seed(len(name) * 17)  # the global stream must not matter
        seen = Seen()
        trainer(tmp_path / name, inject(model(), name, **small(name)), seen).train()
        orders.append(seen.batches)
    assert all(order == orders[0] for order in orders)
    other = Seen()
    trainer(tmp_path / "other", inject(model(), "lora", rank=2), other, data_seed=4).train()
    assert other.batches != orders[0]


# A new process resumes every variant in test_resumption; here each class of hooks does, in this one.
@pytest.mark.parametrize("name", firsts(lambda cls: cls.hooks, TRAINED))
def test_a_run_repeats_to_the_bit_and_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    dropout = {"lora_dropout": 0.1} if takes_dropout(name) else {}

    def fresh() -> Injection:
        return inject(model(), name, seed=5, **small(name, **dropout))

    whole, again, resumed = fresh(), fresh(), fresh()
    torch.manual_seed(1)
    trainer(tmp_path / "whole", whole, save_strategy="steps", save_steps=3).train()
    torch.manual_seed(2)
    trainer(tmp_path / "again", again).train()
    trainer(tmp_path / "whole", resumed).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3")
    )
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
        assert torch.equal(tensor, resumed.state_dict()[key]), key


def test_evaluation_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    ends = []
    for arguments in ({}, {"eval_strategy": "steps", "eval_steps": 2}):
        injection = inject(model(), "lora", rank=2, lora_dropout=0.2)
        run = trainer(tmp_path / str(len(arguments)), injection, **arguments)
        run.train()
        ends.append(injection.state_dict())
        evaluated = [entry for entry in run.state.log_history if "eval_nothing" in entry]
        assert len(evaluated) == (3 if arguments else 0)
    for key, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][key])


def test_a_layer_that_the_model_does_not_use_is_named(tmp_path: Path) -> None:
    idle = model()
    idle.add_module("spare", torch.nn.Linear(16, 16))
    injection = inject(idle, "lora", rank=2, target_modules=["q", "spare"])
    with pytest.raises(ValueError, match=r"spare.* gets no gradient"):
        trainer(tmp_path, injection).train()


def test_a_layer_that_training_skips_at_random_is_no_unused_one(tmp_path: Path) -> None:
    """As `layerdrop` has it: here the first layer is skipped in the first step alone."""
    skipping, passes = model(), 0

    def first_skipped(layer: torch.nn.Module, x: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += layer.training
        return x[0] if layer.training and passes == 1 else y

    skipping.model.layers[0].register_forward_hook(first_skipped)
    injection = inject(skipping, "lora", rank=2)
    trainer(tmp_path, injection).train()
    assert passes == 6 and all(p.abs().sum() > 0 for n, p in injection.named_parameters().items() if "B" in n)


@pytest.mark.parametrize(
    "batch, patch, length",
    [
        ({"input_ids": (2, 9)}, None, 9),
        ({"input_values": (2, 600)}, None, 600),
        ({"input_values": (2, 30, 16)}, None, 30),
        ({"input_features": (2, 4, 16)}, None, 16),
        ({"pixel_values": (2, 3, 8, 8)}, 4, 4),
        ({"pixel_values": (2, 3, 8, 8)}, [2, 4], 8),
        ({"pixel_values": (2, 3, 8, 8)}, None, 64),
    ],
)
def test_the_length_of_a_batch_is_that_of_its_sequences(batch: Any, patch: Any, length: int) -> None:
    made = {name: torch.zeros(shape) for name, shape in batch.items()}
    config = SimpleNamespace(patch_size=patch) if patch else SimpleNamespace()
    assert length_of(made, config) == length


def test_groups_of_lora_plus_keep_their_ratio_through_the_schedule(tmp_path: Path) -> None:
    run = trainer(tmp_path, inject(model(), "lora_plus", rank=2, loraplus_lr_ratio=8.0))
    run.train()
    rates = [group["lr"] for group in run.optimizer.param_groups]
    assert [base / run.lr_scheduler.base_lrs[0] for base in run.lr_scheduler.base_lrs] == [1.0, 8.0]
    assert rates[0] == rates[1] == 0.0  # linear decay has reached its end


@pytest.mark.parametrize("schedule, first", [("linear", 0), ("cosine", 0), ("constant", 1)])
def test_hooks_see_the_schedule_s_factor_of_the_step_in_hand(
    tmp_path: Path, schedule: str, first: float
) -> None:
    injection, seen, used = inject(model(), "lora_plus", rank=2), list[Progress](), list[list[float]]()
    injection.hooks.on_after_backward = injection.hooks.on_step_end = seen.append
    run = trainer(tmp_path, injection, lr_scheduler_type=schedule, warmup_steps=2)
    run.create_optimizer_and_scheduler(6)
    run.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append([group["lr"] for group in optimizer.param_groups])
    )
    run.train()
    assert [progress.step for progress in seen] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    for before, after, rates in zip(seen[::2], seen[1::2], used, strict=True):
        assert before == after
        assert rates == pytest.approx([group * before.rate for group in run.lr_scheduler.base_lrs])
    assert seen[0].rate == first and seen[4].rate == 1


def test_a_schedule_that_does_not_fit_is_refused_before_the_first_step(tmp_path: Path) -> None:
    injection = inject(model(), "adalora", rank=2, tinit=4, tfinal=4)
    before = {k: v.clone() for k, v in injection.state_dict().items()}
    with pytest.raises(ValueError, match="tinit=4 and tfinal=4 leave no step of 6"):
        trainer(tmp_path, injection).train()
    assert all(torch.equal(v, before[k]) for k, v in injection.state_dict().items())


# --- the order of a step, and the state of a checkpoint ----------------------------------------------------


class Recorder(TrainerCallback):
    """Notes calls by name, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def watch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: str) -> None:
        plain = getattr(owner, name)

        def noted(*arguments: Any, **named: Any) -> Any:
            self.calls.append(call)
            return plain(*arguments, **named)

        monkeypatch.setattr(owner, name, noted)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.calls.clear()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.calls.append("callback.on_step_end")

    def on_log(self, *_: Any, **__: Any) -> None:
        self.calls.append("callback.on_log")


def documented() -> list[str]:
    """The calls of a step in ZooTrainer's docstring, in its order."""
    return re.findall(r"^ *\| `([\w.]+)` \|", str(ZooTrainer.__doc__), flags=re.MULTILINE)


def test_a_step_has_the_order_that_the_docstring_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    injection, recorder = inject(model(), "lora", rank=2), Recorder()

    @contextlib.contextmanager
    def forward_context(progress: Any) -> Iterator[None]:
        recorder.calls.append("hooks.forward_context")
        yield
        recorder.calls.append("hooks.forward_context.exit")

    monkeypatch.setattr(injection.hooks, "forward_context", forward_context)
    run = trainer(tmp_path, injection, max_steps=2, gradient_accumulation_steps=2)
    run.add_callback(recorder)
    run.create_optimizer_and_scheduler(2)
    watched: dict[str, tuple[Any, list[str]]] = {
        "hooks": (injection.hooks, ["objective", "regularizer", "on_after_backward", "on_step_end"]),
        "model": (injection.model, ["forward", "zero_grad"]),
        "accelerator": (run.accelerator, ["backward", "clip_grad_norm_"]),
        "optimizer": (run.optimizer, ["step"]),
        "lr_scheduler": (torch.optim.lr_scheduler.LRScheduler, ["step"]),
        "divergence": (divergence, ["finite"]),
    }
    for label, (owner, names) in watched.items():
        for name in names:
            recorder.watch(monkeypatch, owner, name, f"{label}.{name}")
    run.train()
    step = documented()
    batch = step[: step.index("hooks.forward_context.exit") + 1]
    expected = 2 * (batch + step)
    assert recorder.calls[: len(expected)] == expected
    assert set(recorder.calls[len(expected) :]) <= {"callback.on_log"}  # the whole run's loss


@pytest.mark.parametrize("skip", [False, True])
def test_a_step_that_is_not_finite_ends_the_run_or_is_skipped(
    skip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, bad = ZooTrainer.compute_loss, {2, *range(4, 14)}

    def compute_loss(self: ZooTrainer, *given: Any, **more: Any) -> Any:
        return plain(self, *given, **more) * (float("inf") if self.progress.step in bad else 1)

    monkeypatch.setattr(ZooTrainer, "compute_loss", compute_loss)
    injection = inject(model(), "lora", rank=2)
    run = trainer(tmp_path, injection, max_steps=20, skip=skip)
    with pytest.raises(divergence.Diverged) as caught:
        run.train()
    message = str(caught.value)
    assert caught.value.about["step"] == (13 if skip else 2)
    assert ("10 steps in a row" in message) == skip and "lr=0.01" in message
    assert run.train_state.skipped == ([2, *range(4, 13)] if skip else [])
    assert all(p.isfinite().all() for p in injection.parameters())


class Buffered(AdapterHooks):
    """Hooks with a state of their own."""

    def __init__(self, adapters: Any) -> None:
        super().__init__(adapters)
        self.register_buffer("own", torch.zeros(2))


def stateful(folder: Path) -> ZooTrainer:
    network = model()
    network.register_buffer("mean", torch.zeros(3))
    injection = inject(network, "lora", rank=2, lora_dropout=0.5)
    object.__setattr__(injection, "hooks", Buffered({}))
    run = trainer(folder, injection)
    run._tr_loss, run._total_loss_scalar = torch.tensor(0.0), 0.0
    run._globalstep_last_logged = 0
    run.dropper = BackwardDropper(network, 0.5, warmup=0.0, uniform=False, seed=0)
    return run


def test_the_state_of_one_run_becomes_that_of_another(tmp_path: Path) -> None:
    """Every entry is different from a new run's, saved, and loaded into one."""
    one, other = stateful(tmp_path / "one"), stateful(tmp_path / "other")
    new = copy.deepcopy(other.train_state.state_dict())
    with torch.no_grad():
        for tensor in (*one.injection.parameters(), one.injection.model.mean, one.injection.hooks.own):
            tensor.add_(1.5)
    one.injection.counter.counts = {site: n + 7 for n, site in enumerate(one.injection.counter.counts)}
    one._tr_loss, one._total_loss_scalar, one._globalstep_last_logged = torch.tensor(0.25), 1.5, 4
    one.train_state.timer.seconds, one.train_state.skipped = [0.5, 0.75], [2]
    one.train_state.evaluation_pending, one.ranks.changes = True, {"m": [[0, 2], [4, 1]]}
    one.dropper.load_state({"rates": dict.fromkeys(one.dropper.rates, 0.75), "allocated": True})
    one.train_state.save(tmp_path, model="m")
    other.train_state.load(tmp_path)
    other.train_state.on_train_begin()
    assert other.args.eval_on_start is True
    saved, loaded = one.train_state.state_dict(), other.train_state.state_dict()
    loaded["progress"]["owed"] = other.args.eval_on_start  # it is done then, not kept
    assert list(saved) == list(loaded) == ["adapter", "hooks", "buffers", "progress"]
    for part, entries in saved.items():
        assert entries and entries.keys() == loaded[part].keys() == new[part].keys()
        for name, value in entries.items():
            assert same(value, loaded[part][name]), name
            assert not same(value, new[part][name]), name


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_checkpoint_holds_the_files_that_the_docstring_names(tmp_path: Path) -> None:
    trainer(tmp_path, inject(model(), "lora", rank=2), save_strategy="steps", save_steps=6).train()
    files = {path.name for path in (tmp_path / "checkpoint-6").iterdir()}
    table = {
        word
        for row in re.findall(r"^ *\| ([^|`]+) \|", str(TrainState.__doc__), re.M)
        for word in row.split(", ")
    }
    named = {name for name in table if "." in name} - {"scaler.pt"}  # float16 alone has one
    assert files - {"training_args.bin"} == named
    assert set(REQUIRED) == named - {"adapter.json", "manifest.json"}


@pytest.mark.parametrize("name", REQUIRED)
def test_a_checkpoint_without_a_required_file_is_not_used(name: str, tmp_path: Path) -> None:
    trainer(
        tmp_path, inject(model(), "lora", rank=2), max_steps=1, save_strategy="steps", save_steps=1
    ).train()
    assert newest(tmp_path, needs=REQUIRED) is not None
    (tmp_path / "checkpoint-1" / name).unlink()
    seal(tmp_path / "checkpoint-1")
    assert newest(tmp_path, needs=REQUIRED) is None
