"""Parts of the training data: which examples each optimiser step sees, and what learns from them."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from lora_zoo.conformance.cases import inputs, lone, only, perturb, randomise
from lora_zoo.core.hooks import Progress
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.runs.identity import specify
from lora_zoo.training import runner
from lora_zoo.training.parts import TurnSampler, divided
from lora_zoo.training.trainer import ZooTrainer
from lora_zoo.variants.adaptive import two_levels
from tests.test_programs import QUICK, asked, folder_in, record
from tests.test_training import examples, model, trainer

SHARES = {"inner": 0.8, "outer": 0.2}


def bilora(**hyper: Any) -> Injection:
    return inject(model(), "bilora", rank=2, **{"lora_dropout": 0.1, **hyper})


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """(step, the numbers of its examples) of each micro-batch that is trained from now on."""
    seen, plain = list[tuple[int, list[int]]](), ZooTrainer.training_step
    rows = [tuple(example["input_ids"]) for example in examples()]

    def training_step(self: ZooTrainer, model: Any, batch: Any, *given: Any, **more: Any) -> Any:
        seen.append((self.progress.step, [rows.index(tuple(row)) for row in batch["input_ids"].tolist()]))
        return plain(self, model, batch, *given, **more)

    monkeypatch.setattr(ZooTrainer, "training_step", training_step)
    return seen


@pytest.mark.parametrize("accumulated", [1, 3])
def test_each_step_sees_examples_of_the_part_that_is_due(
    accumulated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many steps and examples as any variant has, over more than one epoch."""
    seen, sizes = watched(monkeypatch), []
    for injection in (bilora(inner_steps=2), inject(model(), "lora", rank=2)):
        seen.clear()
        run = trainer(
            tmp_path, injection, num_train_epochs=2, max_steps=-1, gradient_accumulation_steps=accumulated
        )
        run.train()
        sizes.append([(step, len(numbers)) for step, numbers in seen])
        if run.parts:
            assert {n: len(own) for n, own in run.parts.items()} == {"inner": 38, "outer": 10}
            assert sorted(torch.cat(list(run.parts.values())).tolist()) == list(range(48))
            turns = [["inner", "inner", "outer"][(step - 1) % 3] for step, _ in seen]
            assert all(
                set(numbers) <= set(run.parts[part].tolist())
                for part, (_, numbers) in zip(turns, seen, strict=True)
            )
    assert sizes[0] == sizes[1]


@settings(deadline=None, max_examples=30)
@given(
    examples=st.integers(12, 60),
    size=st.integers(1, 4),
    accumulated=st.integers(1, 3),
    drop=st.booleans(),
    turns=st.lists(st.sampled_from(["inner", "outer"]), min_size=1, max_size=5),
)
def test_a_part_is_gone_through_whole_before_it_begins_again(
    examples: int, size: int, accumulated: int, drop: bool, turns: list[str]
) -> None:
    """And the third epoch is the same, whether or not the first two were drawn."""
    arguments = TrainingArguments(
        gradient_accumulation_steps=accumulated, dataloader_drop_last=drop, use_cpu=True, report_to=[]
    )
    parts = divided({"inner": 0.7, "outer": 0.3}, examples, seed=1, least=1)

    def sampler() -> TurnSampler:
        return TurnSampler(parts, lambda step: turns[(step - 1) % len(turns)], arguments, size, seed=2)

    order = sampler()
    epochs = [(order.set_epoch(epoch), list(order))[1] for epoch in range(3)]
    assert {len(epoch) for epoch in epochs} == {len(order)} == {examples - examples % size * drop}
    again = sampler()
    again.set_epoch(2)
    assert list(again) == epochs[2]
    for own in parts.values():
        stream = [number for epoch in epochs for number in epoch if number in own]
        passes = [stream[start : start + len(own)] for start in range(0, len(stream), len(own))]
        assert all(max(Counter(numbers).values()) == 1 for numbers in passes)
        assert all(set(numbers) == set(own.tolist()) for numbers in passes[:-1])
        assert len(passes) < 3 or passes[0] != passes[1] or len(own) < 5


