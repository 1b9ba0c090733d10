"""Files that PEFT wrote in ways that are easily misread: old layouts, other targets, copies of the base."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from lora_zoo import load_adapter, save_adapter, updates
from lora_zoo.formats.peft.experts import version_of
from lora_zoo.formats.peft.forms import PeftFolder
from lora_zoo.formats.peft.write import CONFIG, WEIGHTS
from tests.adapters.test_parity_hosts import MIXTRAL, evaluated
from tests.adapters.test_saving_adapted import IDS, llama


def configured(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def experts(tmp_path):
    """An adapter of stacked experts by PEFT, and the logits that it gives."""
    base, x = MIXTRAL.base().eval(), MIXTRAL.inputs(0)
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path)
    return tmp_path, evaluated(theirs, x)


def as_in_018(folder):
    """Give the file PEFT 0.18's layout: A reads the first side of each expert, B writes the other."""
    tensors = load_file(folder / WEIGHTS)
    for name in [name for name in tensors if ".experts." in name and "lora_A" in name]:
        A, B = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        E = len(A) // 2
        A_ERI, B_EOR = A.view(E, 2, -1), B.view(len(B), 2, E).permute(2, 0, 1)
        tensors[name] = B_EOR.mT.flatten(0, 1).contiguous()
        tensors[name.replace("lora_A", "lora_B")] = A_ERI.mT.permute(1, 2, 0).flatten(1).contiguous()
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("version", ["0.18.1", "0.19.0", "0.19.1", "0.20.0", "0.21.2"])
def test_the_layout_of_experts_is_that_of_the_version(experts, version):
    """The files of real 0.18.1, 0.19.0, 0.19.1 and 0.20.0 were read with a difference of 0.0."""
    folder, theirs = experts
    if version < "0.19.1":
        as_in_018(folder)
    configured(folder, peft_version=version)
    base = MIXTRAL.base().eval()
    load_adapter(base, folder)
    assert (evaluated(base, MIXTRAL.inputs(0)) - theirs).abs().max() <= 3e-5


@pytest.mark.parametrize("version", [None, "", "0.22.0", "0.20.0.dev0", "1.18.1", "0.16.0", ["0.18.1"]])
def test_a_layout_that_is_not_known_is_refused(experts, version):
    folder, _ = experts
    configured(folder, peft_version=version)
    with pytest.raises(ValueError, match=r"peft_version=.* write the version that trained the adapter into"):
        load_adapter(MIXTRAL.base(), folder)
    with pytest.raises(ValueError, match="to experts depends on the version"):
        version_of(PeftFolder(folder, {"peft_version": version}, {}), "experts")


def test_spectra_of_experts_take_the_base_from_the_configuration(experts, tmp_path):
    folder, _ = experts
    MIXTRAL.base().save_pretrained(tmp_path / "base")
    configured(folder, base_model_name_or_path=str(tmp_path / "base"), task_type="CAUSAL_LM")
    assert any(".experts." in name for name in updates.read(folder))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attn, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16)

    def forward(self, x):
        return self.out(self.attn(x, x, x)[0])


X = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))


def of_attention(folder, **options):
    """PEFT's adapter of the attention, saved to `folder`."""
    options = {"r": 2, "target_modules": ["attn", "out"], "init_lora_weights": False} | options
    theirs = peft.get_peft_model(Attention(), peft.LoraConfig(**options)).eval()
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["attn"]},
        {"lora_dropout": 0.1},
        {"rank_pattern": {"attn": 3}, "alpha_pattern": {"attn": 5}, "use_rslora": True},
    ],
)
def test_an_adapter_of_torch_s_attention_computes_what_peft_does(tmp_path, options):
    theirs, model = of_attention(tmp_path, **options), Attention().eval()
    injection = load_adapter(model, tmp_path)
    assert (model(X) - theirs(X)).abs().max() <= 1e-5
    back = Attention().eval()
    load_adapter(back, save_adapter(injection, tmp_path / "ours"))
    assert torch.equal(back(X), model(X))


