"""loralib's checkpoints are read: by loralib's own layers, in the layouts of the paper's code."""

import copy
import pickle
from pathlib import Path

import loralib
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_zoo.conformance.cases import fresh, logits, randomise
from lora_zoo.formats.native import load_adapter, save_adapter

ALPHA = 6


class Layers(nn.Module):
    """One layer of each kind; `make` gives plain ones or loralib's."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.table = make("Embedding", 17, 6)
        self.first = make("Linear", 6, 8)
        self.image = make("Conv2d", 4, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        h = self.first(self.table(x)).tanh().view(len(x), 4, -1, 4)
        return self.head(self.image(h).tanh().mean((-1, -2)))


def layers():
    """A plain model and loralib's with the same weights; loralib's is perturbed."""
    plain = Layers(lambda kind, *sizes: getattr(nn, kind)(*sizes))
    theirs = Layers(lambda kind, *sizes: getattr(loralib, kind)(*sizes, r=2, lora_alpha=ALPHA))
    weights = plain.state_dict()
    theirs.load_state_dict({k.replace("image.", "image.conv."): v for k, v in weights.items()}, strict=False)
    loralib.mark_only_lora_as_trainable(theirs)
    randomise([p for p in theirs.parameters() if p.requires_grad], 0.3)
    return plain, theirs


def answers(*models):
    x = torch.arange(24).view(3, 8) % 17
    with torch.no_grad():
        return [model.train()(x) for model in models]


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_linear_embedding_and_convolution_are_read(tmp_path, suffix):
    plain, theirs = layers()
    path, base = tmp_path / f"lora{suffix}", copy.deepcopy(plain)
    state = loralib.lora_state_dict(theirs)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    load_adapter(plain, path, alpha=ALPHA)
    ours, expected, before = answers(plain, theirs, base)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert (ours - before).abs().max() > 0.05
    save_adapter(load_adapter(copy.deepcopy(base), path, alpha=ALPHA), tmp_path / "ours")
    load_adapter(base, tmp_path / "ours")
    assert torch.equal(answers(base)[0], ours)


class Conv1D(loralib.MergedLinear):
    """What the paper's GPT-2 puts in place of c_attn."""


def gpt2_like(enable, rank=3):
    plain, _ = fresh("gpt2")
    theirs = copy.deepcopy(plain)
    for block in theirs.transformer.h:
        old = block.attn.c_attn
        new = loralib.MergedLinear(
            16, 48, r=rank, lora_alpha=ALPHA, enable_lora=enable, fan_in_fan_out=True, merge_weights=False
        )
        new.weight.data, new.bias.data = old.weight.data.clone(), old.bias.data.clone()
        block.attn.c_attn = new
    randomise([p for n, p in theirs.named_parameters() if "lora_" in n], 0.2)
    return plain, theirs.eval()


ENABLED = {
    "q, v": ([True, False, True], ("q", "v"), "qv"),
    "q, k, v": ([True, True, True], (), "qkv"),
    "k, v": ([False, True, True], ("k", "v"), "kv"),
    "k": ([False, True, False], ("k",), "k"),
}