def test_the_division_is_the_data_seed_s_alone(tmp_path: Path) -> None:
    runs = [
        trainer(tmp_path, bilora(), seed=seed, data_seed=data_seed)
        for seed, data_seed in ((1, 3), (2, 3), (1, 4))
    ]
    first, same, other = (run.parts["outer"].tolist() for run in runs)
    assert first == same != other


def test_what_rests_does_not_move_nor_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    injection, seen = bilora(), list[dict[str, torch.Tensor]]()
    plain = ZooTrainer.training_step

    def training_step(self: ZooTrainer, *given: Any, **more: Any) -> Any:
        seen.append({n: p.detach().clone() for n, p in injection.named_parameters().items()})
        return plain(self, *given, **more)

    monkeypatch.setattr(ZooTrainer, "training_step", training_step)
    trainer(tmp_path, injection, weight_decay=0.5, max_steps=5).train()
    for step, (before, after) in enumerate(pairwise(seen), start=1):
        moved = {n for n in before if not torch.equal(before[n], after[n])}
        values = {n for n in before if n.endswith("E_R")}
        assert moved == (before.keys() - values if step % 2 else values)


@pytest.mark.parametrize("step", [6, 9])
def test_a_run_of_parts_resumes_to_the_bit_amid_a_round_and_an_epoch(step: int, tmp_path: Path) -> None:
    more = {"gradient_accumulation_steps": 3, "max_steps": 11, "weight_decay": 0.1}  # 4 steps an epoch

    def fresh() -> Injection:
        return bilora(inner_steps=3, outer_steps=2, unroll_lr=0.5)

    whole, resumed = fresh(), fresh()
    trainer(tmp_path / "whole", whole, save_strategy="steps", save_steps=1, **more).train()
    run = trainer(tmp_path / "resumed", resumed, **more)
    run.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


@pytest.mark.parametrize(
    ("hyper", "changes", "says"),
    [
        ({"unroll_lr": -1.0}, {}, r"bilora: unroll_lr must be 0 \(first order\) or more; got -1\.0"),
        ({"outer_share": 0.05}, {}, "'outer' is too small: its share of 48 training examples is 2"),
        ({}, {"ignore_data_skip": True}, r"trainer\.ignore_data_skip=true: bilora trains on parts"),
        ({}, {"train_sampling_strategy": "sequential"}, r"strategy=sequential: bilora trains on parts"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    hyper: dict[str, Any], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        trainer(tmp_path, bilora(**hyper), **changes)


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.6}, {"a": 1.0, "b": 0.0}, {"a": 0.5}])
def test_shares_add_up_to_one(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0 that add up to 1"):
        divided(shares, 100, seed=0, least=1)


# --- the unrolled step -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frozen", "gradient"), [(False, -10.05), (True, -11.4)])
def test_the_unrolled_gradient_of_a_bilinear_loss_is_that_of_the_page(frozen: bool, gradient: float) -> None:
    """ΔW = b v a, L_in = 1.5 ΔW, L_out = -2 ΔW at a = 2, b = 3, v = 0.5, ξ = 0.1.

    First order: -2 a b = -12. The second term is -ξ 1.5 (-2) v (a² + b²) = 1.95. With a at rest it is 0.6,
    and the sum d/dv of -2 a v (b₀ - ξ 1.5 v a), whose step from b₀ = 3.15 led to b.
    """
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False)).double()
    injection = inject(net, "bilora", target_modules="0", rank=1, alpha=1.0, unroll_lr=0.1)
    adapter, host = only(injection)
    W, values = (
        host.matrix().detach(),
        zip((adapter.A_RI, adapter.E_R, adapter.B_OR), (2, 0.5, 3), strict=True),
    )
    for p, value in values:
        torch.nn.init.constant_(p, value)
    adapter.A_RI.requires_grad_(not frozen)
    learned = injection.parameters()

    def gradients_of_step(step: int) -> dict[Any, torch.Tensor]:
        assert step == 1
        found = torch.autograd.grad(1.5 * adapter.weight(W).sum(), learned)
        return dict(zip(learned, found, strict=True))

    (-2 * adapter.weight(W).sum() + injection.hooks.regularizer()).backward()
    with pytest.raises(ValueError, match="bilora: unroll_lr needs this project's trainer"):
        injection.hooks.on_after_backward(Progress(2, 2))
    injection.hooks.on_after_backward(Progress(2, 2, gradients_of_step=gradients_of_step))
    assert adapter.E_R.grad.item() == pytest.approx(gradient, rel=1e-9)
    assert (adapter.A_RI.item(), adapter.B_OR.item()) == (2, 3) and adapter.B_OR.grad is None


