"""The class and the labels of a base, from the adapter's files and the base's own configuration."""

import loralib
import peft
import pytest
import torch
import transformers as tf

from lora_zoo import updates
from lora_zoo.conformance.cases import randomise
from lora_zoo.load import load
from lora_zoo.load import main as load_main
from lora_zoo.merge import main as merge_main
from lora_zoo.models.base import base_of
from lora_zoo.models.classes import TASKS
from lora_zoo.models.compare import batch, logits
from lora_zoo.models.merging import merge
from lora_zoo.pocket import HUB
from lora_zoo.spectra import main as spectra_main

NAMES = {0: "no", 1: "maybe", 2: "yes"}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SIZES |= {"vocab_size": 725, "max_position_embeddings": 64, "pad_token_id": 0}


def saved(folder, model):
    """A base with its tokenizer, in `folder`."""
    randomise(model.parameters(), 0.2, 1)
    model.save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(str(HUB)).save_pretrained(folder)
    return folder


@pytest.fixture
def bert(tmp_path):
    return saved(tmp_path / "bert", tf.BertModel(tf.BertConfig(**SIZES)))


CASES = {
    "SEQ_CLS": ("AutoModelForSequenceClassification", {"num_labels": 3, "id2label": NAMES}, [2, 3]),
    "TOKEN_CLS": ("AutoModelForTokenClassification", {"num_labels": 5}, [2, 16, 5]),
    "QUESTION_ANS": ("AutoModelForQuestionAnswering", {}, [2, 2, 16]),
    "FEATURE_EXTRACTION": ("AutoModel", {}, [2, 16, 16]),
}


@pytest.mark.parametrize("task", CASES)
def test_every_task_of_peft_s_is_merged_to_its_own_outputs(tmp_path, bert, task):
    auto_class, head, shape = CASES[task]
    assert TASKS[auto_class] == task
    base = getattr(tf, auto_class).from_pretrained(bert, **head)
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type=task, init_lora_weights=False)
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "peft")
    expected = logits(theirs, batch(base))
    assert list(expected.shape) == shape
    assert merge(tmp_path / "peft", tmp_path / "out").auto_class == auto_class
    merged = getattr(tf, auto_class).from_pretrained(tmp_path / "out")
    assert (logits(merged) - expected).abs().max() <= 1e-5
    load_main([str(tmp_path / "peft"), str(tmp_path / "ours")])
    known = base_of(tmp_path / "ours")
    assert (known.auto_class, known.head) == (
        auto_class,
        {k: v for k, v in head.items() if k == "num_labels"},
    )


def test_without_a_task_the_base_s_own_architecture_decides(tmp_path):
    model = tf.BertForSequenceClassification(tf.BertConfig(**SIZES, id2label=NAMES))
    base = saved(tmp_path / "base", model)
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    peft.get_peft_model(tf.AutoModelForSequenceClassification.from_pretrained(base), config).save_pretrained(
        tmp_path / "peft"
    )
    merge(tmp_path / "peft", tmp_path / "out")
    again = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.config.id2label == NAMES


def of_loralib(folder, base):
    """A classifier with loralib's layers, and the file of its adapters and its head."""
    model = tf.AutoModelForSequenceClassification.from_pretrained(base)
    attention = model.roberta.encoder.layer[0].attention.self
    for name in ("query", "value"):
        old, new = getattr(attention, name), loralib.Linear(16, 16, r=2, lora_alpha=16, merge_weights=False)
        new.load_state_dict(old.state_dict(), strict=False)
        torch.nn.init.normal_(new.lora_B)
        setattr(attention, name, new)
    with torch.no_grad():
        model.classifier.out_proj.weight.add_(1.0)
    file = folder / "lora.pt"
    head = {name: tensor for name, tensor in model.state_dict().items() if "classifier" in name}
    torch.save(loralib.lora_state_dict(model) | head, file)
    return file, logits(model)


def test_a_classifier_of_loralib_s_is_loaded_merged_and_read_at_the_command_line(tmp_path):
    config = tf.RobertaConfig(**SIZES, id2label=NAMES)
    base = saved(tmp_path / "roberta", tf.RobertaForSequenceClassification(config))
    file, theirs = of_loralib(tmp_path, base)
    given = ["--model", str(base), "--alpha", "16"]
    load_main([str(file), str(tmp_path / "ours"), *given])
    merge_main([str(file), str(tmp_path / "merged"), *given])
    merged = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert (logits(merged) - theirs).abs().max() <= 1e-5
    assert merged.config.id2label == NAMES
    assert len(updates.read(file, model=str(base), alpha=16.0, base=True)) == 3  # and the head's matrix
    spectra_main([str(file), *given])


