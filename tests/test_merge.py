"""Merging: what comes out is the adapted model, for transformers alone; or nothing comes out."""

import importlib.util
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from lora_zoo.conformance.cases import (
    WHOLE,
    firsts,
    fitting,
    on_models,
    perturb,
    representatives,
    settings,
)
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import save_adapter
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.merge import main
from lora_zoo.models.merging import merge
from lora_zoo.pocket import HUB
from tests.processes import start

LABELS = {
    "num_labels": 3,
    "id2label": {0: "no", 1: "maybe", 2: "yes"},
    "label2id": {"no": 0, "maybe": 1, "yes": 2},
}
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SIZES |= {
    "vocab_size": 725,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
}


def llama(**more: Any) -> Any:
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, **more)
    )


def gpt2() -> Any:
    config = tf.GPT2Config(vocab_size=725, n_embd=32, n_layer=2, n_head=2, n_positions=64, pad_token_id=0)
    return tf.GPT2LMHeadModel(config)


def bert() -> Any:
    return tf.BertModel(tf.BertConfig(**SIZES))


def t5() -> Any:
    config = tf.T5Config(
        vocab_size=725, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0
    )
    config.decoder_start_token_id = 0
    return tf.T5ForConditionalGeneration(config)


CAUSAL, LABELLED = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
KINDS: dict[str, tuple[Callable[[], Any], str, dict[str, Any], list[str]]] = {
    "tied": (llama, CAUSAL, {}, ["q", "v", "down"]),
    "fused": (gpt2, CAUSAL, {}, ["q", "v"]),
    "labelled": (bert, LABELLED, LABELS, ["q", "v"]),
    "seq2seq": (t5, "AutoModelForSeq2SeqLM", {}, ["q", "v"]),
    "embedding": (llama, CAUSAL, {}, ["embed", "v"]),
}


def base_folder(kind: str, folder: Path) -> Path:
    torch.manual_seed(1)
    model = KINDS[kind][0]()
    with torch.no_grad():  # far from nothing, so that a slip in a weight is seen in the logits
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(HUB).save_pretrained(folder)
    return folder


def loaded(folder: Path, kind: str, **more: Any) -> Any:
    torch.manual_seed(2)  # of a head that the base lacks
    return getattr(tf, KINDS[kind][1]).from_pretrained(folder, **more).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 43).view(2, 20)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more).logits


def adapter_folder(
    base: Path, kind: str, folder: Path, name: str = "lora", **about: Any
) -> tuple[Path, Injection]:
    """A trained adapter's folder and the adapted model that it was saved from."""
    _, auto_class, head, targets = KINDS[kind]
    model = loaded(base, kind, **head)
    where = {} if not VARIANTS[name].count else {"target_modules": fitting(name, model, targets)}
    heads = ["classifier"] if head and name != "full" else []
    adapted = inject(model, name, **where, modules_to_save=heads, **settings(name))
    with torch.no_grad():
        perturb(adapted, size=0.05)
    said = {"model": {"name": "base", "path": str(base)}, "auto_class": auto_class, "head": head}
    return save_adapter(adapted, folder, **said | about), adapted


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, base_folder(request.param, tmp_path_factory.mktemp("base") / request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder("tied", tmp_path_factory.mktemp("tied") / "base")


@pytest.fixture
def lora(tied: Path, tmp_path: Path) -> tuple[Path, Injection]:
    return adapter_folder(tied, "tied", tmp_path / "adapter")


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


MET = {*representatives(), *WHOLE, *firsts(lambda cls: (cls.pointwise, cls.changes_bias, cls.adds_bias))}
"""One variant of each way to meet a layer and to change it; each is merged and loaded by `test_models`."""


@pytest.mark.filterwarnings("ignore:.*tie")
@pytest.mark.parametrize(
    ("name", "base"), [pair for pair in on_models(KINDS) if pair[0] in MET], indirect=["base"]
)
def test_a_variant_of_each_kind_merges_and_loads_as_the_model_that_was_adapted(
    name: str, base: tuple[str, Path], tmp_path: Path
) -> None:
    kind, folder = base
    if kind == "seq2seq" and VARIANTS[name].virtual_tokens({"rank": 1}):
        with pytest.raises(ValueError, match="has an encoder and a decoder"):
            adapter_folder(folder, kind, tmp_path / "adapter", name)
        return
    adapter, adapted = adapter_folder(folder, kind, tmp_path / "adapter", name)
    wanted = logits(adapted.model)
    if not VARIANTS[name].pointwise:
        with pytest.raises(ValueError, match=f"{name} has no effective weight.*cannot be merged"):
            merge(adapter, tmp_path / "out")
        assert {p.name for p in tmp_path.iterdir()} == {"adapter"}
        return
    if KINDS[kind][2] and not adapted.parameters():
        with pytest.raises(ValueError, match="brings weights for classifier"):
            merge(adapter, tmp_path / "out")  # a head that nobody has trained
        return
    hosts = [matrix.host for matrix in adapted.matrices.values()]
    if VARIANTS[name].adds_bias and any(host.own_bias is None for host in hosts):
        with pytest.raises(ValueError, match=f"{name} gives .* a bias, and a saved model"):
            merge(adapter, tmp_path / "out")
        assert {p.name for p in tmp_path.iterdir()} == {"adapter"}
        return
    made = merge(adapter, tmp_path / "out")
    model = loaded(tmp_path / "out", kind)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)
    assert made.explained and 0 <= made.difference < 1e-4 < made.largest
    with adapted.disabled():
        moved = (logits(adapted.model) - wanted).abs().max()
    assert moved > 1e-3 or not adapted.parameters()
    before, after = config_of(folder), config_of(tmp_path / "out")
    free = {"transformers_version", "dtype", "architectures", "tie_word_embeddings", *KINDS[kind][2]}
    assert {k: v for k, v in after.items() if k not in free and before.get(k) != v} == {}
    assert after["architectures"] == [type(adapted.model).__name__]
    assert {p.name for p in tmp_path.iterdir()} == {"adapter", "out"}