@pytest.mark.parametrize("case", ENABLED)
def test_the_parts_of_a_fused_layer_are_read(tmp_path, case):
    enabled, said, roles = ENABLED[case]
    plain, theirs = gpt2_like(enabled)
    torch.save(loralib.lora_state_dict(theirs), tmp_path / "lora.pt")
    injection = load_adapter(plain, tmp_path / "lora.pt", alpha=ALPHA, enable=said)
    assert {name[-1] for name in injection.matrices} == set(roles)
    assert {place.role for place in injection.matrices.values()} == set(roles)
    torch.testing.assert_close(logits(plain, "gpt2"), logits(theirs, "gpt2"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("enabled", [[False, True, False], [True, True, False], [True, False, True]])
def test_which_parts_are_meant_must_be_said(tmp_path, enabled):
    plain, theirs = gpt2_like(enabled)
    torch.save(loralib.lora_state_dict(theirs), tmp_path / "lora.pt")
    for said in ((), ("q", "k", "v")):
        with pytest.raises(ValueError, match=rf"{sum(enabled)} of its parts .* enable must name"):
            load_adapter(plain, tmp_path / "lora.pt", alpha=ALPHA, enable=said)


def test_a_whole_state_and_a_trained_head_are_read(tmp_path):
    """The paper's files hold the classifier too; a whole state dict holds the base's own weights as well."""
    plain, theirs = layers()
    randomise(theirs.head.parameters(), 0.3)
    whole = {k.replace("image.conv.", "image."): v for k, v in theirs.state_dict().items()}
    torch.save({"model": whole}, tmp_path / "all.pt")
    injection = load_adapter(plain, tmp_path / "all.pt", alpha=ALPHA)
    assert injection.fully_trained == ["head.weight", "head.bias"]
    ours, expected = answers(plain, theirs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_file_from_a_gpu_is_mapped_to_the_cpu(tmp_path, monkeypatch):
    plain, theirs = layers()
    path = tmp_path / "lora.pt"
    # As torch.save writes a tensor of CUDA's: the storage's tag is what map_location looks at.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(loralib.lora_state_dict(theirs), path)
    monkeypatch.undo()
    assert b"cuda:0" in path.read_bytes()
    load_adapter(plain, path, alpha=ALPHA)
    ours, expected = answers(plain, theirs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_alpha_must_be_given_and_other_folders_know_it(tmp_path):
    plain, theirs = layers()
    torch.save(loralib.lora_state_dict(theirs), tmp_path / "lora.pt")
    with pytest.raises(ValueError, match="do not hold alpha"):
        load_adapter(plain, tmp_path / "lora.pt")
    folder = save_adapter(load_adapter(plain, tmp_path / "lora.pt", alpha=ALPHA), tmp_path / "ours")
    with pytest.raises(ValueError, match="knows alpha"):
        load_adapter(Layers(lambda kind, *s: getattr(nn, kind)(*s)), folder, alpha=ALPHA)


CHANGES = {
    "missing": (lambda s: s.pop("first.lora_B"), r"first\.lora_B is missing"),
    "shape": (lambda s: s.update({"first.lora_A": s["first.lora_A"].T}), r"first\.lora_A"),
    "vector": (lambda s: s.update({"first.lora_A": torch.ones(6)}), r"first\.lora_A is \(6,\), no matrix"),
    "layer": (lambda s: s.update({"x.lora_A": torch.ones(2, 6)}), "no such layer"),
    "other": (lambda s: s.update({"bias": torch.ones(2)}), "bias is not a parameter"),
    "no lora": (lambda s: [s.pop(k) for k in list(s)], r"holds no ….lora_A"),
    "number": (lambda s: s.update({"step": 3}), "'step' is no tensor"),
    "convolution": (lambda s: s.update({"image.lora_A": torch.ones(5, 12)}), "do not fit"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused_and_the_model_stays_plain(tmp_path, change):
    break_it, said = CHANGES[change]
    plain, theirs = layers()
    state, path = dict(loralib.lora_state_dict(theirs)), tmp_path / "lora.pt"
    break_it(state)
    torch.save(state, path)
    with pytest.raises(ValueError, match=said) as error:
        load_adapter(plain, path, alpha=ALPHA)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert type(plain.first) is nn.Linear


def test_pickled_code_never_runs(tmp_path):
    ran = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return Path.touch, (ran,)

    plain, theirs = layers()
    torch.save(loralib.lora_state_dict(theirs) | {"x": Code()}, tmp_path / "lora.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"x": Code()}))
    for name in ("lora.pt", "old.pt"):
        with pytest.raises(ValueError, match="is refused") as error:
            load_adapter(plain, tmp_path / name, alpha=ALPHA)
        assert "\n" not in str(error.value)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt"):
        load_adapter(plain, tmp_path / "text.pt", alpha=ALPHA)
    assert not ran.exists()