def test_an_attention_s_tensors_are_whole_and_of_a_known_version(tmp_path):
    of_attention(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    for left_out in (".base_layer.out_proj.", ".attn."):
        save_file({n: t for n, t in whole.items() if left_out not in n}, tmp_path / WEIGHTS)
        with pytest.raises(ValueError, match=r"but the tensors of attn.* are missing"):
            load_adapter(Attention(), tmp_path)
    save_file(whole, tmp_path / WEIGHTS)
    configured(tmp_path, peft_version="0.99.0")
    with pytest.raises(ValueError, match=r"what PEFT does to nn\.MultiheadAttention depends on the version"):
        load_adapter(Attention(), tmp_path)


@pytest.mark.parametrize("changes", [{"target_modules": ["out"]}, {"exclude_modules": ["attn"]}])
def test_tensors_beside_the_targets_are_left_out_as_in_peft(tmp_path, changes):
    of_attention(tmp_path)
    configured(tmp_path, **changes)
    theirs, model = peft.PeftModel.from_pretrained(Attention(), tmp_path).eval(), Attention().eval()
    with pytest.warns(UserWarning, match=r"does not target attn\.in_proj_weight, so its"):
        injection = load_adapter(model, tmp_path)
    assert list(injection.adapters) == ["out"]
    assert (model(X) - theirs(X)).abs().max() <= 1e-5


def test_a_configuration_that_targets_none_of_the_tensors_is_refused(tmp_path):
    of_attention(tmp_path)
    configured(tmp_path, target_modules=["query"])
    with pytest.raises(ValueError, match="targets neither it nor another of them"):
        load_adapter(Attention(), tmp_path)


# --- embeddings ---------------------------------------------------------------------------------------------


def of_vocabulary(tie, size=32, seed=1):
    model = llama(tie_word_embeddings=tie)
    torch.manual_seed(seed)
    model.resize_token_embeddings(size, mean_resizing=False)
    return model.eval()


def saved_by_peft(folder, base, *, embeddings=False, **options):
    """The logits of an adapter whose trained parameters were shaken, and which PEFT has saved."""
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False} | options
    theirs = peft.get_peft_model(base, peft.LoraConfig(**options)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    theirs.save_pretrained(folder, save_embedding_layers=embeddings)
    return theirs(IDS).logits


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("saved", [["embed_tokens", "lm_head"], ["embed_tokens"], ["lm_head"]])
def test_copies_of_a_tied_embedding_that_trained_apart_are_read_and_kept(tmp_path, tie, saved):
    theirs = saved_by_peft(tmp_path / "peft", of_vocabulary(tie), modules_to_save=saved)
    model, back = of_vocabulary(tie), of_vocabulary(tie)
    before, tied = model(IDS).logits, model.config.tie_word_embeddings
    injection = load_adapter(model, tmp_path / "peft")
    load_adapter(back, save_adapter(injection, tmp_path / "ours"))
    for read in (model, back):
        assert (read(IDS).logits - theirs).abs().max() <= 1e-5
    injection.merge()
    model.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert (merged(IDS).logits - theirs).abs().max() <= 1e-5
    injection.unmerge()
    injection.remove()
    assert torch.equal(model(IDS).logits, before) and model.config.tie_word_embeddings == tied


@pytest.mark.parametrize("tie", [True, False])
def test_the_embeddings_of_a_resized_vocabulary_come_with_the_adapter(tmp_path, tie):
    theirs = saved_by_peft(tmp_path, of_vocabulary(tie, 40, seed=9), embeddings=True)
    with pytest.raises(ValueError, match=r"call model\.resize_token_embeddings\(40\) first"):
        load_adapter(of_vocabulary(tie), tmp_path)
    model = of_vocabulary(tie, 40)
    with pytest.warns(UserWarning, match="as after a resized vocabulary"):
        injection = load_adapter(model, tmp_path)
    assert (model(IDS).logits - theirs).abs().max() <= 1e-5
    assert len(injection.fully_trained) == (1 if tie else 2)
    injection.remove()
    assert torch.equal(model(IDS).logits, of_vocabulary(tie, 40)(IDS).logits)


def test_another_tensor_of_the_base_is_refused_as_before(tmp_path):
    saved_by_peft(tmp_path, of_vocabulary(False))
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["base_model.model.model.norm.weight"] = torch.zeros(16)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.norm\.weight is not the base's own, but no module"):
        load_adapter(of_vocabulary(False), tmp_path)