@pytest.mark.parametrize("kind", ["loralib", "Lora", "Vera", "HRA"])
def test_the_names_of_the_tensors_tell_the_class_of_a_masked_base(tmp_path, kind):
    model = tf.RobertaForMaskedLM(tf.RobertaConfig(**SIZES, id2label=NAMES))
    base = saved(tmp_path / "roberta", model)
    given = ["--model", str(base)]
    if kind == "loralib":
        file, theirs = of_loralib(tmp_path, base)
        given += ["--alpha", "16"]
    else:
        file, network = tmp_path / "peft", tf.AutoModelForSequenceClassification.from_pretrained(base)
        of = getattr(peft, f"{kind}Config")
        adapted = peft.get_peft_model(
            network, of(r=2, target_modules=["query"], modules_to_save=["classifier"])
        ).eval()
        randomise((p for p in adapted.parameters() if p.requires_grad), 0.2, 2)
        adapted.save_pretrained(file)
        theirs = logits(adapted, batch(network))
    load_main([str(file), str(tmp_path / "ours"), *given])
    merge_main([str(file), str(tmp_path / "merged"), *given])
    merged = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert (logits(merged) - theirs).abs().max() <= 1e-5
    spectra_main([str(file), *given])


def test_a_class_that_the_names_leave_open_is_asked_for(tmp_path):
    base = saved(tmp_path / "bert", tf.BertForMaskedLM(tf.BertConfig(**SIZES)))
    pair = {"lora_A": torch.ones(2, 16), "lora_B": torch.ones(16, 2)}
    name = "bert.encoder.layer.0.attention.self.query"
    torch.save({f"{name}.{last}": tensor for last, tensor in pair.items()}, tmp_path / "l.pt")
    with pytest.raises(ValueError, match=r"TokenClassification, .* --auto-class"):
        merge(tmp_path / "l.pt", tmp_path / "merged", model=str(base), alpha=2.0)
    token = "AutoModelForTokenClassification"
    load(tmp_path / "l.pt", tmp_path / "ours", model=str(base), alpha=2.0, auto_class=token)
    assert base_of(tmp_path / "ours").auto_class == token


def test_the_labels_of_a_file_fit_a_base_without_a_head(tmp_path):
    whole = saved(
        tmp_path / "whole", tf.RobertaForSequenceClassification(tf.RobertaConfig(**SIZES, num_labels=4))
    )
    file, theirs = of_loralib(tmp_path, whole)
    base = tf.AutoModelForSequenceClassification.from_pretrained(whole).roberta
    base.config.num_labels = 2
    base.save_pretrained(tmp_path / "base")
    tf.AutoTokenizer.from_pretrained(str(HUB)).save_pretrained(tmp_path / "base")
    kept = torch.load(file)
    dense = tf.AutoModelForSequenceClassification.from_pretrained(whole).classifier.dense.state_dict()
    torch.save(kept | {f"classifier.dense.{name}": tensor for name, tensor in dense.items()}, file)
    load_main([str(file), str(tmp_path / "o"), "--model", str(tmp_path / "base"), "--alpha", "16"])
    assert merge(tmp_path / "o", tmp_path / "merged").explained
    merged = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert (logits(merged) - theirs).abs().max() <= 1e-5


def test_the_enabled_parts_reach_the_merge(tmp_path):
    config = tf.GPT2Config(vocab_size=725, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    base = saved(tmp_path / "gpt2", tf.GPT2LMHeadModel(config))
    name = "transformer.h.0.attn.c_attn"
    torch.save(
        {f"{name}.lora_A": torch.randn(4, 16), f"{name}.lora_B": torch.randn(32, 2)}, tmp_path / "l.pt"
    )
    given = [str(tmp_path / "l.pt"), str(tmp_path / "out"), "--model", str(base), "--alpha", "2"]
    with pytest.raises(SystemExit):
        merge_main(given)
    merge_main([*given, "--enable", "q,k"])
    W, merged = (
        tf.AutoModelForCausalLM.from_pretrained(path).transformer.h[0].attn.c_attn.weight
        for path in (base, tmp_path / "out")
    )
    assert [bool(part.any()) for part in (merged - W).chunk(3, dim=1)] == [True, True, False]
    assert load(tmp_path / "l.pt", tmp_path / "x", model=str(base), alpha=2.0, enable=["q", "k"]).adapters
