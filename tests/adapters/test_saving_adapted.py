"""`save_pretrained` of an adapted model, which Trainer's checkpoints call."""

import copy
import pickle

import pytest
import torch
import transformers

from lora_zoo import inject
from lora_zoo.conformance.cases import perturb

IDS = torch.tensor([[1, 5, 9, 3]])


def llama(**more):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        **more,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_it_names_what_to_call_and_writes_nothing(tmp_path):
    model = llama()
    injection = inject(model, "lora", rank=2)
    for saver in (model, model.model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match=r"save_adapter\(injection, folder\) .* injection\.merge\(\)"):
            saver.save_pretrained(tmp_path / "out")
    with injection.disabled(), pytest.raises(ValueError, match=r"random weights in .*q_proj"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_transformers_trainer_is_refused(tmp_path):
    model = llama()
    injection = inject(model, "lora", rank=2)
    trainer = transformers.Trainer(model, transformers.TrainingArguments(str(tmp_path), report_to=[]))
    with pytest.raises(ValueError, match=r"save_adapter"):
        trainer.save_model(str(tmp_path / "out"))
    injection.remove()
    trainer.save_model(str(tmp_path / "out"))


@pytest.mark.parametrize("removed", [True, False])
def test_a_merged_model_is_saved_and_loads_with_its_adapter(tmp_path, removed):
    model = llama()
    injection = inject(model, "lora", rank=2)
    perturb(injection)
    adapted = model(IDS).logits
    injection.merge()
    if removed:
        injection.remove()
        assert "save_pretrained" not in vars(model)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (again(IDS).logits - adapted).abs().max() <= 1e-5


def test_what_trains_in_full_alone_is_an_ordinary_model(tmp_path):
    model = llama()
    injection = inject(model, "linear_probe", modules_to_save=["lm_head"])
    perturb(injection)
    trained = model(IDS).logits
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, trained)
