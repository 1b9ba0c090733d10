"""Members that PEFT has under the same names: outputs, gradients, ten steps, and files both ways.

Beside each a case whose numbers come from its equation, the rank of ΔW, and the setting where it is another.
Shapes: O out, I in, R rank; layers of one matrix in double precision unless PEFT is asked.
"""

import copy
import functools
import math

import peft
import pytest
import torch
from torch.testing import assert_close

from lora_zoo.conformance.cases import batch, fresh, logits, lone, only, randomise
from lora_zoo.formats.native import load_adapter
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.inject import inject
from tests.adapters.test_parity import TOLERANCE, Twins, measure
from tests.adapters.test_parity_wider import adapted
from tests.adapters.test_peft_format import MODULES, in_peft, quietly

# Case: our variant and its settings; PEFT's configuration of the same.
CASES = {
    "hira": ("hira", {"rank": 4}, functools.partial(peft.HiraConfig, r=4)),
    "fourierft": (
        "fourierft",
        {"n_frequency": 20, "scaling": 60.0, "random_loc_seed": 5},
        functools.partial(peft.FourierFTConfig, n_frequency=20, scaling=60.0, random_loc_seed=5),
    ),
    "miss": ("miss", {"rank": 4}, functools.partial(peft.MissConfig, r=4)),
    "miss, mini_r": (
        "miss",
        {"rank": 4, "mini_r": 2},
        functools.partial(peft.MissConfig, r=4, init_weights="mini", mini_r=2),
    ),
    "bone": ("bone", {"block_size": 2}, functools.partial(peft.MissConfig, r=2, init_weights="bat")),
}
every_case = pytest.mark.parametrize("case", CASES)


class PeftTwins(Twins):
    """Twins whose tensors are found by the names of the variant's own format."""

    def pairs(self, frozen=False):
        names = self.injection.variant.peft.tensor_names
        found = [
            (tensor, held(self.layers[layer], names[name]))
            for layer, adapter in self.injection.adapters.items()
            for name, tensor in adapter.state_dict(keep_vars=True).items()
        ]
        return [(ours, theirs) for ours, theirs in found if frozen or ours.requires_grad]


def held(layer, name):
    """The tensor that PEFT's files call `name` in `layer`."""
    store, _, rest = name.partition(".")
    tensor = getattr(layer, store)["default"]
    return getattr(tensor, rest) if rest else tensor


@every_case
def test_outputs_gradients_and_ten_steps_agree_with_peft(case):
    name, hyper, config = CASES[case]
    distance = measure(PeftTwins(name, config, **hyper))
    assert max(distance.outputs, distance.gradients, distance.ten_steps) < TOLERANCE


@every_case
def test_what_peft_saved_is_read_and_written_again(tmp_path, case):
    """On Llama's square and narrow projections: PEFT's function here, and again in PEFT from our file."""
    name, hyper, config = CASES[case]
    base = fresh("llama")[0]
    theirs = quietly(peft.get_peft_model, copy.deepcopy(base), config(**MODULES["llama"])).eval()
    randomise([p for p in theirs.parameters() if p.requires_grad], 0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, expected = copy.deepcopy(base), logits(theirs, "llama")
    injection = load_adapter(ours, tmp_path / "theirs")
    assert injection.variant.name == name and {k: injection.hyper[k] for k in hyper} == hyper
    assert_close(logits(ours, "llama"), expected, rtol=0, atol=TOLERANCE)
    assert (logits(base, "llama") - expected).abs().max() > 1e-3
    save_peft(injection, tmp_path / "ours")
    assert_close(logits(in_peft(base, tmp_path / "ours"), "llama"), expected, rtol=0, atol=TOLERANCE)


# --- from the equations -------------------------------------------------------------------------------------

# Case: variant, settings, W, the adapter's tensors, and W' by hand.
KNOWN = {
    "hira: 1 + B A entry by entry": (
        "hira",
        {"rank": 1},
        [[1, 2], [3, 4]],
        {"A_RI": [[1, 1]], "B_OR": [[1], [2]]},
        [[2, 4], [9, 12]],
    ),
    "miss: input i takes row i mod r of D": (
        "miss",
        {"rank": 2},
        [[0, 0, 10], [0, 0, 20]],
        {"D_RM": [[1, 2], [3, 4]]},
        [[1, 3, 11], [2, 4, 22]],
    ),
    "miss with one column for all outputs": (
        "miss",
        {"rank": 2, "mini_r": 1},
        [[0, 0, 10], [0, 0, 20]],
        {"D_RM": [[1], [3]]},
        [[1, 3, 11], [1, 3, 21]],
    ),
    "bone of blocks of one: w + w d + d": (
        "bone",
        {"block_size": 1},
        [[1, 2], [3, 4]],
        {"D_KBB": [[[2]], [[3]]]},
        [[5, 8], [15, 19]],
    ),
}


def set_to(model, name, tensors, **hyper):
    """(adapter, W) of a plain `lone` model whose adapter holds these numbers."""
    injection = inject(model, name, target_modules="layer", **hyper)
    adapter, host = only(injection)
    with torch.no_grad():
        for key, values in tensors.items():
            adapter.get_parameter(key).copy_(torch.as_tensor(values, dtype=torch.float64))
    return adapter, host.matrix()


@pytest.mark.parametrize("case", KNOWN)
def test_the_weight_is_the_one_that_was_reckoned_by_hand(case):
    name, hyper, W, tensors, expected = KNOWN[case]
    model = lone("linear", len(W), len(W[0]))
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor(W, dtype=torch.float64))
    adapter, W_OI = set_to(model, name, tensors, **hyper)
    assert_close(adapter.weight(W_OI), torch.tensor(expected, dtype=torch.float64))


