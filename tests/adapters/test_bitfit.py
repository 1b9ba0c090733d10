"""BitFit against plain torch: biases that train, where a layer has one and where it has none."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import batch, fresh, logits, perturb, randomise
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.batched import RowGroup
from lora_zoo.injection.inject import inject
from lora_zoo.models.merging import refuse_unmergeable

WHOLE = {"target_modules": "all-linear", "modules_to_save": ["classifier", "LayerNorm.bias"]}


def trained(model, parameters, steps=6):
    """The losses of so many AdamW steps; transformers decays no bias, and neither does BitFit."""
    optimizer, losses = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0), []
    for _ in range(steps):
        loss = model(**batch("bert")).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_bitfit_of_bert_is_the_training_of_all_its_biases_to_the_last_digits():
    ours, plain = (fresh("bert")[0].double() for _ in range(2))
    named = {
        name: p
        for name, p in plain.named_parameters()
        if name.startswith("classifier") or (name.endswith("bias") and "pooler" not in name)
    }
    plain.requires_grad_(False)
    for p in named.values():
        p.requires_grad_(True)
    injection = inject(ours, "bitfit", **WHOLE)
    assert injection.trainable() == sum(p.numel() for p in named.values())
    losses = [trained(plain, list(named.values())), trained(ours, injection.param_groups(lr=0.01))]
    assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    injection.merge()
    injection.remove()
    for name, tensor in plain.state_dict().items():
        assert_close(ours.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)
        assert torch.equal(tensor, fresh("bert")[0].double().state_dict()[name]) == (name not in named)


def test_a_llama_gets_biases_as_if_it_had_them_from_the_start():
    model, config = fresh("llama")[0], fresh("llama")[0].config
    config.attention_bias = True
    biased = type(model)(config)
    biased.load_state_dict(model.state_dict(), strict=False)
    layers = [layer.self_attn for layer in biased.model.layers]
    biases = [p for layer in layers for p in (layer.q_proj.bias, layer.o_proj.bias)]
    randomise(biases, 0.3, set_to=True)
    injection = inject(model, "bitfit", target_modules=["q", "o"])
    with torch.no_grad():
        for p, bias in zip(injection.parameters(), biases, strict=True):
            p.copy_(bias)
    assert_close(logits(model, "llama"), logits(biased.eval(), "llama"))
    injection.merge()
    assert_close(logits(model, "llama"), logits(biased, "llama"), rtol=0, atol=0)
    injection.unmerge()
    injection.remove()
    assert list(model.state_dict()) == list(fresh("llama")[0].state_dict())
    assert torch.equal(logits(model, "llama"), logits(fresh("llama")[0], "llama"))


def test_shifts_of_several_adapters_and_of_each_row_s_own_add_to_a_layer_without_a_bias():
    net, x = nn.Sequential(nn.Linear(6, 4, bias=False)), torch.ones(2, 6)
    first, second = (inject(net, "bitfit", target_modules="0", name=name) for name in ("a", "b"))
    for number, injection in enumerate((first, second)):
        perturb(injection, seed=number)
    shifts_O = [next(iter(injection.parameters())).detach() for injection in (first, second)]
    frozen = net[0].layer(x)
    adapters_of(net).activate("a", "b")
    assert_close(net(x), frozen + sum(shifts_O))
    assert_close(net[0].bias.detach(), sum(shifts_O))
    with adapters_of(net).batched_forward([RowGroup("b", 1, 1), RowGroup("none", 1, 1)]):
        assert_close(net(x), torch.stack([frozen[0] + shifts_O[1], frozen[1]]))
    adapters_of(net).remove()
    assert net[0].bias is None and torch.equal(net(x), frozen)


@pytest.mark.parametrize(
    "make", [lambda: nn.Embedding(6, 4), lambda: nn.MultiheadAttention(4, 1, bias=False)]
)
def test_a_module_that_cannot_have_a_bias_is_refused(make):
    net = nn.Sequential(make())
    with pytest.raises(ValueError, match="it cannot have a bias, which this variant would give it"):
        inject(net, "bitfit", target_modules=r"0(\.out_proj)?")


def test_files_that_would_lose_the_bias_are_refused_and_there_is_no_update(tmp_path):
    injection = inject(fresh("llama")[0], "bitfit", target_modules=["q"])
    perturb(injection)
    with pytest.raises(ValueError, match=r"bitfit gives model\.layers\.0.*a saved model.*without it"):
        refuse_unmergeable(injection)
    with pytest.raises(ValueError, match="its bias changes as well, which LoRA cannot hold"):
        save_peft(injection, tmp_path / "peft")
    assert injection.matrix_names() == [] and list(injection) == []
    refuse_unmergeable(inject(fresh("bert")[0], "bitfit", target_modules=["q"]))
