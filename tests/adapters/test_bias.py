"""The effective bias: variants that change it, and everything that reads, merges or writes one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import Experts
from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.host import LayerHost
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.batched import RowGroup
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.variants.additive.lora import LoRA


class Affine(Adapter):
    """Scales the rows of W, and the bias otherwise."""

    name, paper, equation, count = "affine", "none", "W' = diag(1 + u) W, b' = (1 + v) b", "2 * O"

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.u_O, self.v_O = (nn.Parameter(context.full(context.shape[:1])) for _ in "uv")
        self.role = context.role

    def weight(self, W_OI: Tensor) -> Tensor:
        return (1 + self.u_O)[:, None] * W_OI

    def bias(self, b_O: Tensor) -> Tensor:
        return (1 + self.v_O) * b_O


class BiasedLoRA(LoRA):
    """LoRA that doubles the bias: its base class has a kernel, which adds the layer's own."""

    name = "biased_lora"

    def bias(self, b_O: Tensor) -> Tensor:
        return 2 * b_O

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        return Adapter.forward(self, x, host)


class Block(nn.Module):
    """A fused projection as in GPT-1, then a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c_attn, self.down_proj = nn.Linear(6, 12), nn.Linear(12, 5)
        self.config = type("Config", (), {"model_type": "openai-gpt"})()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(torch.tanh(self.c_attn(x)))


TARGETS = ["c_attn.k", "c_attn.v", "down_proj"]


def adapted(net: nn.Module, seed: int = 0, name: str = "default", targets: Any = TARGETS) -> Injection:
    injection = inject(net, Affine, target_modules=targets, name=name)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in injection.parameters():
            p.copy_(torch.randn(p.shape, generator=source))
    return injection


def expected(net: Block, *injections: Injection) -> Block:
    """A plain block with b + Σ (b' - b) and W + Σ (W' - W), written out."""
    plain = Block()
    with torch.no_grad():
        for injection in injections:
            for name, adapter in injection.adapters.items():
                part = {"k": slice(4, 8), "v": slice(8, 12)}.get(name[-1], slice(None))
                of = name.removesuffix(".k").removesuffix(".v")
                layer, frozen = plain.get_submodule(of), Block().get_submodule(of)
                layer.bias[part] += adapter.v_O * frozen.bias[part]
                layer.weight[part] += adapter.u_O[:, None] * frozen.weight[part]
    return plain


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


def test_the_class_says_whether_its_bias_changes() -> None:
    assert Affine.changes_bias and BiasedLoRA.changes_bias
    assert not LoRA.changes_bias and not Adapter.changes_bias


def test_an_adapter_knows_the_role_of_its_matrix() -> None:
    injection = adapted(Block())
    assert [adapter.role for adapter in injection.adapters.values()] == ["k", "v", "down"]


def test_parts_of_a_fused_layer_change_their_rows_of_the_bias_alone(x: Tensor) -> None:
    net = Block()
    injection = adapted(net)
    assert_close(net(x), expected(net, injection)(x))
    for name in ("c_attn", "down_proj"):
        assert_close(net.get_submodule(name).bias, expected(net, injection).get_submodule(name).bias)


def test_the_changes_of_several_active_adapters_add(x: Tensor) -> None:
    net = Block()
    first, second = adapted(net, 1, "first", ["c_attn.k", "down_proj"]), adapted(net, 2, "second")
    adapters_of(net).activate("first", "second")
    plain = expected(net, first, second)
    assert_close(net(x), plain(x))
    first.merge()
    assert_close(net.down_proj.bias.detach(), plain.down_proj.bias.detach())
    assert_close(net(x), plain(x))
    first.unmerge()
    adapters_of(net).remove()
    assert torch.equal(net.down_proj.bias, Block().down_proj.bias) and torch.equal(net(x), Block()(x))


def test_rows_of_a_batch_have_the_biases_of_their_own_adapters(x: Tensor) -> None:
    net = Block()
    first, second = adapted(net, 1, "first"), adapted(net, 2, "second")
    groups = [RowGroup("first", 1, 1), RowGroup("none", 1, 1), RowGroup("second", 1, 1)]
    with adapters_of(net).batched_forward(groups):
        y = net(x)
        with pytest.raises(ValueError, match=r"down_proj\.bias is read, but each row"):
            net.down_proj.bias  # noqa: B018
    alone = [expected(net, first), Block(), expected(net, second)]
    assert_close(y, torch.cat([plain(row[None]) for plain, row in zip(alone, x, strict=True)]))


def test_a_kernel_that_would_add_the_layer_s_own_bias_is_left_out(x: Tensor) -> None:
    net = Block()
    injection = inject(net, BiasedLoRA, target_modules="down_proj", rank=2)
    plain = Block()
    with torch.no_grad():
        plain.down_proj.bias.mul_(2)
    assert_close(net(x), plain(x))
    (adapter,) = injection.adapters.values()
    assert adapter.path(x, injection.matrices["down_proj"].host) == "plain: there is no kernel"


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("variant", [Affine, BiasedLoRA])
def test_lora_s_files_refuse_a_bias_that_changes(variant: Any, rank: int | None, tmp_path: Path) -> None:
    net = Block()
    injection = (
        adapted(net) if variant is Affine else inject(net, variant, target_modules="down_proj", rank=4)
    )
    for form in ("lora", "peft"):
        with pytest.raises(ValueError, match=r"its bias changes as well, which LoRA cannot hold"):
            save_peft(injection, tmp_path / "out", form=form, rank=rank)
    assert not list(tmp_path.iterdir())


def test_lora_s_files_hold_it_where_there_is_no_bias_to_change(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 6, bias=False))
    save_peft(adapted(net, targets="0"), tmp_path / "out", form="lora", rank=2)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def attention(bias: bool) -> nn.Module:
    return nn.Sequential(nn.MultiheadAttention(8, 2, bias=bias))


@pytest.mark.parametrize(
    ("target", "bias"), [(r"0\.in_proj_weight\.q", "in_proj_bias"), (r"0\.out_proj", "bias")]
)
def test_it_is_refused_where_the_module_adds_the_bias_by_itself(target: str, bias: str) -> None:
    with pytest.raises(ValueError, match=f"affine cannot adapt 0.*its module adds {bias} by itself"):
        inject(attention(bias=True), Affine, target_modules=[target])
    assert len(inject(attention(bias=True), LoRA, target_modules=[target])) == 1
    assert len(inject(attention(bias=False), Affine, target_modules=[target])) == 1


def test_it_is_refused_on_experts_with_biases() -> None:
    net = nn.Sequential(Experts("down_proj", 4, 6))
    assert len(inject(net, Affine, target_modules="down")) == 3
    biased = nn.Sequential(Experts("down_proj", 4, 6))
    biased[0].down_proj_bias = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="its module adds down_proj_bias by itself"):
        inject(biased, Affine, target_modules="down")
