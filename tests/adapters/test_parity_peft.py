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
    "oft": (
        "oft",
        {"block_size": 2},
        functools.partial(peft.OFTConfig, oft_block_size=2, use_cayley_neumann=False),
    ),
    "oft by series": (
        "oft",
        {"block_size": 2, "num_cayley_neumann_terms": 6},
        functools.partial(peft.OFTConfig, oft_block_size=2, num_cayley_neumann_terms=6),
    ),
    "boft": (
        "boft",
        {"block_size": 2, "n_butterfly_factor": 1},
        functools.partial(peft.BOFTConfig, boft_block_size=2),
    ),
    "lokr": ("lokr", {"rank": 2, "alpha": 3.0}, functools.partial(peft.LoKrConfig, r=2, alpha=3)),
    "lokr, both in full": (
        "lokr",
        {"rank": 8, "alpha": 8.0},
        functools.partial(peft.LoKrConfig, r=8, alpha=8),
    ),
    "lokr, both thin": (
        "lokr",
        {"rank": 1, "alpha": 1.0, "decompose_both": True, "decompose_factor": 4},
        functools.partial(peft.LoKrConfig, r=1, alpha=1, decompose_both=True, decompose_factor=4),
    ),
    "randlora": (
        "randlora",
        {"rank": 4, "alpha": 6.0, "projection": "peft", "projection_prng_key": 7},
        functools.partial(peft.RandLoraConfig, r=4, randlora_alpha=6, projection_prng_key=7),
    ),
    "delora": (
        "delora",
        {"rank": 4, "delora_lambda": 3.0, "start": "zero"},
        functools.partial(peft.DeloraConfig, r=4, delora_lambda=3),
    ),
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
    "oft: q = 1 turns each pair of inputs by a quarter": (
        "oft",
        {"block_size": 2},
        [[1, 2, 3, 4]],
        {"Q_NE": [[1], [-1]]},
        [[-2, 1, 4, -3]],
    ),
    "boft: at its second level inputs 1 and 3, 2 and 4 are pairs; then the gain": (
        "boft",
        {"block_size": 2, "n_butterfly_factor": 2},
        [[1, 2, 3, 4]],
        {"A_MNBB": [[[[0, 0], [0, 0]]] * 2, [[[0, 1], [-1, 0]], [[0, 0], [0, 0]]]], "s_O1": [[10]]},
        [[-30, 20, 10, 40]],
    ),
    "lokr: entry of C times the larger matrix": (
        "lokr",
        {"rank": 1, "alpha": 2.0},
        [[0] * 4] * 4,
        {"C_LM": [[1, 2], [0, -1]], "D_KN": [[1, 3], [0, 5]]},
        [[2, 6, 4, 12], [0, 10, 0, 20], [0, 0, -2, -6], [0, 0, 0, -10]],
    ),
    "delora: b and a of any length, λ, and the norms of W's columns": (
        "delora",
        {"rank": 1, "start": "zero"},
        [[3, 0], [4, 1]],
        {"A_RI": [[0.6, 0.8]], "B_OR": [[0], [7]], "strength": [10]},
        [[3, 0], [34, 9]],
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
    "oft": ("oft", {"block_size": 2}, 10),
    "boft": ("boft", {}, 10),
    "lokr: of C's rank 2 and r": ("lokr", {"rank": 3}, 6),
    "delora": ("delora", {"rank": 3, "start": "zero"}, 3),
    "delora less its start": ("delora", {"rank": 3}, 6),
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
        ("oft", {"block_size": 5}, "block_size=5 must be 2 or more and divide its 14 inputs"),
        ("oft", {"block_size": 1}, "block_size=1 must be 2 or more"),
        ("oft", {"num_cayley_neumann_terms": 3}, r"must be 0 \(exact\), or 4 or more; got 3"),
        ("boft", {"block_size": 3}, "block_size=3 must be 2 or more and divide its 14 inputs"),
        (
            "boft",
            {"block_size": 2, "n_butterfly_factor": 2},
            "n_butterfly_factor must lie between 1 and 1 for blocks of 2; got 2",
        ),
        ("lokr", {"decompose_factor": 0}, "decompose_factor must be above 0, or -1; got 0"),
        ("lokr", {"rank": 11}, "rank must lie between 1 and the smaller side; got 11"),
        ("delora", {"rank": 11}, "rank must lie between 1 and the smaller side; got 11"),
        ("fourierft", {"n_frequency": 141}, "n_frequency must lie between 1 and its 140 entries; got 141"),
        ("fourierft", {"n_frequency": 0}, "n_frequency must lie between 1 and"),
    ],
)
def test_what_a_matrix_cannot_take_is_refused_by_name(name, hyper, said):
    with pytest.raises(ValueError, match=f"{name} cannot adapt layer.*{said}"):
        inject(lone("linear"), name, target_modules="layer", **hyper)