def test_labels_go_along(tmp_path: Path) -> None:
    adapter, _ = adapter_folder(base_folder("labelled", tmp_path / "base"), "labelled", tmp_path / "adapter")
    merge(adapter, tmp_path / "out")
    config = loaded(tmp_path / "out", "labelled").config
    assert config.id2label == {0: "no", 1: "maybe", 2: "yes"} and config.label2id == LABELS["label2id"]
    classify = tf.pipeline("text-classification", str(tmp_path / "out"))
    assert classify("select name from player")[0]["label"] in LABELS["label2id"]


def test_a_tie_stays_unless_the_merge_wrote_to_one_side(
    lora: tuple[Path, Injection], tied: Path, tmp_path: Path
) -> None:
    merge(lora[0], tmp_path / "out")
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    model = loaded(tied, "tied")
    head = inject(model, "lora", target_modules=["lm_head"], rank=4)
    with torch.no_grad():
        perturb(head)
    said = {"model": {"name": "base", "path": str(tied)}, "auto_class": CAUSAL, "head": {}}
    with pytest.warns(UserWarning, match="unties"):
        merge(save_adapter(head, tmp_path / "head", **said), tmp_path / "untied")
    assert config_of(tmp_path / "untied")["tie_word_embeddings"] is False
    again = loaded(tmp_path / "untied", "tied")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["tied", "labelled"])
