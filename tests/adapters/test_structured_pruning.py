"""LoRAPrune: the scores and masks of heads and channels, and the model without what is masked.

Shapes: O out, I in, R rank; G groups of a structure.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import batch, fresh, logits, lone, only, perturb, train
from lora_zoo.core.hooks import Progress
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.injection.structures import find_structures
from lora_zoo.merge import main
from lora_zoo.models.slicing import alive, without_dead_groups
from lora_zoo.pocket import HUB

WHOLE = {"first_spared": 0.0, "last_spared": 0}
EXACT = {"rtol": 0, "atol": 0}


def adapted(kind: str, **hyper: Any) -> tuple[Any, Injection]:
    model, _ = fresh(kind)
    roles = ["q", "k", "v", "o", "up", "down", *(["gate"] if kind == "llama" else [])]
    return model, inject(model, "lora_prune", rank=2, **{"target_modules": roles, **WHOLE, **hyper})


def trained(model: Any, kind: str, injection: Injection, steps: int = 10) -> None:
    train(injection, lambda: model(**batch(kind)).loss, steps=steps)


def test_the_score_of_a_matrix_is_worked_out_by_hand() -> None:
    """And the estimate of the gradient is what a gradient step takes from B A (identity C-29)."""
    W_OI = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    model = nn.ModuleDict({"layer": nn.Linear(2, 2, bias=False)})
    adapter, _ = only(inject(model, "lora_prune", rank=1, alpha=1.0, target_modules="layer"))
    with torch.no_grad():
        adapter.B_OR.copy_(torch.tensor([[1.0], [2.0]]))
        adapter.A_RI.copy_(torch.tensor([[1.0, -1.0]]))
    adapter.B_OR.grad, adapter.A_RI.grad = torch.tensor([[0.5], [0.0]]), torch.tensor([[0.0, 1.0]])
    # Ĝ = [[0.5, 0], [0, 2]] and W + B A = [[2, 1], [5, 2]].
    assert_close(adapter.sensitivity(W_OI).detach(), torch.tensor([[1.0, 0.0], [0.0, 4.0]]), **EXACT)
    stepped_OI = (adapter.B_OR - adapter.B_OR.grad) @ (adapter.A_RI - adapter.A_RI.grad)
    G_OI = (adapter.B_OR @ adapter.A_RI - stepped_OI).detach()
    assert_close(adapter.sensitivity(torch.ones(2, 2) - adapter.update()).detach(), G_OI.abs(), **EXACT)


@pytest.mark.parametrize(("kind", "heads", "channels"), [("llama", 2, 24), ("bert", 4, 24), ("gpt2", 2, 64)])
def test_structures_are_found_by_roles_with_the_heads_that_share_keys_in_one_group(
    kind: str, heads: int, channels: int
) -> None:
    found = find_structures(fresh(kind)[0])
    assert [(s.kind, s.groups) for s in found] == 2 * [("heads", heads), ("channels", channels)]
    assert [[m.role for m in s.makers] for s in found[:1]] == [["q", "k", "v"]]
    assert found[1].reader.role == "down" and found[1].makers[0].role == "up"


def test_scores_are_normed_sums_over_groups_that_are_smoothed() -> None:
    """Against the definition, head by head, of 2 groups of 2 heads of 4 numbers over one key head each."""
    model, injection = adapted("llama", beta=0.5)
    perturb(injection)
    hooks, name = injection.hooks, "model.layers.0.self_attn."
    expected_G = torch.zeros(2)
    for step in (1, 2):
        model(**batch("llama")).loss.backward()
        hooks.on_after_backward(Progress(step, 10))
        now_G = torch.zeros(2)
        for own, rows in (("q_proj", 8), ("k_proj", 4), ("v_proj", 4), ("o_proj", 8)):
            S_OI = injection.adapters[name + own].sensitivity(injection.base_weight(name + own)).detach()
            by_line = S_OI.sum(0) if own == "o_proj" else S_OI.sum(1)
            sums_G = torch.stack([by_line[:rows].sum(), by_line[rows:].sum()])
            now_G += sums_G / sums_G.norm()
        expected_G = 0.5 * expected_G + 0.5 * now_G
    assert_close(hooks.scores()[0], expected_G)
    assert len(hooks.scores()) == 4 and hooks.structures[0].reader.name == f"{name}o_proj"


def test_the_lowest_scores_go_by_the_schedule_and_stay_gone() -> None:
    _, injection = adapted("llama", ratio=0.5, tinit=2, tfinal=2, prune_freq=3)
    hooks, seen = injection.hooks, list[torch.Tensor]()
    hooks.on_train_begin(10)
    structure = hooks.structures[1]
    kept_I = injection.adapters[structure.reader.name].kept_I
    for parameter in injection.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for step in range(1, 11):
        hooks.scores()[1].copy_(torch.randn(24, generator=torch.Generator().manual_seed(step)).abs())
        score_G, before = hooks.scores()[1].clone(), kept_I.clone()
        hooks.on_step_end(Progress(step, 10))
        seen.append(kept_I.clone())
        newly = (before - kept_I).bool()
        assert not newly.any() or score_G[newly].max() < score_G[kept_I.bool()].min()
    # The share is (1 - (1 - (t - 2) / 6)³) / 2 at steps 3, 6 and, to the end, 8: 5, 11 and 12 of 24 channels.
    assert [int((m == 0).sum()) for m in seen] == [0, 0, 5, 5, 5, 11, 11, 12, 12, 12]
    assert all(bool((late <= early).all()) for early, late in itertools.pairwise(seen))
    heads_I = injection.adapters["model.layers.0.self_attn.o_proj"].kept_I
    assert heads_I.tolist() in ([0.0] * 8 + [1.0] * 8, [1.0] * 8 + [0.0] * 8)


def test_the_first_and_last_layers_are_spared_and_what_is_not_read_is_not_pruned() -> None:
    names = {s.reader.name for s in adapted("llama", first_spared=0.5, last_spared=0)[1].hooks.structures}
    assert names == {"model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"}
    names = {s.reader.name for s in adapted("llama", first_spared=0.1, last_spared=1)[1].hooks.structures}
    assert names == {"model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"}
    only_heads = adapted("llama", target_modules=["q", "o", "up"])[1].hooks.structures
    assert [s.kind for s in only_heads] == ["heads", "heads"]


def test_with_ratio_0_it_is_lora_to_the_bit() -> None:
    states = []
    for name, own in (("lora", {}), ("lora_prune", {"ratio": 0.0})):
        model = lone("linear")
        injection = inject(model, name, rank=2, alpha=16.0, target_modules="layer", **own)
        x = torch.randn(5, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        train(injection, lambda model=model, x=x: model(x).square().mean(), steps=4)
        states.append(injection.state_dict())
    assert_close(states[1], states[0], **EXACT)


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_a_masked_model_is_the_sliced_one(kind: str, tmp_path: Path) -> None:
    """Trained, saved, loaded, merged, sliced, saved, loaded by transformers: one function all along."""
    model, injection = adapted(kind)
    with torch.no_grad():  # biases of what is sliced must not matter
        for name, parameter in model.named_parameters():
            parameter.add_(0.1) if name.endswith("bias") else None
    trained(model, kind, injection)
    injection.hooks.law()
    expected = logits(model, kind)
    save_adapter(injection, tmp_path / "adapter")
    injection.remove()
    assert not torch.allclose(logits(model, kind), expected, atol=1e-3)
    loaded = load_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(model, kind), expected)
    loaded.merge()
    loaded.remove()
    assert_close(logits(model, kind), expected, rtol=1e-5, atol=1e-5)
    small, notes = without_dead_groups(model)
    small.save_pretrained(tmp_path / "small")
    again = type(model).from_pretrained(tmp_path / "small").eval()
    assert_close(logits(again, kind), expected, rtol=1e-5, atol=1e-5)
    widths = {s.kind: s.groups for s in find_structures(again)}
    if kind == "llama":
        assert widths == {"channels": 12} and len(notes) == 2  # a single group of heads is no structure
        assert (again.config.num_attention_heads, again.config.num_key_value_heads) == (2, 1)
        assert again.model.layers[0].self_attn.k_proj.weight.shape == (4, 16)
    else:
        assert widths == {"heads": {"bert": 4, "gpt2": 2}[kind], "channels": {"bert": 12, "gpt2": 32}[kind]}
        assert "leave o out of target_modules" in notes[0]


def test_layers_that_lost_more_keep_dead_groups_beside_those_that_live() -> None:
    model, _ = fresh("llama")
    with torch.no_grad():
        for layer, gone in zip(model.model.layers, ([1, 5, 7], [2]), strict=True):
            layer.mlp.down_proj.weight[:, gone] = 0
    expected = logits(model, "llama")
    small, notes = without_dead_groups(model)
    assert notes == ["channels of each layer: 24 -> 23"] and small.config.intermediate_size == 23
    assert_close(logits(small, "llama"), expected, rtol=1e-5, atol=1e-5)
    assert [int(alive(s).sum()) for s in find_structures(small) if s.kind == "channels"] == [21, 23]
    assert model.config.intermediate_size == 24 and not torch.equal(logits(small, "llama"), expected + 1)


def test_what_is_masked_has_no_gradient() -> None:
    model, injection = adapted("bert")
    perturb(injection)
    structure = injection.hooks.structures[0]
    injection.hooks.prune(structure, torch.tensor([3.0, 1.0, 2.0, 4.0]), 1)
    model(**batch("bert")).loss.backward()
    for maker in structure.makers:
        rows_G = injection.adapters[maker.name].B_OR.grad.view(4, -1).abs().sum(1)
        assert rows_G[1] == 0 and (maker.role == "k" or rows_G[[0, 2, 3]].all())
    assert not injection.adapters[structure.reader.name].A_RI.grad[:, 4:8].any()


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"ratio": 1.0}, r"ratio < 1.*got 1\.0"),
        ({"prune_freq": 0}, "prune_freq >= 1"),
        ({"last_spared": -1}, "last_spared >= 0; got"),
        ({"tinit": 8, "tfinal": 8}, "leave no step of 10"),
    ],
)
def test_what_cannot_be_pruned_is_refused_in_one_line(hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        adapted("llama", **hyper)[1].hooks.on_train_begin(10)
    assert "\n" not in str(refusal.value)


def test_a_number_of_heads_that_the_configuration_refuses_is_not_written() -> None:
    """LlamaConfig's must divide the hidden size: one dead head of 4 stays, and three of 8; of five, one."""
    for heads, dead, kept in ((4, 1, 4), (8, 3, 8), (8, 5, 4)):
        sizes = {"vocab_size": 37, "hidden_size": 16, "num_attention_heads": heads, "intermediate_size": 12}
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, num_hidden_layers=1)).eval()
        own = model.model.layers[0].self_attn.o_proj
        with torch.no_grad():
            own.weight[:, : dead * 16 // heads] = 0
        if kept == heads:
            with pytest.raises(ValueError, match=f"LlamaConfig refuses {heads - dead} to {heads - 1}, as"):
                without_dead_groups(model)
            continue
        small, notes = without_dead_groups(model)
        assert notes == [f"heads of each layer: {heads} -> {kept}"]
        assert_close(logits(small, "llama"), logits(model, "llama"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hyper", [{"target_modules": ["q", "v", "up"]}, {"last_spared": 2}])
def test_a_run_that_prunes_nothing_says_so(hyper: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=r"prunes nothing: it needs `o`.* last_spared=\d leave"):
        adapted("llama", **hyper)[1].hooks.on_train_begin(10)


def test_a_model_without_heads_and_channels_is_refused() -> None:
    config = tf.MambaConfig(vocab_size=37, hidden_size=8, state_size=4, num_hidden_layers=1, pad_token_id=0)
    injection = inject(tf.MambaForCausalLM(config), "lora_prune", target_modules="in_proj")
    with pytest.raises(ValueError, match="no heads and no channels in this model"):
        injection.hooks.on_train_begin(10)


def test_parts_of_a_fused_layer_are_sliced_where_they_lie() -> None:
    sizes = {"vocab_size": 37, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 12}
    torch.manual_seed(0)
    model = tf.Phi3ForCausalLM(tf.Phi3Config(**sizes, num_hidden_layers=1, pad_token_id=0)).eval()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, [0, 7]] = 0
    small, _ = without_dead_groups(model)
    assert small.model.layers[0].mlp.gate_up_proj.weight.shape == (20, 16)
    assert_close(logits(small, "llama"), logits(model, "llama"), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_sliced_is_refused_in_one_line() -> None:
    model, _ = fresh("llama")
    with pytest.raises(ValueError, match="no head and no channel"):
        without_dead_groups(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 3] = 0
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.down_proj has all its 24, and LlamaConfig holds one"
    ):
        without_dead_groups(model)
    model, _ = fresh("bert")
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.weight[:, :4] = 0
    with pytest.raises(ValueError, match="BertConfig derives the size of a head"):
        without_dead_groups(model)


def test_the_command_merges_and_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, said = tmp_path / "base", {"auto_class": "AutoModelForCausalLM", "head": {}}
    model, _ = fresh("llama")
    model.resize_token_embeddings(725)
    model.save_pretrained(base)
    tf.AutoTokenizer.from_pretrained(HUB).save_pretrained(base)
    injection = inject(model, "lora_prune", target_modules=["up", "down"], **WHOLE)
    trained(model, "llama", injection)
    save_adapter(injection, tmp_path / "run", model={"name": "base", "path": str(base)}, **said)
    main([str(tmp_path / "run"), str(tmp_path / "out"), "--slice"])
    assert "channels of each layer: 24 -> 12" in capsys.readouterr().out
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_close(logits(again, "llama"), logits(model, "llama"), rtol=1e-5, atol=1e-5)
