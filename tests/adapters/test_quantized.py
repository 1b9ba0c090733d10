"""Adapters on layers of bitsandbytes and torchao: against their own values, the dense update and PEFT.

The rules that need no package are the conformance suite's, on its kind `quantised`.
"""

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from lora_zoo.config.quantization import SCHEMES
from lora_zoo.config.schema import Model
from lora_zoo.conformance.cases import perturb, randomise
from lora_zoo.hosts.find import find_host
from lora_zoo.hosts.quantized import QuantizedHost, numel
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.inject import inject
from lora_zoo.injection.preview import preview
from lora_zoo.models import quantization
from lora_zoo.models.base import Base
from lora_zoo.models.dequantize import load_dequantised
from lora_zoo.models.loading import load_model
from lora_zoo.models.quantization import base_bytes
from tests.test_training import model as tiny
from tests.test_training import trainer

O, I = 32, 64
FOUR = [("nf4", False), ("nf4", True), ("fp4", True)]
LAYERS = ["nf4", "int8", "torchao"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Converting a tensor")


def package(name: str) -> Any:
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


class Net(nn.Module):
    """One projection, as transformers calls it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.q_proj = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.q_proj(x)
        return y


def plain(size: float = 0.3) -> nn.Linear:
    layer = nn.Linear(I, O)
    randomise(layer.parameters(), size, set_to=True)
    return layer.requires_grad_(False)


def four_bits(
    scheme: str = "nf4", nested: bool = True, of: nn.Linear | None = None, **more: Any
) -> nn.Module:
    bnb = package("bitsandbytes")
    layer = bnb.nn.Linear4bit(I, O, quant_type=scheme, compress_statistics=nested, **more)
    layer.load_state_dict((of or plain()).state_dict())
    return layer.to("cpu").requires_grad_(False)  # type: ignore[no-any-return]


def quantised(kind: str, of: nn.Linear | None = None) -> nn.Module:
    if kind == "nf4":
        return four_bits(of=of)
    if kind == "int8":
        layer = package("bitsandbytes").nn.Linear8bitLt(I, O, has_fp16_weights=False, threshold=6.0)
        layer.load_state_dict((of or plain()).state_dict())
        return layer.to("cpu").requires_grad_(False)  # type: ignore[no-any-return]
    torchao = package("torchao.quantization")
    net = nn.Sequential(of or plain())
    torchao.quantize_(net, torchao.Int8WeightOnlyConfig())
    return net[0].requires_grad_(False)


def given() -> Tensor:
    return torch.randn(2, 3, I, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("scheme", "nested"), FOUR)
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_four_bits_are_read_as_bitsandbytes_reads_them(
    scheme: str, nested: bool, storage: torch.dtype
) -> None:
    layer: Any = four_bits(scheme, nested, quant_storage=storage)
    host = find_host(layer)
    assert isinstance(host, QuantizedHost)
    of = package("bitsandbytes.functional")
    assert torch.equal(host.matrix(), of.dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    assert numel(layer.weight) == O * I > layer.weight.numel()
    rows = QuantizedHost(layer, slice(8, 24))
    assert rows.shape == (16, I) and torch.equal(rows.matrix(), host.matrix()[8:24])


def test_eight_bits_are_read_as_bitsandbytes_reads_them_before_and_after_a_pass() -> None:
    layer: Any = quantised("int8")
    of = package("bitsandbytes.functional")
    W_OI = of.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    host = find_host(layer)
    assert host is not None
    assert_close(host.matrix(), W_OI, rtol=1e-6, atol=1e-7)
    layer.train()(given())  # which moves the scales from the weight to the layer's state
    assert layer.weight.SCB is None
    assert_close(host.matrix(), W_OI, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("passes", [0, 1])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_codes_made_anew_are_those_that_bitsandbytes_makes_of_the_weight(kind: str, passes: int) -> None:
    of = plain(0.1)
    layer, other = quantised(kind), quantised(kind, of)
    host, expected = find_host(layer), find_host(other)
    assert host is not None and expected is not None
    for _ in range(passes):
        layer.train()(given())
    former, coder, W_OI = host.matrix(), host.coder, of.weight.detach()
    kept = coder.codes()
    assert torch.equal(coder.rounding(W_OI), expected.matrix()) and not torch.equal(former, expected.matrix())
    coder.put(coder.encode(W_OI))
    assert torch.equal(host.matrix(), expected.matrix())
    with torch.no_grad():
        layer.bias.copy_(of.bias)  # type: ignore[operator]
    assert torch.equal(layer.train()(given()), other.train()(given()))
    coder.put(kept)
    assert torch.equal(host.matrix(), former)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_shape_needs_no_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does a pass of LoRA and its gradients; a start may read W, once."""
    net = Net(quantised(kind))
    injection = inject(net, "lora", target_modules=["q"], rank=4)
    monkeypatch.setattr(QuantizedHost, "tensor", None)
    shown = preview(Net(quantised(kind)), "lora", target_modules=["q"], rank=4)
    assert shown.rows[0].shape == (O, I) and shown.trainable == 4 * (O + I)
    net(given()).sum().backward()
    assert all(p.grad is not None for p in injection.parameters())
    assert injection.total() == 4 * (O + I) + O * I + O == shown.total


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_an_adapter_adds_to_the_layers_own_output_and_gradient(kind: str, training: bool) -> None:
    """LLM.int8 rounds x in evaluation mode: no product with decoded W is as near."""
    net, x = Net(quantised(kind)).train(training), given().requires_grad_()
    own = net(x)
    (own_x,) = torch.autograd.grad(own.square().sum() / 2, x)
    injection = inject(net, "lora", target_modules=["q"], rank=4)
    assert torch.equal(net(x), own)
    perturb(injection)
    B_OR, A_RI = injection.adapters["q_proj"].factors()  # type: ignore[misc]
    dW_OI = (B_OR @ A_RI).detach()
    y = net(x)
    assert_close(y, own + F.linear(x, dW_OI), **CLOSE)
    W_OI = find_host(net.q_proj.layer).matrix()  # type: ignore[union-attr, arg-type]
    (by_x,) = torch.autograd.grad(y.square().sum() / 2, x)
    assert_close(by_x, y.detach() @ (W_OI + dW_OI), rtol=1e-4, atol=1e-4)
    assert_close(own_x, own.detach() @ W_OI, rtol=1e-4, atol=1e-4)
    with injection.disabled():
        assert torch.equal(net(x), own)
    with pytest.raises(ValueError, match="q_proj cannot be merged, a quantised linear: it stores codes"):
        injection.merge()


@pytest.mark.parametrize(("name", "kind"), [("lora", "nf4"), ("dora", "nf4"), ("lora", "int8")])
def test_outputs_and_gradients_are_pefts_on_the_same_layer(name: str, kind: str) -> None:
    """PEFT's DoRA loses the scales of LLM.int8 with this bitsandbytes, and raises."""
    import peft

    ours, base = Net(quantised(kind)), Net(quantised(kind))
    setattr(base, f"is_loaded_in_{4 if kind == 'nf4' else 8}bit", True)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_dora=name == "dora")
    theirs = peft.inject_adapter_in_model(config, base)
    layer: Any = theirs.q_proj
    assert type(layer).__module__ == "peft.tuners.lora.bnb"
    injection = inject(ours, name, target_modules=["q"], rank=4, alpha=8)
    perturb(injection)
    of: Any = injection.adapters["q_proj"]
    pairs = [(of.A_RI, layer.lora_A["default"].weight), (of.B_OR, layer.lora_B["default"].weight)]
    if name == "dora":
        pairs.append((of.m_O, layer.lora_magnitude_vector["default"].weight))
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)
    for training in (True, False):
        x, ours_y = given().requires_grad_(), ours.train(training)(given())
        theirs_y = theirs.train(training)(x)
        assert_close(ours_y, theirs_y, **CLOSE)
        for y, parameters in ((ours_y, [a for a, _ in pairs]), (theirs_y, [b for _, b in pairs])):
            (y.square().sum() / 2).backward(inputs=parameters)
        for mine, other in pairs:
            assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_a_cpu_that_would_repack_the_codes_is_kept_from_it() -> None:
    layer: Any = four_bits()
    layer.support_avx512bf16_for_cpu = True
    net, x = Net(layer), given()
    inject(net, "lora", target_modules=["q"], rank=4)
    with torch.no_grad():
        y = net.eval()(x)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    host = find_host(layer)
    assert host is not None
    assert_close(y, F.linear(x, host.matrix(), layer.bias), **CLOSE)