def test_it_is_what_peft_merges_from_the_same_numbers(name: str, kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = base_folder(kind, tmp_path / "base")
    adapter, ours = adapter_folder(folder, kind, tmp_path / "adapter", name)
    targets = sorted({name.rpartition(".")[2] for name in ours.adapters})
    config = peft.LoraConfig(
        r=4,
        lora_alpha=ours.hyper["alpha"],
        use_dora=name == "dora",
        target_modules=targets,
        modules_to_save=["classifier"] if kind == "labelled" else None,
    )
    theirs = peft.get_peft_model(loaded(folder, kind, **KINDS[kind][2]), config)
    parts = {"A_RI": "lora_A.default.weight", "B_OR": "lora_B.default.weight"}
    parts |= {"m_O": "lora_magnitude_vector.default.weight"}
    state = dict(theirs.named_parameters())
    for key, value in ours.state_dict().items():
        place, _, tensor = key.rpartition(".")
        if place in ours.adapters:
            own = f"base_model.model.{place}.{parts[tensor]}"
        else:
            own = f"base_model.model.{place}.modules_to_save.default.{tensor}"
        state[own].data.copy_(value)
    merge(adapter, tmp_path / "out")
    merged = theirs.merge_and_unload()
    model = loaded(tmp_path / "out", kind)
    torch.testing.assert_close(logits(model), logits(merged), rtol=1e-4, atol=1e-4)
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_regressions_head_answers_in_the_labels_own_unit(bias: bool, tmp_path: Path) -> None:
    kind, cls = ("labelled", tf.BertForSequenceClassification) if bias else ("tied", None)
    folder = base_folder(kind, tmp_path / "base")
    head = {"num_labels": 1, "problem_type": "regression"}
    torch.manual_seed(2)
    model = tf.AutoModelForSequenceClassification.from_pretrained(folder, **head).eval()
    assert cls is None or isinstance(model, cls)
    adapted = inject(
        model, "lora", target_modules=["q"], modules_to_save=["classifier" if bias else "score"], rank=4
    )
    with torch.no_grad():
        perturb(adapted)
    said = {"model": {"name": "b", "path": str(folder)}, "auto_class": LABELLED, "head": head}
    said |= {"standardised": {"mean": 3.5, "std": 0.5}}
    made = merge(save_adapter(adapted, tmp_path / "adapter", **said), tmp_path / "out")
    again = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    wanted = logits(model) * 0.5 + 3.5 if bias else logits(model)
    torch.testing.assert_close(logits(again), wanted, rtol=1e-4, atol=1e-4)
    assert made.explained and made.difference < 1e-4
    assert ("the labels' unit (mean 3.5" if bias else "unit is 0.5 * score + 3.5") in made.notes[0]


def in_float8(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """A copy of `base` as fine-grained float8 files are; the values that its codes stand for."""
    shutil.copytree(base, folder)
    stored, values = {}, {}
    for name, W_OI in load_file(base / "model.safetensors").items():
        stored[name] = W_OI
        if name.endswith("_proj.weight"):
            blocks = W_OI.unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
            scale = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            values[name] = (codes.float() * scale[:, None, :, None]).reshape(W_OI.shape)
            stored[name], stored[f"{name}_scale_inv"] = codes.reshape(W_OI.shape), scale
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    scheme = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps(config_of(base) | {"quantization_config": scheme}))
    return values


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_quantised_base_is_merged_by_the_values_of_its_codes(
    dtype: str | None, lora: tuple[Path, Injection], tied: Path, tmp_path: Path
) -> None:
    values = in_float8(tied, tmp_path / "float8")
    adapter, adapted = lora
    original = logits(adapted.model)
    for name, W_OI in values.items():
        module = adapted.model.get_submodule(name.removesuffix(".weight"))
        getattr(module, "layer", module).weight.data.copy_(W_OI)
    wanted = logits(adapted.model)
    made = merge(adapter, tmp_path / "out", model=str(tmp_path / "float8"), dtype=dtype)
    assert "quantization_config" not in config_of(tmp_path / "out") and "fp8" in made.notes[0]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32 if dtype is None else torch.bfloat16}
    assert stored.keys() == load_file(tied / "model.safetensors").keys()
    got = logits(loaded(tmp_path / "out", "tied")).float()
    tolerance = 1e-4 if dtype is None else 0.1
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert (wanted - original).abs().max() > 0.15, "the test cannot tell codes from originals"
    assert made.explained


def quantised_folder(package: str, tied: Path, folder: Path) -> Path:
    """A quantised copy of `tied` by `package`, before its first forward pass: bitsandbytes repacks there."""
    given: Any
    if package == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        given = tf.TorchAoConfig(Int8WeightOnlyConfig())
    elif package == "nf4":
        given = tf.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    else:
        given = tf.BitsAndBytesConfig(load_in_8bit=True)
    model = tf.AutoModelForCausalLM.from_pretrained(tied, quantization_config=given, device_map="cpu")
    model.save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(tied).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("package", ["nf4", "int8", "torchao"])