@pytest.mark.parametrize("variant", ["bilora", "autolora_search"])
def test_the_trainer_unrolls_the_last_inner_step(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As autograd differentiates twice, on the micro-batches that were seen, with the same dropout."""
    monkeypatch.setattr(two_levels, "SHIFT", 1e-3)
    host = model().double()
    host.set_attn_implementation("eager")
    injection = inject(host, variant, rank=2, lora_dropout=0.1, inner_steps=2, outer_steps=2, unroll_lr=0.5)
    randomise(host.parameters(), 0.3, 1)
    run = trainer(tmp_path, injection, gradient_accumulation_steps=2, max_steps=8)
    seen, hooks, checked = watched(monkeypatch), injection.hooks, list[float]()
    upper = [p for n, p in injection.named_parameters().items() if n.endswith(f".{hooks.upper}")]
    lower = [p for n, p in injection.named_parameters().items() if not n.endswith(f".{hooks.upper}")]

    def on_after_backward(progress: Progress) -> None:
        plain = [p.grad.clone() for p in upper]
        of_penalty = torch.as_tensor(hooks.regularizer(), dtype=torch.float64)
        penalty = torch.autograd.grad(of_penalty + 0 * lower[0].sum(), lower, materialize_grads=True)
        v = [p.grad - own for p, own in zip(lower, penalty, strict=True)]
        type(hooks).on_after_backward(hooks, progress)
        if progress.step % 4 in (1, 2):
            return
        last = max(step for step, _ in seen if step % 4 == 2)
        with run._without_trace():
            losses = [
                run.compute_loss(host, run.data_collator([run.train_dataset[n] for n in numbers])) / 2
                for step, numbers in seen
                if step == last
            ]
            first = torch.autograd.grad(sum(losses), lower, create_graph=True)
        along = sum((g * own).sum() for g, own in zip(first, v, strict=True))
        second = torch.autograd.grad(along, upper)
        for p, own, more in zip(upper, plain, second, strict=True):
            torch.testing.assert_close(p.grad - own, -0.5 * more, rtol=0, atol=float(5e-3 * more.abs().max()))
        checked.append(max(float(more.abs().max()) for more in second))

    monkeypatch.setattr(hooks, "on_after_backward", on_after_backward)
    run.train()
    assert len(checked) == 4 and max(checked) > 1e-2
    assert seen[-1][0] == 8 and len(seen) == 16


# --- BiLoRA ------------------------------------------------------------------------------------------------


def test_bilora_walks_two_levels_of_first_order() -> None:
    """Plain descent: P and Q on L + γ (‖PᵀP - 1‖² + ‖QQᵀ - 1‖²), Λ on L, each at what the others are."""
    net, x = lone("linear"), inputs("linear")
    injection = inject(net, "bilora", target_modules="layer", rank=3, alpha=6.0, orth_reg_weight=0.05)
    perturb(injection)
    adapter, host = only(injection)
    W, b = host.matrix().detach(), net.layer.layer.bias.detach()
    P, v, Q = (p.detach().clone() for p in (adapter.B_OR, adapter.E_R, adapter.A_RI))
    optimizer = injection.optimizer(torch.optim.SGD, lr=0.05)
    for step in range(1, 6):
        for tensor in (P, v, Q):
            tensor.requires_grad_()
        loss = (x @ (W + 2 * P @ torch.diag(v) @ Q).T + b - 1).square().mean()
        one = torch.eye(3).double()
        penalty = 0.05 * ((P.T @ P - one).square().sum() + (Q @ Q.T - one).square().sum())
        dP, dv, dQ = torch.autograd.grad(loss + penalty, (P, v, Q))
        rates = (0.05, 0.0) if step % 2 else (0.0, 0.05)
        P, v, Q = (
            (t - r * d).detach() for t, r, d in ((P, rates[0], dP), (v, rates[1], dv), (Q, rates[0], dQ))
        )
        ((net(x) - 1).square().mean() + injection.hooks.regularizer()).backward()
        injection.hooks.on_after_backward(Progress(step, 5))
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(adapter.B_OR.detach(), P)
    torch.testing.assert_close(adapter.E_R.detach(), v)
    torch.testing.assert_close(adapter.A_RI.detach(), Q)


@pytest.mark.parametrize("parametrization", ["real", "softmax", "binary"])
def test_bilora_s_singular_values_are_those_of_its_parametrization(parametrization: str) -> None:
    """C-10, at its start unchanged; softmax values add up to 1, binary ones lie between 0 and 1."""
    injection = inject(
        lone("linear"), "bilora", target_modules="layer", rank=4, alpha=6.0, parametrization=parametrization
    )
    adapter, host = only(injection)
    W = host.matrix().detach()
    torch.testing.assert_close(adapter.weight(W), W)
    perturb(injection, 2.0)
    with torch.no_grad():
        adapter.B_OR.copy_(torch.linalg.qr(adapter.B_OR).Q)
        adapter.A_RI.copy_(torch.linalg.qr(adapter.A_RI.T).Q.T)
        v, found = adapter.E_R, torch.linalg.svdvals(adapter.weight(W) - W)[:4] / 1.5
    values = {"real": v.abs(), "softmax": v.exp() / v.exp().sum(), "binary": 1 / (1 + (-v).exp())}
    torch.testing.assert_close(found, values[parametrization].sort(descending=True).values.detach())
    penalty, p = injection.hooks.regularizer(), adapter.values().double()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum() if parametrization == "binary" else 0 * p.sum()
    torch.testing.assert_close(penalty, 0.1 * entropy, atol=1e-9, rtol=1e-6)


def test_a_run_records_its_parts_and_they_are_in_its_identity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("+variant=bilora", "rank=2", "steps=2", *QUICK, "batch_size=4", "task.sizes.train=20")
    spec = asked(*words, f"out={tmp_path}")
    assert asked(*words, "variant.outer_share=0.3").identity != asked(*words).identity == spec.identity
    assert runner.run(spec) == 0
    assert record(folder_in(tmp_path))["parts"] == {"inner": 16, "outer": 4}
    assert runner.run(asked(*words, "dry_run=true")) == 0
    assert "training examples in parts, each step from one: inner 80%, outer 20%" in capsys.readouterr().out
    assert specify(spec.settings).parts == pytest.approx(SHARES)


@pytest.mark.parametrize("dry", ["true", "false"])
def test_a_program_refuses_parts(dry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("+variant=bilora", "program=relora", "rank=2", "steps=8", f"dry_run={dry}", f"out={tmp_path}")
    assert runner.run(asked(*words, *QUICK)) == 2
    assert "program relora: bilora trains on parts of the data" in " ".join(capsys.readouterr().out.split())
