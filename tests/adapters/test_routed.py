"""Mixtures of adapters: how they route, what they reduce to, and what is recorded of it."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from lora_zoo import inject
from lora_zoo.conformance.cases import batch, fresh, inputs, lone, only, perturb
from lora_zoo.core.dropout import ForwardCounter
from lora_zoo.core.hooks import Progress
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.routing import RoutingRecord, balance_of, routing_means, top_k
from lora_zoo.core.seeding import generator
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.tasks.base import _task_of
from lora_zoo.variants.routers import RouterRate


def mixture(name="mola", model=None, **hyper):
    """(model, adapter, host) of a lone linear layer, every tensor moved away from its start."""
    model = model or lone("linear")
    injection = inject(model, name, target_modules="layer", **hyper)
    perturb(injection)
    return model, *only(injection)


def loop(adapter, x, top):
    """The sparse path, a token and an expert at a time: only those that are chosen are computed."""
    B_EOR, A_ERI = adapter.pairs()
    rows = []
    for token in x.flatten(0, -2):
        e = [math.exp(float(g @ token)) for g in adapter.router().detach()]
        chosen = sorted(range(len(e)), key=lambda i: -e[i])[:top]
        A = A_ERI.expand(len(e), -1, -1)
        rows.append(sum(e[i] / sum(e[j] for j in chosen) * (B_EOR[i] @ (A[i] @ token)) for i in chosen))
    return adapter.scale * torch.stack(rows).view(*x.shape[:-1], -1)


def test_the_top_of_a_softmax_over_its_sum_is_the_softmax_of_the_top_logits():
    """C-46; all of them are the softmax itself."""
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, places = top_k(logits.softmax(-1), 3), logits.topk(3).indices
    assert_close(found.gather(1, places), logits.gather(1, places).softmax(-1))
    assert (found > 0).sum(1).tolist() == [3] * 5
    assert_close(top_k(logits.softmax(-1), 7), logits.softmax(-1))


def test_the_balance_is_1_where_experts_share_alike_and_their_number_where_one_has_all():
    """C-47: and by hand 3 (2/3 · 0.5 + 1/3 · 0.3) for three tokens; choices have no gradient."""
    one_hot = torch.eye(4).double()
    assert balance_of(one_hot, one_hot) == 1 and balance_of(one_hot[[2, 2, 2]], one_hot[[2, 2, 2]]) == 4
    p = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.4, 0.4]]).double()
    assert_close(balance_of(p, top_k(p, 1)), torch.tensor(3 * (2 / 3 * 0.5 + 1 / 3 * 0.3)).double())
    assert_close(balance_of(p, top_k(p, 3)), torch.tensor(1.0).double())


@pytest.mark.parametrize("name", ["lora_moe", "molora", "mola"])
def test_the_sparse_path_is_the_dense_one_with_a_mask(name):
    hyper = {"experts": 5, "top_k": 2} if name == "mola" else {"experts": 5}
    model, adapter, host = mixture(name, rank=3, **hyper)
    x = inputs("linear")
    assert_close(model(x), host.base(x) + loop(adapter, x, 2 if name == "mola" else 5))


def test_all_experts_chosen_is_the_dense_mixture_and_one_alone_is_a_lora():
    """MoLA of top_k = E is LoRAMoE; of one expert, LoRA."""
    found = []
    for name, hyper in {"mola": {"experts": 3, "top_k": 3}, "lora_moe": {"experts": 3}}.items():
        model, _, _ = mixture(name, rank=2, alpha=4.0, **hyper)
        found.append(model(inputs("linear")))
    assert_close(*found)
    model, adapter, host = mixture("mola", experts=1, top_k=1, rank=2, alpha=4.0)
    x = inputs("linear")
    assert_close(model(x), host.base(x) + 2 * x @ adapter.A_ERI[0].T @ adapter.B_EOR[0].T)


def test_equal_experts_make_the_router_irrelevant_and_their_order_does_not_matter():
    model, adapter, host = mixture(experts=4, rank=2)
    x = inputs("linear")
    before = model(x)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(p[[2, 0, 3, 1]])
    assert_close(model(x), before)
    with torch.no_grad():
        for p in (adapter.A_ERI, adapter.B_EOR):
            p.copy_(p[:1].expand_as(p))
    expected = host.base(x) + adapter.scale * x @ adapter.A_ERI[0].T @ adapter.B_EOR[0].T
    assert_close(model(x), expected)


def test_mov_with_equal_vectors_is_ia3_and_its_router_reads_what_is_scaled():
    model, adapter, host = mixture("mov", experts=3)
    x, l_ES = inputs("linear"), adapter.l_ES.detach().clone()
    y = host.base(x)
    weights = (y @ adapter.G_ES.T).softmax(-1)
    assert_close(model(x), y * torch.einsum("...e,es->...s", weights, l_ES))
    with torch.no_grad():
        adapter.l_ES.copy_(l_ES[:1].expand_as(l_ES))
    assert_close(model(x), l_ES[0] * y)
    down = nn.Sequential(OrderedDict(down_proj=nn.Linear(6, 4))).double()
    injection = inject(down, "mov", target_modules=["down_proj"], experts=3)
    perturb(injection)
    adapter, x = only(injection)[0], torch.randn(5, 6).double()
    gains = (x @ adapter.G_ES.T).softmax(-1) @ adapter.l_ES
    layer = down.down_proj.layer
    assert_close(down(x), (x * gains) @ layer.weight.T + layer.bias)
    with pytest.raises(ValueError, match=r"mov: feedforward: .*dwn"):
        inject(lone("linear"), "mov", target_modules="layer", feedforward=["dwn"])


def test_mola_gives_each_part_of_the_depth_its_own_experts():
    config = LlamaConfig(
        hidden_size=8, num_hidden_layers=8, num_attention_heads=2, intermediate_size=8, vocab_size=11
    )
    model = LlamaForCausalLM(config)
    injection = inject(model, "mola", target_modules=["q"], rank=2, layers="2-")
    assert [len(a.G_EI) for a in injection.adapters.values()] == [4, 4, 6, 6, 8, 8]
    assert injection.trainable() == (8 + 12 + 16) * (2 * 16 + 8)
    injection.remove()
    patterns = {"experts": {"layers.3": 3}}
    injection = inject(model, "mola", target_modules=["q"], rank=2, layers="2-4", patterns=patterns)
    assert [len(a.G_EI) for a in injection.adapters.values()] == [4, 3, 6]
    injection.remove()
    again = inject(model, "mola", target_modules=["q"], experts=5, rank=2, layers="0-1")
    assert [len(a.G_EI) for a in again.adapters.values()] == [5, 5]


def test_the_loss_of_balance_has_no_padding_and_reaches_every_router():
    model, _ = fresh("llama")
    model.train()
    injection = inject(model, "mola", target_modules=["q"], experts=4, rank=2, balance=0.5)
    given = batch("llama") | {"attention_mask": torch.ones(3, 6, dtype=torch.int64)}
    given["attention_mask"][0, 3:] = 0
    seen = {}
    for name, adapter in injection.adapters.items():
        adapter.imbalance = lambda p, w, name=name, own=adapter.imbalance: seen.setdefault(
            name, (p.detach(), w.detach(), own(p, w))
        )[-1]
    model(**given)
    expected = 0.0
    for p, w, found in seen.values():
        kept = given["attention_mask"].bool()
        share = (w[kept] > 0).float().mean(0) / 2
        own = 4 * (share * p[kept].mean(0)).sum()
        assert_close(found.detach(), own)
        expected += 0.5 * own
    assert_close(injection.hooks.regularizer().detach(), expected)
    injection.hooks.regularizer().backward()
    assert all(adapter.G_EI.grad.any() for adapter in injection.adapters.values())


def test_loramoe_s_constraint_is_of_each_sample_s_kind():
    """Two samples of two tokens, two experts, δ = 0.5: Z = Q times 1.5 or 0.5, by hand."""
    _, adapter, _ = mixture("lora_moe", experts=2, balance=1.0, delta=0.5)
    weights = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.4, 0.6], [0.6, 0.4]]]).double()
    Q = [1.6, 0.4, 1.0, 1.0]
    for tasks, Z in (
        (None, Q),
        ([1, 0], [1.6 * 1.5, 0.4 * 0.5, 1.0 * 0.5, 1.0 * 1.5]),
        ([0, 1], [1.6 * 0.5, 0.4 * 1.5, 1.0 * 1.5, 1.0 * 0.5]),
    ):
        adapter.counter.task_ids = None if tasks is None else torch.tensor(tasks)
        mean = sum(Z) / 4
        expected = sum((z - mean) ** 2 for z in Z) / 3 / mean**2
        assert float(adapter.imbalance(weights, weights)) == pytest.approx(expected)
    adapter.counter.task_ids = torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="task_ids are of 3 examples, and the pass has 2"):
        adapter.imbalance(weights, weights)


@pytest.mark.parametrize(
    "name, hyper, said",
    [
        ("mola", {"experts": 4, "top_k": 5}, "top_k must lie between 1 and the 4 experts.*got 5"),
        ("mola", {"balance": -1.0}, "balance must not be negative; got -1"),
        ("lora_moe", {"experts": 0}, "experts must be at least 1; got 0"),
        ("lora_moe", {"delta": 2.0}, r"delta must lie in \[0, 1\]; got 2"),
    ],
)
def test_what_no_mixture_can_be_is_refused(name, hyper, said):
    with pytest.raises(ValueError, match=f"{name}: {said}"):
        inject(lone("linear"), name, target_modules="layer", **hyper)


def test_routers_learn_at_a_rate_of_their_own():
    """Of every variant that has some: all of them, and nothing else."""
    routed = [name for name, cls in VARIANTS.items() if issubclass(cls.hooks, RouterRate)]
    assert {"am_lora", "cond_mixlora", "hydralora", "mixlora", "mov", "poly"} < {*routed}
    for name in routed:
        rank = {"rank": 2} if "rank" in hyperparameters(VARIANTS[name]) else {}
        injection = inject(fresh("llama")[0], name, router_lr_ratio=3.0, **rank)
        rates = {id(p): group["lr"] for group in injection.param_groups(lr=0.5) for p in group["params"]}
        for key, parameter in injection.named_parameters().items():
            router = key.rsplit(".", 1)[-1].split("_")[0] in ("G", "H", "J", "V", "Z")
            assert rates[id(parameter)] == (1.5 if router else 0.5), (name, key)
    with pytest.raises(ValueError, match="router_lr_ratio must be above 0; got 0"):
        inject(lone("linear"), "hydralora", target_modules="layer", router_lr_ratio=0.0)


def test_loads_and_entropies_are_means_over_tokens():
    record = RoutingRecord()
    record.add("m", torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    record.add("m", torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
    assert record.summary()["m"]["load"] == [0.5, 0.5]
    assert record.summary()["m"]["entropy"] == pytest.approx(math.log(2) / 2)
    assert ForwardCounter().routing is None


def test_an_evaluation_records_what_its_tokens_weighed_and_padding_is_none_of_them():
    model, _ = fresh("llama")
    injection = inject(model, "lora_moe", target_modules=["q"], experts=3, rank=2)
    perturb(injection)
    given = batch("llama") | {"attention_mask": torch.ones(3, 6, dtype=torch.int64)}
    given["attention_mask"][0, 3:] = 0
    seen = []
    (name, adapter), *_ = injection.adapters.items()
    adapter.note = lambda weights, own=adapter.note: (seen.append(weights), own(weights))
    with torch.no_grad(), injection.recorded_routing() as record:
        model(**given)
    kept = seen[0][given["attention_mask"].bool()].double()
    found = record.summary()
    assert found.keys() == injection.adapters.keys() and len(kept) == 15
    assert found[name]["load"] == pytest.approx(kept.mean(0).tolist())
    assert found[name]["entropy"] == pytest.approx(float(-(kept * kept.log()).sum(1).mean()))
    told = routing_means(found)
    assert told["routing_greatest_load"] == pytest.approx(sum(max(o["load"]) for o in found.values()) / 2)
    assert adapter.counter.routing is None and routing_means({}) == {}


def test_malora_s_experts_share_their_subspace_and_whole_ones_are_mola():
    """With D = I and S the identity, Aᵢ = Pᵢ."""
    model, adapter, host = mixture("malora", experts=3, rank=2, subspace=5, top_k=2)
    x = inputs("linear")
    assert_close(model(x), host.base(x) + loop(adapter, x, 2))
    assert torch.linalg.matrix_rank(adapter.pairs()[1].flatten(0, 1)) == 5
    with pytest.raises(ValueError, match="subspace must lie between 1 and 10, or be 0; got 11"):
        inject(lone("linear"), "malora", target_modules="layer", subspace=11)


def test_poly_is_peft_s_for_every_task_and_split():
    peft = pytest.importorskip("peft")
    config = peft.PolyConfig(r=3, n_tasks=3, n_skills=4, n_splits=2, target_modules=["layer"])
    ours, x = lone("linear"), inputs("linear")
    theirs = peft.get_peft_model(copy.deepcopy(ours), config).double().eval()
    hyper = {"rank": 3, "n_tasks": 3, "n_skills": 4, "n_splits": 2}
    injection = inject(ours, "poly", target_modules="layer", **hyper)
    perturb(injection)
    adapter, _ = only(injection)
    (layer,) = (m for m in theirs.modules() if hasattr(m, "poly_lora_A"))
    with torch.no_grad():
        layer.poly_router["default"].module_logits.copy_(adapter.Z_SCE.flatten(1))
        layer.poly_lora_A["default"].copy_(adapter.A_ERI.unflatten(2, (2, 7)).permute(2, 0, 3, 1))
        layer.poly_lora_B["default"].copy_(adapter.B_EOR.unflatten(1, (2, 5)).permute(1, 0, 3, 2))
    tasks = torch.tensor([2, 0, 1])
    assert_close(ours(x, task_ids=tasks), theirs.base_model(x, task_ids=tasks))
    with adapters_of(ours).tasks(tasks[:1]):  # of one example that stands for three rows
        assert_close(ours(x), theirs.base_model(x, task_ids=tasks[:1].expand(3)))
    ours(x)
    use = adapter.Z_SCE.sigmoid()
    assert_close(adapter.skills(2)[1], (use / use.sum(-1, keepdim=True)).mean(0))


def test_poly_draws_skills_in_training_steps_alone_and_each_time_anew():
    """Binary Concrete of temperature 1: σ(z + log u - log(1 - u)), over the sum."""
    model, adapter, _ = mixture("poly", rank=2, n_tasks=2)
    adapter.counter.tasks = torch.tensor([0, 1, 1])
    hooks, x = adapters_of(model)["default"].hooks, inputs("linear")
    plain = model(x)
    with hooks.forward_context(Progress(1, 2)):
        first, second = model(x), model(x)
        adapter.counter.counts = {"layer skills": 0}
        assert_close(model(x), first)
    assert not torch.allclose(first, plain) and not torch.allclose(first, second)
    assert_close(model(x), plain)
    u = torch.rand(3, 1, 4, generator=generator("skills", 0, "layer", 0), dtype=torch.float64)
    drawn = (adapter.Z_SCE[[0, 1, 1]] + (u / (1 - u)).log()).sigmoid()
    adapter.counter.counts, adapter.draws = {"layer skills": 0}, True
    assert_close(adapter.skills(3), drawn / drawn.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    "hyper, tasks, said",
    [
        (
            {"n_tasks": 2},
            None,
            "n_tasks=2, and the data do not say which one an example is of.*column `task`",
        ),
        ({"n_tasks": 2}, [0, 1, 2], r"tasks lie between 0 and 1; got \[0, 1, 2\]"),
        ({}, [0, 1, 0], r"tasks lie between 0 and 0; got \[0, 1\]"),
    ],
)
def test_a_task_that_poly_does_not_know_is_refused(hyper, tasks, said):
    model = lone("linear")
    injection = inject(model, "poly", target_modules="layer", rank=2, **hyper)
    ids = None if tasks is None else torch.tensor(tasks)
    with injection.hooks.forward_context(Progress(1, 2)), pytest.raises(ValueError, match=f"poly: {said}"):
        model(inputs("linear"), task_ids=ids) if ids is not None else model(inputs("linear"))


def test_each_example_has_the_factors_that_its_mean_input_chooses():
    """One example after the other, by hand; what is chosen counts 1, and the routers learn nonetheless."""
    model, adapter, host = mixture("cond_mixlora", experts=6, rank=2)
    x = inputs("linear")
    expected = []
    for own in x:
        mean = own.mean(0)
        rows = (adapter.G_EI @ mean).topk(2).indices.tolist()
        suggested = sum((adapter.H_REI[i] @ adapter.A_EI[row]).softmax(-1) for i, row in enumerate(rows))
        columns = ((adapter.J_EI @ mean).softmax(-1) + suggested.softmax(-1)).topk(2).indices.tolist()
        delta = sum(torch.outer(adapter.B_EO[c], adapter.A_EI[r]) for r, c in zip(rows, columns, strict=True))
        expected.append(host.base(own) + 32.0 / 2 * own @ delta.T)
    assert_close(model(x), torch.stack(expected))
    model(x).square().sum().backward()
    assert all(p.grad.any() for p in adapter.parameters())
    adapter.counter.begin(model, (), {"attention_mask": torch.tensor([[1, 1, 0, 0]] * 3)})
    logits = x @ adapter.G_EI.T
    assert_close(adapter.mean(logits), logits[:, :2].mean(1))


def test_all_factors_chosen_make_a_lora_up_to_their_order():
    """E = r: the same rows and columns whatever the router, paired as it orders them."""
    model, adapter, host = mixture("cond_mixlora", experts=2, rank=2, alpha=2.0)
    x = inputs("linear")
    with torch.no_grad():
        adapter.B_EO[1] = adapter.B_EO[0]
    assert_close(model(x), host.base(x) + x @ adapter.A_EI.T @ adapter.B_EO)
    with pytest.raises(ValueError, match="rank must lie between 1 and 2; got 3"):
        inject(lone("linear"), "cond_mixlora", target_modules="layer", experts=2, rank=3)


def test_a_column_of_tasks_reaches_the_adapters_and_not_the_model():
    """By `task_ids` of a batch, and around what calls the model itself; texts in that column are no tasks."""
    model, _ = fresh("llama")
    injection = inject(model, "poly", target_modules=["q"], n_tasks=2, rank=2)
    perturb(injection)
    given = batch("llama")
    one, two = (model(**given, task_ids=torch.full((3,), t)).logits for t in (0, 1))
    mixed = model(**given, task_ids=torch.tensor([0, 1, 0])).logits
    assert_close(mixed, torch.stack([one[0], two[1], one[2]]))
    assert not torch.allclose(one, two)
    assert _task_of({"task": 1}) == {"task_ids": 1} and _task_of({"task": "nli"}) == _task_of({}) == {}
    ids = {"input_ids": given["input_ids"][:2], "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    how = {"num_beams": 2, "max_new_tokens": 2, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with adapters_of(model).tasks(torch.tensor([1, 1])):
        found = model.generate(**ids, **how)
    with torch.no_grad():
        for adapter in injection.adapters.values():
            adapter.Z_SCE[0] = adapter.Z_SCE[1]
    assert torch.equal(found, model.generate(**ids, **how))
    injection.remove()
    assert not model._forward_pre_hooks


def test_mixlora_s_experts_are_whole_blocks_with_loras_of_their_own():
    """Each chosen expert's block, a token at a time by hand; of one expert, LoRA on all three matrices."""
    model, _ = fresh("llama")
    model.double()
    plain = copy.deepcopy(model.model.layers[0].mlp)
    hyper = {"target_modules": ["gate", "up", "down"], "layers": 0, "rank": 2, "experts": 4}
    injection = inject(model, "mixlora", **hyper)
    perturb(injection)
    mlp, own = model.model.layers[0].mlp, {n.rpartition(".")[2]: a for n, a in injection.adapters.items()}
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)).double()

    def expert(i, token):
        def layer(name, h):
            adapter = own[name]
            return getattr(plain, name)(h) + adapter.scale * adapter.B_EOR[i] @ (adapter.A_ERI[i] @ h)

        return layer("down_proj", plain.act_fn(layer("gate_proj", token)) * layer("up_proj", token))

    expected = []
    for token in x.flatten(0, 1):
        p = (own["up_proj"].G_EI @ token).softmax(-1)
        chosen = p.topk(2).indices.tolist()
        expected.append(sum(p[i] / p[chosen].sum() * expert(i, token) for i in chosen))
    found = mlp(x)
    assert_close(found, torch.stack(expected).view(2, 3, 16))
    assert_close(copy.deepcopy(model).model.layers[0].mlp(x), found)
    found.square().sum().backward()
    assert all(p.grad.any() for p in injection.parameters())
    with injection.disabled():
        assert torch.equal(mlp(x), plain(x))
    with pytest.raises(RuntimeError):
        mlp(x[..., :-1])
    assert_close(mlp(x), found)
    with pytest.raises(ValueError, match="up_proj was called outside of its feed-forward block"):
        mlp.up_proj(x)
    assert injection.trainable() == 4 * 2 * 3 * (16 + 24) + 4 * 16
    injection.remove()
    assert not mlp._forward_hooks and not mlp._forward_pre_hooks and torch.equal(mlp(x), plain(x))