def test_other_schemes_are_merged_to_what_their_own_layers_compute(
    package: str, lora: tuple[Path, Injection], tied: Path, tmp_path: Path
) -> None:
    needed = "torchao" if package == "torchao" else "bitsandbytes"
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed; test_a_quantised_base_… needs no package")
    folder = quantised_folder(package, tied, tmp_path / "quantised")
    made = merge(lora[0], tmp_path / "out", model=str(folder))
    assert made.explained and "quantization_config" not in config_of(tmp_path / "out")
    apart = float(made.notes[1].rpartition(" ")[2])  # "…: logits differ by 0.16"
    lost = (logits(loaded(tied, "tied")) - logits(loaded(folder, "tied"))).abs().max()
    rounds_inputs = package == "int8"  # LLM.int8; the others multiply by what their codes say
    assert 0 < apart < max(0.5 * float(lost), 0.05) if rounds_inputs else apart < 1e-4 < float(lost)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_nf4_is_what_peft_merges_into_a_dequantised_base(
    lora: tuple[Path, Injection], tied: Path, tmp_path: Path
) -> None:
    import bitsandbytes
    import peft

    folder = quantised_folder("nf4", tied, tmp_path / "quantised")
    model = tf.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(
        r=4, lora_alpha=lora[1].hyper["alpha"], target_modules=["q_proj", "v_proj", "down_proj"]
    )
    theirs, state = peft.get_peft_model(model, config), lora[1].state_dict()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            place, factor = name.removeprefix("base_model.model.").split(".lora_")
            parameter.data.copy_(state[f"{place}.{'A_RI' if factor[0] == 'A' else 'B_OR'}"])
    merge(lora[0], tmp_path / "out", model=str(folder))
    ours = loaded(tmp_path / "out", "tied")
    for place in lora[1].adapters:
        layer = theirs.base_model.model.get_submodule(place)
        W_OI = bitsandbytes.functional.dequantize_4bit(
            layer.base_layer.weight.data, layer.base_layer.weight.quant_state
        )
        effective = W_OI + layer.get_delta_weight("default")
        torch.testing.assert_close(ours.get_submodule(place).weight, effective, rtol=1e-5, atol=1e-6)


def test_a_scheme_that_cannot_be_undone_is_refused(
    lora: tuple[Path, Injection], tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for scheme in (
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "quanto", "weights": "int8"},
        {"quant_method": "x"},
    ):
        folder = tmp_path / scheme["quant_method"]
        shutil.copytree(tied, folder)
        (folder / "config.json").write_text(json.dumps(config_of(tied) | {"quantization_config": scheme}))
        assert stopped(str(lora[0]), str(tmp_path / "out"), "--model", str(folder)) == 2
        said = capsys.readouterr().err
        assert said.startswith("lora_zoo: ") and said.count("\n") == 1 and str(folder) in said
        assert not (tmp_path / "out").exists()


