"""A preview says what an injection then does; a budget finds the greatest rank that fits."""

import copy
import math

import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import settings as drive
from hypothesis import strategies as st
from safetensors.torch import save

from lora_zoo.conformance.cases import MATRIX, fitting, fresh, on_models, settings
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import inject
from lora_zoo.injection.preview import preview
from lora_zoo.injection.targets import as_list

WHERE = {
    "llama": {"target_modules": ["q", "v"], "layers": "1-"},
    "bert": {
        "target_modules": "all-linear",
        "modules_to_save": ["classifier"],
        "exclude_modules": ["pooler"],
    },
    "gpt2": {"target_modules": ["q", "v", "up", "embed"]},
}


def asked_of(name, kind):
    """What to adapt in the model of this `kind`, without what the class would refuse."""
    targets = as_list(WHERE[kind]["target_modules"])
    model = fresh(kind)[0]
    fit = fitting(name, model, targets) or fitting(name, model, ["q", "v"]) or targets
    return {**WHERE[kind], "target_modules": fit, **settings(name, 2)}


def ranked(name):
    return "rank" in settings(name)


@pytest.mark.filterwarnings("ignore:.*tied.*")
@pytest.mark.parametrize(("name", "kind"), on_models(WHERE))
def test_a_preview_is_what_the_injection_then_does(name, kind):
    model, asked = fresh(kind)[0], asked_of(name, kind)
    before, structure = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    seen = preview(model, name, **asked)
    assert [type(m) for m in model.modules()] == structure and all(
        p.requires_grad for p in model.parameters()
    )
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    injection = inject(model, name, **asked)
    assert [row.name for row in seen.rows] == list(injection.matrices)
    assert seen.trainable == injection.trainable() and seen.total == injection.total()
    assert seen.fully_trained == {n: injection.trained[n].numel() for n in injection.fully_trained}
    for row in seen.rows:
        own = [p for n, p in injection.named_parameters().items() if n.startswith(f"{row.name}.")]
        assert row.trainable == sum(p.numel() for p in own)
        assert row.shape == injection.matrices[row.name].shape
    own = {n: t.contiguous() for n, t in injection.state_dict().items()}
    header = len(save({n: t[:0] for n, t in own.items()}))
    assert 0 <= len(save(own)) - seen.bytes <= 2 * header


@pytest.mark.parametrize(("name", "kind"), [case for case in on_models(WHERE) if case[0] in MATRIX])
def test_the_configuration_is_enough(name, kind):
    """On the meta device no number is there, and the preview is the same."""
    real, asked = fresh(kind)[0], asked_of(name, kind)
    with torch.device("meta"):
        outline = type(real)(real.config)
    assert preview(outline, name, **asked) == preview(real, name, **asked)


def test_a_seventy_billion_model_is_previewed():
    config = tf.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(config)
    seen = preview(model, "lora", rank=16, target_modules=["q", "v"])
    assert seen.total - seen.trainable == 70_553_706_496  # Llama 3 70B
    assert seen.trainable == 80 * 16 * (8192 + 8192 + 8192 + 1024)
    assert seen.bytes == 4 * seen.trainable and len(seen.rows) == 160
    assert seen.idle == {"embed": 1, "k": 80, "o": 80, "gate": 80, "up": 80, "down": 80, "head": 1}


def test_what_matches_nothing_is_told_and_the_rest_is_shown():
    seen = preview(fresh("llama")[0], "lora", rank=2, target_modules=["q", "vv", "k_porj"])
    assert {row.role for row in seen.rows} == {"q"}
    assert [sentence for sentence in seen.unmatched if "'vv'" in sentence and "'v'" in sentence]
    assert [sentence for sentence in seen.unmatched if "'k_porj'" in sentence and "'k_proj'" in sentence]


def test_patterns_and_slices_are_shown():
    model = fresh("gpt2")[0]
    seen = preview(
        model, "lora", target_modules=["q", "up"], rank=4, rank_pattern={"up": 2}, alpha_pattern={"q": 1.0}
    )
    first, second = seen.rows[:2]
    assert (first.role, first.part, first.rank, first.alpha, first.shape) == ("q", "q", 4, 1.0, (16, 16))
    assert (second.role, second.part, second.rank, second.alpha, second.shape) == ("up", "", 2, 2.0, (64, 16))
    assert seen.idle["k"] == 2 and seen.idle["v"] == 2


@drive(max_examples=25, deadline=None, derandomize=True)
@given(name=st.sampled_from([n for n in MATRIX if ranked(n)]), budget=st.integers(700, 5000))
def test_a_budget_is_met_as_closely_as_ranks_allow(name, budget):
    """The size fits, and the next one does not: it is too much or more than a matrix takes."""
    key, targets = VARIANTS[name].sized_by, ["q", "v", "up"]

    def sized(**how):
        return inject(fresh("llama")[0], name, target_modules=targets, **how)

    try:
        injection = sized(budget=budget)
    except ValueError as refusal:
        if "has fewer parameters the greater" in str(refusal):
            assert sized(**{key: 2}).trainable() < sized(**{key: 1}).trainable()
            return
        assert f"budget={budget}: {name} at {key} 1 has" in str(refusal)
        assert sized(**{key: 1}).trainable() > budget
        return
    assert injection.trainable() <= budget
    try:
        larger = sized(**{key: injection.hyper[key] + 1})
    except ValueError:
        return
    assert larger.trainable() > budget


@pytest.mark.parametrize(
    "said, number",
    [("700", 700), ("0.7k", 700), (700, 700), ("7e2", 700), ("0.0007M", 700), ("0.7K", 700)],
)
def test_a_budget_is_said_in_many_ways(said, number):
    injection = inject(fresh("llama")[0], "lora", target_modules=["q", "v"], budget=said)
    assert injection.trainable() <= number < injection.trainable() * (1 + 1 / injection.hyper["rank"])


def test_places_with_a_rank_of_their_own_keep_it_within_a_budget():
    injection = inject(
        fresh("llama")[0], "lora", target_modules=["q", "v"], budget=400, rank_pattern={"q": 1}
    )
    ranks = {place.role: injection.adapters[name].rank for name, place in injection.matrices.items()}
    assert ranks["q"] == 1 and injection.trainable() <= 400
    assert ranks["v"] == math.floor((400 - 2 * 32) / (2 * (16 + 8)))  # two layers; v is 8 x 16


def test_a_budget_that_small_matrices_cannot_use_is_warned_of():
    with pytest.warns(UserWarning, match="rank 8 at most"):
        assert inject(fresh("llama")[0], "lora", target_modules=["q", "v"], budget="1M").hyper["rank"] == 8


@pytest.mark.parametrize("name", [n for n in MATRIX if ranked(n)])
def test_a_rank_is_the_largest_that_a_matrix_takes(name):
    cls = VARIANTS[name]
    model = fresh("llama")[0]
    most = cls.largest_rank((16, 16), inject(model, name, target_modules=["q"]).hyper)
    if most is not None:
        inject(fresh("llama")[0], name, target_modules=["q"], rank=most)
        with pytest.raises(ValueError, match=r"rank|init_r"):
            inject(fresh("llama")[0], name, target_modules=["q"], rank=most + 1)