def test_codes_that_a_pass_has_repacked_are_refused() -> None:
    layer: Any = four_bits()
    layer.support_avx512bf16_for_cpu = True
    with torch.no_grad(), contextlib.suppress(Exception):  # its kernel may be missing here
        Net(layer).eval()(given())
    assert layer.weight.quant_state.packing_format_for_cpu
    with pytest.raises(ValueError, match=r"has repacked the codes of a Linear4bit.*load the model anew"):
        inject(Net(layer), "dora", target_modules=["q"], rank=4)


def test_layers_that_round_their_input_without_a_gradient_are_refused() -> None:
    of = package("torchao.quantization")
    net = Net(plain())
    of.quantize_(net, of.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(ValueError, match="q_proj, a quantised linear, rounds its input and gives it no"):
        inject(net.requires_grad_(False), "lora", target_modules=["q"])


@pytest.mark.parametrize("kind", LAYERS)
def test_codes_do_not_train(kind: str) -> None:
    with pytest.raises(ValueError, match=r"q_proj.weight holds codes, which cannot train"):
        inject(Net(quantised(kind)), "full")
    with pytest.raises(ValueError, match=r"gradient of W cannot be had, as its codes take no gradient"):
        inject(Net(quantised(kind)), "lora", target_modules=["q"], init="lora_ga")


# --- models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("base")
    tiny().save_pretrained(at)
    return at


def settings(folder: Path, scheme: str, **more: Any) -> Model:
    package(SCHEMES[scheme].package)
    return Model(name="tiny", path=str(folder), quantization=scheme, **more)


def loaded(folder: Path, scheme: str, **more: Any) -> Any:
    return load_model(settings(folder, scheme, **more), "AutoModelForCausalLM", {}, None, seed=0).model


@pytest.mark.parametrize(
    ("scheme", "more"),
    [
        ("nf4", {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16"}),
        ("fp4", {"bnb_4bit_quant_storage": "bfloat16"}),
        ("int8", {"llm_int8_threshold": 3.0}),
        ("torchao_int8", {}),
        ("torchao_intx", {"group_size": 8}),
    ],
)
def test_a_model_is_loaded_as_its_keys_say(scheme: str, more: dict[str, Any], folder: Path) -> None:
    model = loaded(folder, scheme, **more)
    layer = model.model.layers[0].self_attn.q_proj
    W_OI = find_host(layer).matrix()  # type: ignore[union-attr]
    exact = tiny().model.layers[0].self_attn.q_proj.weight
    assert 0 < float((W_OI - exact).abs().max()) < 0.05
    if scheme == "nf4":
        state = layer.weight.quant_state
        assert (state.nested, state.quant_type, layer.compute_dtype) == (True, "nf4", torch.bfloat16)
    if scheme == "fp4":
        assert layer.weight.dtype == torch.bfloat16 and layer.weight.quant_state.quant_type == "fp4"
    if scheme == "int8":
        assert layer.state.threshold == 3.0
    base = Base(settings(folder, scheme, **more), "AutoModelForCausalLM", {}, None)
    dense: Any = load_dequantised(base, None).model
    assert type(dense.model.layers[0].self_attn.q_proj) is nn.Linear and not hasattr(dense, "hf_quantizer")
    assert torch.equal(dense.model.layers[0].self_attn.q_proj.weight, W_OI)


@pytest.mark.parametrize("scheme", ["nf4", "int8", "torchao_int8"])
def test_a_head_that_the_checkpoint_lacks_is_drawn_and_stays_plain(scheme: str, tmp_path: Path) -> None:
    """transformers makes a layer of bitsandbytes of a head with a bias, to which it then gives no codes."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 40}
    of = BertConfig(num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16, **sizes)
    BertModel(of).save_pretrained(tmp_path)
    given = settings(tmp_path, scheme)

    def classifier(of: Model) -> Any:
        return load_model(of, "AutoModelForSequenceClassification", {"num_labels": 3}, None, seed=4)

    found, expected = classifier(given), classifier(replace(given, quantization=None))
    assert found.new_modules == expected.new_modules == ["classifier"]
    head = found.model.classifier
    assert type(head) is nn.Linear and type(head.weight) is nn.Parameter
    assert all(map(torch.equal, head.state_dict().values(), expected.model.classifier.state_dict().values()))
    injection = inject(
        found.model, "lora", target_modules=["q", "v"], rank=2, modules_to_save=found.new_modules
    )
    ids = torch.arange(8)[None]
    found.model(input_ids=ids, labels=torch.tensor([1])).loss.backward()
    assert head.weight.grad is not None and all(p.grad is not None for p in injection.parameters())


@pytest.mark.parametrize(
    ("scheme", "nested", "taken"),
    [
        ("nf4", None, 40960 / 2 + 4 * 640),  # half a byte each, and 640 scales
        (
            "fp4",
            True,
            40960 / 2 + 640 + 4 * 7 + 4 * 7,
        ),  # in bytes; each of seven matrices has one block of them
        ("int8", None, 40960 + 4 * (4 * 64 + 2 * 128 + 64)),  # a scale for each row
        ("reference_nf4", None, 40960 + 4 * 640),
        ("reference_int8", None, 40960 + 8 * 1280),  # a scale and the least weight of each 32
    ],
)
def test_the_bytes_of_a_base_are_told_from_its_structure(scheme: str, nested: Any, taken: float) -> None:
    """By hand, of 4 matrices of 64 x 64 and 3 of 128 x 64: 40,960 weights, 640 blocks of 64."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 10, "num_hidden_layers": 1}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    asked = Model(quantization=scheme, bnb_4bit_use_double_quant=nested)
    assert base_bytes(model, Model()) - base_bytes(model, asked) == 4 * 40960 - taken
    assert base_bytes(model, Model()) >= 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_the_bytes_that_are_told_are_those_that_a_layer_takes(scheme: str) -> None:
    held: Any = quantised(scheme).weight
    scales = [held.SCB] if scheme == "int8" else [held.quant_state.absmax, held.quant_state.offset]
    inner = [held.quant_state.state2.absmax] if scheme == "nf4" else []
    told = SCHEMES[scheme].bytes
    assert told and told(O, I, True, None) == sum(t.nbytes for t in (held.data, *scales, *inner))


def test_a_base_that_is_quantised_already_is_adapted_and_not_quantised_again(
    folder: Path, tmp_path: Path
) -> None:
    loaded(folder, "nf4").save_pretrained(tmp_path / "codes")
    again: Any = load_model(
        Model(name="codes", path=str(tmp_path / "codes")), "AutoModelForCausalLM", {}, None, seed=0
    ).model
    assert len(inject(again, "lora", target_modules=["q", "v"], rank=2)) == 4
    with pytest.raises(ValueError, match=r"is quantised already \(bitsandbytes\): drop model"):
        loaded(tmp_path / "codes", "int8")


def test_a_missing_package_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    given = Model(name="tiny", path=str(folder), quantization="nf4")
    with pytest.raises(ValueError, match=r'needs bitsandbytes, .*pip install "lora_zoo\[quant\]"'):
        load_model(given, "AutoModelForCausalLM", {}, None, seed=0)


@pytest.fixture
def stopped(folder: Path, tmp_path: Path) -> Iterator[Any]:
    def run(at: Path, **more: Any) -> Any:
        injection = inject(loaded(folder, "nf4"), "dora", target_modules=["q", "v"], rank=2, lora_dropout=0.1)
        return trainer(at, injection, max_steps=4, **more)

    yield run


def test_a_run_on_codes_goes_on_to_the_bit_and_recomputes_to_the_bit(stopped: Any, tmp_path: Path) -> None:
    package("bitsandbytes")
    whole = stopped(tmp_path / "whole", save_strategy="steps", save_steps=2)
    before = {name: p.detach().clone() for name, p in base_parameters(whole.injection.model).items()}
    whole.train()
    expected = whole.injection.state_dict()
    rest = stopped(tmp_path / "rest")
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    again = stopped(tmp_path / "again", gradient_checkpointing=True)
    again.train()
    for name, tensor in expected.items():
        assert torch.equal(rest.injection.state_dict()[name], tensor), name
        assert torch.equal(again.injection.state_dict()[name], tensor), name
    after = base_parameters(whole.injection.model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