def test_adapters_of_peft_and_loralib_are_merged_too(
    lora: tuple[Path, Injection], tied: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(loaded(tied, "tied"), config)
    theirs.save_pretrained(tmp_path / "theirs")
    merge(tmp_path / "theirs", tmp_path / "out")  # its configuration names the base
    torch.testing.assert_close(logits(loaded(tmp_path / "out", "tied")), logits(theirs), rtol=1e-4, atol=1e-4)
    state = {
        f"{name}.lora_{key[0]}": value
        for name, adapter in lora[1].adapters.items()
        for key, value in adapter.state_dict().items()
    }
    torch.save(state, tmp_path / "lora.pt")
    alpha = lora[1].hyper["alpha"]
    merge(tmp_path / "lora.pt", tmp_path / "again", model=str(tied), alpha=alpha)
    torch.testing.assert_close(
        logits(loaded(tmp_path / "again", "tied")), logits(lora[1].model), rtol=1e-4, atol=1e-4
    )


def stopped(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_command_says_what_it_made_and_how_far_it_is(
    lora: tuple[Path, Injection], tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lora[0].rename(run / "adapter")
    (tmp_path / "out").mkdir()  # an empty folder may be there
    main([str(run), str(tmp_path / "out"), "--dtype", "bfloat16"])
    said, errors = capsys.readouterr()
    assert "AutoModelForCausalLM" in said and "largest logit difference" in said and "bfloat16" in said
    assert errors == "" and config_of(tmp_path / "out")["dtype"] == "bfloat16"
    wanted = logits(lora[1].model)
    got = logits(loaded(tmp_path / "out", "tied")).float()
    torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.1)
    shown = float(said.split("reloaded: ")[1].split()[0])
    assert 0.2 * shown < (got - wanted).abs().max() < 5 * shown  # the batch is another


def test_a_difference_beyond_rounding_is_warned_of(
    lora: tuple[Path, Injection],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lora_zoo.models import saving

    real = saving.reloaded
    monkeypatch.setattr(saving, "reloaded", lambda folder, base: nudged(real(folder, base)))
    main([str(lora[0]), str(tmp_path / "out")])
    assert "does not explain" in capsys.readouterr().err


def nudged(model: Any) -> Any:
    model.model.layers[0].mlp.up_proj.weight.data[0] += 0.05
    return model


def test_a_base_can_be_given_and_must_be_known(
    tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = loaded(tied, "tied")
    adapted = inject(model, "lora", target_modules=["q"], rank=2)
    with torch.no_grad():
        perturb(adapted)
    adapter = save_adapter(adapted, tmp_path / "adapter")  # as a checkpoint is: it says nothing of the base
    assert stopped(str(adapter), str(tmp_path / "out")) == 2
    assert "give --model" in capsys.readouterr().err
    merge(adapter, tmp_path / "out", model=str(tied))
    torch.testing.assert_close(logits(loaded(tmp_path / "out", "tied")), logits(model), rtol=1e-4, atol=1e-4)
    for wrong in (tmp_path / "nowhere", base_folder("fused", tmp_path / "other")):
        assert stopped(str(adapter), str(tmp_path / "next"), "--model", str(wrong)) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert stopped(str(tmp_path / "nothing"), str(tmp_path / "next")) == 2
    assert "no adapter" in capsys.readouterr().err
    assert left(tmp_path) == {"adapter", "out", "other"}


def test_nothing_is_overwritten(
    lora: tuple[Path, Injection], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for taken in ("full", "full/mine"):
        assert stopped(str(lora[0]), str(tmp_path / taken)) == 2
        assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "full" / "mine").read_text() == "x" and left(tmp_path / "full") == {"mine"}


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt, OSError(28, "No space left on device"), ValueError("odd")]
)
def test_what_is_interrupted_leaves_nothing(
    failure: Any, lora: tuple[Path, Injection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, folder: Path, **_: Any) -> None:
        assert list(Path(folder).iterdir()), "the model is written by now"
        raise failure

    monkeypatch.setattr(tf.PreTrainedTokenizerBase, "save_pretrained", fail)
    code = {"KeyboardInterrupt": 130, "OSError": 1, "ValueError": 2}
    kind = failure.__name__ if isinstance(failure, type) else type(failure).__name__
    assert stopped(str(lora[0]), str(tmp_path / "out")) == code[kind]
    assert left(tmp_path) == {"adapter"}


def test_a_model_that_does_not_load_as_saved_is_not_kept(
    lora: tuple[Path, Injection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = tf.PreTrainedModel.save_pretrained

    def forgetful(self: Any, folder: Path, **more: Any) -> None:
        save(self, folder, **more)
        state = load_file(Path(folder) / "model.safetensors")
        state.pop("model.norm.weight")
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(tf.PreTrainedModel, "save_pretrained", forgetful)
    with pytest.raises(ValueError, match="norm"):
        merge(lora[0], tmp_path / "out")
    assert left(tmp_path) == {"adapter"}


def test_a_terminated_merge_leaves_nothing(
    lora: tuple[Path, Injection], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here := tmp_path_factory.mktemp("here") / "here").mkdir()
    (here.parent / "waiting.py").write_text(
        "import os, sys, time; from lora_zoo import merge; import transformers as tf\n"
        f"wait = lambda *_, **__: (os.rmdir({str(here)!r}), time.sleep(60))\n"
        "tf.PreTrainedTokenizerBase.save_pretrained = wait\n"
        "merge.main(sys.argv[1:])\n"
    )
    process = start(str(lora[0]), str(tmp_path / "out"), at=here.parent, module="waiting")
    until = time.monotonic() + 60
    while here.exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    assert len(left(tmp_path)) == 2  # it is written beside OUT
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert left(tmp_path) == {"adapter"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many kilobytes; skips where that is not allowed."""
    mounted = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{kilobytes}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small disk needs root and mount(8)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kept_free", ["nothing", "the weights", "all but the tokenizer"])
def test_a_full_disk_is_one_line_and_nothing_left(
    kept_free: str,
    lora: tuple[Path, Injection],
    tied: Path,
    small_disk: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = (tied / "model.safetensors").stat().st_size // 1024
    disk = small_disk(
        {"nothing": 64, "the weights": weights + 4, "all but the tokenizer": weights + 16}[kept_free]
    )
    assert stopped(str(lora[0]), str(disk / "out")) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left" in said and str(disk / "out") in said
    assert left(disk) == set()