def test_mixlora_of_one_expert_is_lora_and_its_balance_is_mixtral_s():
    found = []
    for name, more in {"mixlora": {"experts": 1, "top_k": 1}, "lora": {}}.items():
        model, _ = fresh("llama")
        injection = inject(model, name, target_modules=["q", "up", "down"], rank=2, alpha=4.0, **more)
        source = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for adapter in injection.adapters.values():
                for p in (adapter.A_ERI, adapter.B_EOR) if more else (adapter.A_RI, adapter.B_OR):
                    p.copy_(torch.randn(p.shape[-2:], generator=source))
        found.append(model(**batch("llama")).logits)
    assert_close(*found)
    model, _ = fresh("llama")
    injection = inject(model.train(), "mixlora", rank=2, experts=4, balance=0.5)
    with torch.no_grad():
        for adapter in injection.adapters.values():
            if adapter.G_EI is not None:
                adapter.G_EI.zero_()  # even probabilities: Mixtral's sum over slots is top_k
    model(**batch("llama"))
    assert float(injection.hooks.regularizer()) == pytest.approx(0.5 * 2)


def test_a_block_that_cannot_be_an_expert_is_refused_before_anything_is_changed():
    model, _ = fresh("bert")
    with pytest.raises(ValueError, match=r"mixlora cannot adapt .*intermediate.dense.* no module of its own"):
        inject(model, "mixlora", target_modules=["up", "down"])
    llama, _ = fresh("llama")
    with pytest.raises(ValueError, match=r"adapt model.layers.0.mlp.down_proj.* role up holds the router"):
        inject(llama, "mixlora", target_modules=["down"])
    for whole in (model, llama):
        assert not any("lora_zoo" in type(m).__module__ for m in whole.modules())
        assert all(p.requires_grad for p in whole.parameters())