# Case: variant, settings, the rank that ΔW of a matrix (10, 14) of full rank reaches and never exceeds.
RANKS = {
    "hira": ("hira", {"rank": 2}, 10),
    "miss": ("miss", {"rank": 4}, 4),
    "bone": ("bone", {}, 10),
    "fourierft, one wave is two products": ("fourierft", {"n_frequency": 1, "random_loc_seed": 2}, 2),
    "fourierft": ("fourierft", {"n_frequency": 3, "random_loc_seed": 2}, 6),
}


@pytest.mark.parametrize("case", RANKS)
def test_the_rank_of_the_update_is_the_stated_one(case):
    name, hyper, rank = RANKS[case]
    adapter, W_OI = adapted(name, **hyper)
    assert torch.linalg.matrix_rank((adapter.weight(W_OI) - W_OI).detach()) == rank


def test_hira_s_rank_is_at_most_w_s_times_r_and_on_ones_it_is_lora():
    adapter, W_OI = adapted("hira", rank=2, alpha=3.0)
    thin_OI = torch.outer(W_OI[:, 0], W_OI[0])
    assert torch.linalg.matrix_rank((adapter.weight(thin_OI) - thin_OI).detach()) == 2
    one_OI = torch.ones_like(W_OI)
    assert_close(adapter.weight(one_OI) - one_OI, 1.5 * adapter.B_OR @ adapter.A_RI)


def test_a_coefficient_of_fourierft_is_one_cosine_over_the_matrix():
    """α / (O I) c cos(2π (u j / O + v k / I)) at the place (u, v)."""
    adapter, W_OI = adapted("fourierft", n_frequency=1, scaling=7.0)
    u, v = divmod(int(adapter.places_N[0]), 14)
    phase_OI = u * torch.arange(10.0).double()[:, None] / 10 + v * torch.arange(14.0).double() / 14
    expected = 7 / 140 * adapter.c_N.item() * torch.cos(2 * math.pi * phase_OI)
    assert_close(adapter.weight(W_OI) - W_OI, expected)


@pytest.mark.parametrize(
    "name, hyper, said",
    [
        ("miss", {"rank": 15}, "rank must lie between 1 and 14; got 15"),
        ("miss", {"mini_r": 4}, "mini_r must divide its 10 outputs, or be 0; got 4"),
        ("miss", {"mini_r": -5}, "mini_r must divide its 10 outputs"),
        ("bone", {"block_size": 5}, "block_size=5 must divide both sides"),
        ("bone", {"block_size": 0}, "block_size=0 must divide both sides"),
        ("fourierft", {"n_frequency": 141}, "n_frequency must lie between 1 and its 140 entries; got 141"),
        ("fourierft", {"n_frequency": 0}, "n_frequency must lie between 1 and"),
    ],
)
def test_what_a_matrix_cannot_take_is_refused_by_name(name, hyper, said):
    with pytest.raises(ValueError, match=f"{name} cannot adapt layer.*{said}"):
        inject(lone("linear"), name, target_modules="layer", **hyper)


# --- LN-tuning ----------------------------------------------------------------------------------------------

NORMS = {
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "bert": ["LayerNorm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
}


@pytest.mark.parametrize("kind", NORMS)
def test_ln_tuning_is_peft_s_in_outputs_gradients_and_files(tmp_path, kind):
    base, config = fresh(kind)[0].double(), peft.LNTuningConfig(target_modules=NORMS[kind])
    theirs = quietly(peft.get_peft_model, copy.deepcopy(base), config).eval()
    trained = [p for p in theirs.parameters() if p.requires_grad]
    randomise(trained, 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = copy.deepcopy(base)
    injection = load_adapter(ours, tmp_path / "theirs")
    assert injection.variant.name == "ln_tuning"
    expected = inject(copy.deepcopy(base), "ln_tuning")
    assert set(injection.fully_trained) == set(expected.fully_trained)
    assert expected.trainable() == sum(p.numel() for p in trained)
    assert_close(logits(ours, kind), logits(theirs, kind), rtol=0, atol=1e-6)  # files are float32
    assert (logits(base, kind) - logits(ours, kind)).abs().max() > 1e-3
    with torch.no_grad():
        for name, p in injection.trained.items():
            layer, _, tensor = name.rpartition(".")
            p.copy_(getattr(theirs.base_model.model.get_submodule(layer).ln_tuning_layers["default"], tensor))
    for model in (ours, theirs):
        model(**batch(kind)).loss.backward()
    for name, p in injection.trained.items():
        layer, _, tensor = name.rpartition(".")
        copied = theirs.base_model.model.get_submodule(layer).ln_tuning_layers["default"]
        assert_close(p.grad, getattr(copied, tensor).grad)
    save_peft(injection, tmp_path / "ours")
    assert_close(logits(in_peft(base, tmp_path / "ours"), kind), logits(ours, kind), rtol=0, atol=1e-6)


def test_ln_tuning_keeps_modules_to_save_and_refuses_a_model_without_norms():
    model = fresh("bert")[0]
    injection = inject(model, "ln_tuning", modules_to_save=["classifier"])
    assert {"classifier.weight", "bert.embeddings.LayerNorm.bias"} <= set(injection.fully_trained)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "query" in n)
    with pytest.raises(ValueError, match="no layer norm with a gain or a bias"):
        inject(lone("linear"), "ln_tuning")
