"""Examples of a batch in one row: the same losses and gradients as padded ones, or a refusal."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lora_zoo.config import compose
from lora_zoo.config.schema import register
from lora_zoo.conformance.cases import firsts
from lora_zoo.core.hooks import WITHIN_STEP, AdapterHooks, Progress
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.tasks.cutting import Example
from lora_zoo.training.padding_free import OneRow, filled, laid_out, one_row
from lora_zoo.training.trainer import ZooTrainer
from tests.test_training import TRAINED, model, small, trainer

register()
G = torch.Generator().manual_seed(1)
ROWS = [torch.randint(3, 40, (size,), generator=G).tolist() for size in (9, 4, 7, 12, 3, 9, 5, 8)]
EXAMPLES = [{"input_ids": r, "attention_mask": [1] * len(r), "labels": [-100] * 2 + r[2:]} for r in ROWS]


def padded(batch: list[Example]) -> dict[str, torch.Tensor]:
    longest = max(len(row["labels"]) for row in batch)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    made = {
        name: [row[name] + [pad] * (longest - len(row[name])) for row in batch] for name, pad in fill.items()
    }
    return {name: torch.tensor(rows) for name, rows in made.items()}


DECODER: Any = SimpleNamespace(
    auto_class="AutoModelForCausalLM", collate=padded, task=SimpleNamespace(type="causal_lm")
)
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 24},
    "gpt2": {"n_positions": 64},
    "gpt_neox": {"intermediate_size": 24},
    "bloom": {},
    "mamba": {},
}


def family(name: str, attention: str = "eager") -> Injection:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(SIZES | FAMILIES[name]))
    network = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return inject(network, "lora", rank=1, target_modules="all-linear")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_model_that_keeps_examples_apart_is_taken(name: str, attention: str) -> None:
    one_row(family(name, attention), DECODER, EXAMPLES)


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_a_model_that_reads_on_into_the_next_example_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} does not keep examples of one row apart"):
        one_row(family(name), DECODER, EXAMPLES)


def test_training_is_that_of_padded_rows(tmp_path: Path) -> None:
    def trained(collate: Any) -> ZooTrainer:
        injection = inject(model(), "lora", rank=2, target_modules="all-linear", seed=5)
        run = trainer(tmp_path, injection, gradient_accumulation_steps=2, label_smoothing_factor=0.1)
        run.train_dataset, run.data_collator = EXAMPLES, collate
        run.train()
        return run

    one, other = trained(padded), trained(OneRow())
    for name, tensor in one.injection.state_dict().items():
        torch.testing.assert_close(other.injection.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 6


def test_rows_are_filled_with_the_longest_first_each_where_least_is_left() -> None:
    """By hand, room 10: 9; 6 and the 4 that fits exactly, though the 5's row has room for it too; 5, 3, 2."""
    examples = [{"input_ids": [0] * size} for size in (6, 5, 4, 3, 2, 9)]
    rows = [[len(example["input_ids"]) for example in row] for row in filled(examples, 10)]
    assert rows == [[9], [6, 4], [5, 3, 2]]


def test_packing_has_the_losses_and_gradients_of_its_examples_alone() -> None:
    injection = inject(model().double(), "lora", rank=2, target_modules="all-linear", seed=5, init="zero_a")
    packing: Any = SimpleNamespace(padding_free=False, packing=True)
    kind: Any = SimpleNamespace(**{**vars(DECODER), "task": SimpleNamespace(type="causal_lm", max_length=16)})
    rows, collate = laid_out(packing, injection, kind, EXAMPLES)
    assert sorted(id(example) for row in rows for example in row) == sorted(map(id, EXAMPLES))
    assert len(rows) == 4 and all(sum(len(e["labels"]) for e in row) <= 16 for row in rows)

    def summed(batches: list[dict[str, Any]]) -> tuple[float, list[torch.Tensor]]:
        injection.model.zero_grad()
        losses = [injection.model(**b).loss * (b["labels"][:, 1:] != -100).sum() for b in batches]
        torch.stack(losses).sum().backward()
        return sum(loss.item() for loss in losses), [
            p.grad.clone() for p in injection.parameters() if p.grad is not None
        ]

    loss, gradients = summed([padded([example]) for example in EXAMPLES])
    packed, of_rows = summed([collate(rows[:2]), collate(rows[2:])])
    assert packed == pytest.approx(loss, rel=1e-6) and len(of_rows) == len(gradients)
    for one, other in zip(of_rows, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_an_epoch_of_packing_takes_each_example_once(tmp_path: Path) -> None:
    injection = inject(model(), "lora", rank=2, target_modules=["q"], seed=5)
    run = trainer(tmp_path, injection, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=2)
    seen: list[int] = []
    run.train_dataset = filled(EXAMPLES, 16)

    def collate(batch: list[list[Example]]) -> dict[str, Any]:
        examples = [example for row in batch for example in row]
        seen.extend(map(id, examples))
        return OneRow()(examples)

    run.data_collator = collate
    run.train()
    assert run.state.global_step == 2 and sorted(seen) == sorted(map(id, EXAMPLES))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["padding_free=true"], "no effect beside packing=true"),
        (["program=relora"], "packing=true: program=relora cuts its run into stages"),
        (["+trainer.neftune_noise_alpha=5"], "packing=true: trainer.neftune_noise_alpha=5 scales"),
    ],
)
def test_what_packing_does_not_go_with_is_said(given: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose.check(["packing=true", *given], multirun=False)


def within_step(cls: Any) -> Any:
    """The hooks that act within a step, or what adapters are that have no weight; the others see tokens."""
    acts = any(getattr(cls.hooks, name) is not getattr(AdapterHooks, name) for name in WITHIN_STEP)
    return cls.hooks if acts else "by its weight" if cls.pointwise else cls.__mro__[1]


MASKED = ("r_drop", "lora_dropout_masks")
"""Masks are drawn for the rows of a batch, so that other rows have others."""


@pytest.mark.parametrize("name", [n for n in firsts(within_step, TRAINED) if n not in MASKED])
def test_a_variant_sees_tokens_alone_or_is_refused(name: str) -> None:
    injection = inject(model().double(), name, seed=5, **small(name))
    if VARIANTS[name].by_row:
        with pytest.raises(ValueError, match=f"several examples in a row, and {name} "):
            one_row(injection, DECODER, EXAMPLES)
        return
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    losses, gradients = [], []
    for batch in (padded(EXAMPLES), OneRow()(list(EXAMPLES))):
        injection.model.train().zero_grad()
        torch.manual_seed(7)
        with injection.hooks.forward_context(Progress(1, 10)):
            loss = injection.model(**batch).loss + injection.hooks.regularizer()
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in injection.parameters() if p.grad is not None])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_what_is_no_decoder_or_has_tasks_is_refused() -> None:
    injection = family("llama")
    encoder: Any = SimpleNamespace(
        auto_class="AutoModelForSequenceClassification", task=SimpleNamespace(type="classification")
    )
    with pytest.raises(ValueError, match="is for decoders of text, and type=classification has none"):
        one_row(injection, encoder, EXAMPLES)
    with pytest.raises(ValueError, match="a row, which has one task"):
        one_row(injection, DECODER, [example | {"task_ids": 1} for example in EXAMPLES])
