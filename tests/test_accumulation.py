"""The loss of a batch is that of its accumulated parts, for every task type, head and hook."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import inject
from lora_zoo.pocket import HUB, nli, sql
from lora_zoo.training.trainer import ZooTrainer

WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
HALF = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_layers": 1, "decoder_layers": 1}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
MODELS: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "bert_classes": ("classification", BertForSequenceClassification, BertConfig, WIDTH),
    "llama_classes": ("classification", LlamaForSequenceClassification, LlamaConfig, WIDTH),
    "bart_classes": ("classification", BartForSequenceClassification, BartConfig, HALF),
    "bert_scores": ("regression", BertForSequenceClassification, BertConfig, WIDTH),
    "llama_choices": ("multiple_choice", LlamaForCausalLM, LlamaConfig, WIDTH),
    "llama_texts": ("causal_lm", LlamaForCausalLM, LlamaConfig, WIDTH),
    "llama_language": ("language_modelling", LlamaForCausalLM, LlamaConfig, WIDTH),
    "t5_texts": ("seq2seq", T5ForConditionalGeneration, T5Config, T5 | {"decoder_start_token_id": 0}),
}


class TwoPasses(AdapterHooks):
    """An extra pass, differentiated three times, and a regularizer that knows no batch."""

    def objective(self, once: Any, progress: Any) -> Any:
        loss, outputs = once()
        return loss, outputs, 3.0 * once()[0]

    def regularizer(self) -> Any:
        return sum(p.square().sum() for a in self.adapters.values() for p in a.parameters())


@functools.cache
def data() -> tuple[Any, dict[str, Dataset]]:
    rows = {"prompt": sql.examples("train", 16, 0), "text": nli.examples("train", 16, 0)}
    longer = [
        row | {"target": row["target"].removesuffix(";") * (1 + n % 3)}
        for n, row in enumerate(rows["prompt"])
    ]
    texts = [
        {"text": f"{r['prompt']} </s>", "prompt": r["prompt"], "label": r["label"]} for r in rows["text"]
    ]
    scored = [row | {"label": float(n % 5)} for n, row in enumerate(texts)]
    whole = [{"input_ids": list(range(5, 10 + 4 * (n % 3)))} for n in range(16)]
    given = {"causal_lm": longer, "seq2seq": longer, "regression": scored, "language_modelling": whole}
    kinds = ("classification", "regression", "multiple_choice", "causal_lm", "language_modelling", "seq2seq")
    return AutoTokenizer.from_pretrained(HUB), {k: Dataset.from_list(given.get(k, texts)) for k in kinds}


def stepped(case: str, variant: Any, folder: Path, size: int, times: int, **more: Any) -> tuple[Any, dict]:
    """The logged loss and what is trained, after one step of plain gradient descent on 16 examples."""
    type_, network, config, sizes = MODELS[case]
    tokenizer, splits = data()
    task = Task(name="t", type=type_, dataset="json", metrics=["accuracy"], lr=1.0, max_length=128)
    kind = TASK_TYPES[type_](task, tokenizer, {"train": splits[type_]})
    torch.manual_seed(0)
    plain = {
        "dropout": 0.0,
        "dropout_rate": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    model = network(
        config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2, **sizes, **plain, **kind.head())
    )
    usual = {
        "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": size, "learning_rate": 1.0,
        "gradient_accumulation_steps": times, "optim": "sgd", "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0, "use_cpu": True,
        "report_to": [], "disable_tqdm": True, "remove_unused_columns": False, "logging_steps": 1,
        "save_strategy": "no",
    }  # fmt: skip
    encoded = kind.encoded(splits[type_])
    injection = inject(model, variant, rank=2, target_modules=["q", "v"])
    run = ZooTrainer(
        injection, evaluator=None, args=TrainingArguments(**(usual | more)), data_collator=kind.collate,
        train_dataset=encoded,
    )  # fmt: skip
    run.train()
    return run.state.log_history[0], {n: p.detach().double() for n, p in injection.named_parameters().items()}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("size", [4, 5])  # five: the last part has one example
def test_a_batch_is_the_sum_of_its_parts(case: str, size: int, tmp_path: Path) -> None:
    variant = type("Twice", (VARIANTS["lora"],), {"name": "twice", "hooks": TwoPasses})
    smoothed = {"label_smoothing_factor": 0.1} if case.endswith("texts") else {}
    whole, expected = stepped(case, variant, tmp_path / "1", 16, 1, **smoothed)
    parts, found = stepped(case, variant, tmp_path / "n", size, 4, **smoothed)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