def test_a_butterfly_of_several_factors_is_the_product_of_peft_s_matrices():
    """PEFT multiplies more than one on a GPU alone, by permutations and Cayley maps that it has here, too."""
    adapter, _ = set_to(lone("linear", 6, 16), "boft", {}, block_size=2, n_butterfly_factor=3)
    randomise([adapter.A_MNBB, adapter.s_O1], 0.4)
    layer = quietly(peft.get_peft_model, lone("linear", 6, 16), peft.BOFTConfig(target_modules=["layer"]))
    layer, rotation_II = layer.base_model.model.layer, torch.eye(16, dtype=torch.float64)
    for level, A_NBB in enumerate(adapter.A_MNBB.detach()):
        P_II = layer.perm2mat(layer.block_butterfly_perm(16, 8 // 2**level, 1, 2)).double()
        rotation_II = P_II @ torch.block_diag(*layer.cayley_batch(A_NBB)) @ P_II.T @ rotation_II
    W_OI = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(adapter.weight(W_OI), adapter.s_O1 * (W_OI @ rotation_II.T))


@pytest.mark.parametrize("name", ["oft", "boft"])
def test_auto_takes_the_smallest_block_that_divides_and_all_factors_that_fit(name):
    adapter, _ = only(inject(lone("linear", 10, 96), name, target_modules="layer"))
    assert adapter.block_size == {"oft": 32, "boft": 4}[name]
    assert name == "oft" or adapter.n_butterfly_factor == 4
    narrow, _ = only(inject(lone("linear", 10, 26), name, target_modules="layer"))
    assert narrow.block_size == {"oft": 26, "boft": 13}[name]


@pytest.mark.parametrize("sides", [(10, 14), (14, 10)])
def test_randlora_is_a_sum_of_random_products_on_the_shorter_side(sides):
    """§3.2 with five bases of rank 2; the columns of the B's are numbered as PEFT pairs them."""
    adapter, W_OI = set_to(lone("linear", *sides), "randlora", {}, rank=2, alpha=3.0)
    randomise(adapter.parameters(), 0.4)
    A_RS, B_LRN = adapter.bases.A_RS.double(), adapter.bases.B_LNR.double().flatten(1).unflatten(1, (2, 5))
    terms = [
        B_LRN[:, :, n] @ torch.diag(adapter.lambda_RN[:, n]) @ A_RS @ torch.diag(adapter.gamma_NS[n])
        for n in range(5)
    ]
    expected_LS = 1.5 * sum(terms)
    assert_close(adapter.weight(W_OI) - W_OI, expected_LS if sides == (14, 10) else expected_LS.T)
    assert torch.linalg.matrix_rank(expected_LS.detach()) == 10
    assert A_RS.std() == pytest.approx(1, rel=0.3) and B_LRN.std() == pytest.approx(1, rel=0.1)


def test_randlora_refuses_a_budget_as_its_parameters_fall_with_the_rank():
    with pytest.raises(ValueError, match="randlora has fewer parameters the greater its rank: give rank="):
        inject(lone("linear"), "randlora", target_modules="layer", budget=100)


def test_delora_s_update_does_not_see_the_lengths_of_a_and_b():
    adapter, W_OI = adapted("delora", rank=3)
    before = adapter.weight(W_OI).detach()
    with torch.no_grad():
        adapter.A_RI.mul_(torch.tensor([[2.0], [0.3], [9.0]])), adapter.B_OR.mul_(5)
    assert_close(adapter.weight(W_OI), before)


def test_gains_of_boft_do_not_decay():
    injection = inject(lone("linear"), "boft", target_modules="layer")
    rotations, gains = injection.param_groups(lr=0.1, weight_decay=0.5)
    assert (rotations["weight_decay"], gains["weight_decay"]) == (0.5, 0.0)
    assert [tuple(p.shape) for p in gains["params"]] == [(10, 1)]


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
