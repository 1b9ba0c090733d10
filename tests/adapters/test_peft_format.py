"""Exchange with PEFT, both ways; `python tests/adapters/test_peft_format.py` prints the table of differences.

What we write is loaded by PEFT itself, what PEFT wrote is loaded here, with nothing left at its start. A
variant is written here because it exists; what PEFT has is listed in `THEIRS`.
"""

import copy
import json
import tempfile
import warnings
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from lora_zoo.conformance.cases import (
    POINTWISE,
    batch,
    firsts,
    fresh,
    logits,
    perturb,
    randomise,
    representatives,
    settings,
    train,
    with_turns,
)
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.peft.forms import Unfit
from lora_zoo.formats.peft.write import CONFIG, WEIGHTS, save_peft
from lora_zoo.injection.inject import inject
from lora_zoo.injection.plan import complete_hyperparameters
from lora_zoo.variants.low_rank import Additive
from tests.adapters.test_parity_hosts import GPT_OSS, LLAMA_4, MIXTRAL, evaluated

LIMIT = 1e-5
WAYS = {
    "llama": {"target_modules": ["q", "v", "up"]},
    "bert": {"target_modules": ["q", "v"], "modules_to_save": ["classifier"]},
    "gpt2": {"target_modules": ["q", "v"]},
    "gpt2 c_attn": {"target_modules": ["c_attn", "mlp.c_fc"]},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def kind_of(way):
    return way.split()[0]


def bare(way, dtype=torch.float32):
    return fresh(kind_of(way))[0].to(dtype)


def adapted(way, name, dtype=torch.float32, size=0.3, **more):
    """The plain model, and one with a trained and perturbed adapter."""
    base = bare(way, dtype)
    model = copy.deepcopy(base)
    patterns = {key: more.pop(key) for key in ("rank_pattern", "alpha_pattern") if key in more}
    injection = inject(model, name, **WAYS[way], **patterns, **settings(name, 4, **more))
    train(injection, lambda: model(**batch(kind_of(way))).loss, steps=4)
    perturb(injection, size)
    return base, model, injection


def quietly(call, *args, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **more)


def in_peft(base, folder):
    return quietly(peft.PeftModel.from_pretrained, copy.deepcopy(base), folder).eval()


def contents(folder):
    return [(Path(folder) / name).read_bytes() for name in (CONFIG, WEIGHTS)]


def written(way, name, folder, dtype=torch.float32, **more):
    """The largest |Δlogit| of PEFT, and of ours read again, and of the adapter itself, to what we wrote."""
    base, model, injection = adapted(way, name, dtype, **more)
    save_peft(injection, folder)
    kind, back = kind_of(way), copy.deepcopy(base)
    ours = logits(model, kind).float()
    theirs = logits(in_peft(base, folder), kind).float()
    load_adapter(back, folder)
    again = logits(back, kind).float()
    plain = logits(base, kind).float()
    return [float((ours - other).abs().max()) for other in (theirs, again, plain)]


# --- from here to PEFT ------------------------------------------------------------------------------------


ADDING = [name for name in POINTWISE if VARIANTS[name].adds_bias]
BIASED_PARTS = [("gpt2", name) for name in POINTWISE if VARIANTS[name].changes_bias]
"""Parts of a layer with a bias: PEFT has LoRA alone for them, which holds none of what moves a bias."""
BIASED = list(dict.fromkeys([*BIASED_PARTS, *((way, name) for way in WAYS for name in ADDING)]))


@pytest.mark.parametrize(("way", "name"), BIASED)
def test_biases_that_lora_cannot_hold_are_refused(tmp_path, way, name):
    with pytest.raises(ValueError, match=r"which is no LoRA|which LoRA cannot hold"):
        written(way, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def written_if_it_can_be(way, name, folder, dtype=torch.float32):
    """As `written`; None where PEFT's form lacks such an adapter, and LoRA as well for its full rank."""
    try:
        return written(way, name, folder, dtype)
    except ValueError as refusal:
        assert "which is no LoRA" in str(refusal)
    _, _, injection = adapted(way, name, dtype)
    if injection.variant.peft:
        with pytest.raises(Unfit):
            injection.variant.peft.to_peft(injection)
    assert any(torch.linalg.matrix_rank(dW_OI) == min(dW_OI.shape) for _, _, dW_OI in injection)
    return None


FORMS = {*firsts(lambda cls: type(cls.peft).__name__), *representatives()}


@pytest.mark.parametrize(  # of variants with one form all bases for the first
    ("way", "name"),
    [
        (w, n)
        for number, n in enumerate(POINTWISE)
        for w in (WAYS if n in FORMS and VARIANTS[n].peft else [[*WAYS][number % len(WAYS)]])
        if (w, n) not in BIASED
    ],
)
def test_peft_computes_what_we_wrote(tmp_path, way, name):
    if not (differences := written_if_it_can_be(way, name, tmp_path)):
        return
    theirs, again, change = differences
    assert change > 1e-2
    assert theirs <= LIMIT
    assert again <= LIMIT


@pytest.mark.parametrize("name", [name for name in POINTWISE if name in FORMS and name not in ADDING])
def test_a_bfloat16_base_gets_float32_tensors_and_the_same_logits_to_its_rounding(tmp_path, name):
    if not (differences := written_if_it_can_be("llama", name, tmp_path, torch.bfloat16)):
        return
    theirs, again, change = differences
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {torch.float32}
    assert theirs <= change / 10 and theirs < 0.05
    assert again <= change / 10 and again < 0.05


PATTERNS = {"rank_pattern": {"v": 2, "layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"up": 5.0, "v": 7.5}}


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "pissa", "milora", "adalora"])
def test_ranks_and_alphas_of_their_own_arrive(tmp_path, name):
    theirs, again, change = written("llama", name, tmp_path, **PATTERNS)
    assert max(theirs, again) <= LIMIT < 1e-2 < change
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["peft_type"] == "LORA" and len(set(config["rank_pattern"].values())) >= 1
    parts = {"rank_pattern": {"v": 2}, "alpha_pattern": {"q": 5.0, "v": 7.5}}
    theirs, again, change = written("gpt2", name, tmp_path / "parts", **parts)
    assert max(theirs, again) <= LIMIT < 1e-2 < change


@pytest.mark.parametrize("init", ["symmetric", "pissa", "milora", "olora", "pissa_niter_2"])
@pytest.mark.parametrize("name", ["lora", "rslora", "dora"])
def test_a_residual_start_is_lora_of_twice_the_rank_on_the_untouched_base(tmp_path, name, init):
    theirs, again, change = written("gpt2", name, tmp_path, init=init)
    assert max(theirs, again) <= LIMIT < 1e-2 < change
    theirs, again, change = written("llama", name, tmp_path, init=init)
    assert max(theirs, again) <= LIMIT < 1e-2 < change
    assert json.loads((tmp_path / CONFIG).read_text())["r"] == 8


@pytest.mark.parametrize(
    ("name", "form"),
    with_turns([(n,) for n in POINTWISE if issubclass(VARIANTS[n], Additive)], ["peft", "lora"]),
)
def test_plain_lora_says_the_same(tmp_path, name, form):
    base, model, injection = adapted("gpt2", name)
    save_peft(injection, tmp_path, form=form)
    assert (logits(model, "gpt2") - logits(in_peft(base, tmp_path), "gpt2")).abs().max() <= LIMIT


def test_a_head_alone_is_modules_to_save_and_a_whole_model_no_adapter(tmp_path):
    base, model, injection = adapted("bert", "linear_probe", size=0.3)
    save_peft(injection, tmp_path)
    assert (logits(model, "bert") - logits(in_peft(base, tmp_path), "bert")).abs().max() <= LIMIT
    back = copy.deepcopy(base)
    assert load_adapter(back, tmp_path).variant.name == "linear_probe"
    assert torch.equal(logits(back, "bert"), logits(model, "bert"))
    for name, said in {"full": "lora_zoo.merge", "zero_shot": "trains nothing"}.items():
        with pytest.raises(ValueError, match=said):
            save_peft(inject(bare("bert"), name), tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_the_task_s_heads_go_into_the_file(tmp_path):
    base, model, injection = adapted("bert", "lora")
    save_peft(injection, tmp_path, task_type="SEQ_CLS", base="a/model")
    theirs = in_peft(base, tmp_path)
    assert type(theirs).__name__ == "PeftModelForSequenceClassification"
    assert (logits(model, "bert") - logits(theirs, "bert")).abs().max() <= LIMIT
    injection = inject(copy.deepcopy(base), "lora", target_modules=["q"], rank=2)
    perturb(injection)
    save_peft(injection, tmp_path, task_type="SEQ_CLS")
    assert (logits(injection.model, "bert") - logits(in_peft(base, tmp_path), "bert")).abs().max() <= LIMIT


def test_one_of_several_adapters_is_written_merged_or_not_active_or_not(tmp_path):
    _, model, injection = adapted("bert", "lora")
    save_peft(injection, tmp_path / "alone")
    other = inject(
        model, "rslora", name="other", target_modules=["q"], modules_to_save=["classifier"], rank=2
    )
    perturb(other)
    save_peft(injection, tmp_path / "idle")
    injection.activate()
    injection.merge()
    save_peft(injection, tmp_path / "merged")
    injection.unmerge()
    assert contents(tmp_path / "alone") == contents(tmp_path / "idle") == contents(tmp_path / "merged")
    before = logits(bare("bert"), "bert")
    assert not torch.equal(logits(model, "bert"), before)


def test_a_dense_change_needs_a_rank_and_its_error_is_told(tmp_path):
    _, _, injection = adapted("llama", "dora")
    with pytest.raises(ValueError, match=r"dora changes .*q_proj.* full rank .*lora_zoo\.merge"):
        save_peft(injection, tmp_path, form="lora")
    made = save_peft(injection, tmp_path, rank=3)
    assert made.config["r"] == 3 and made.config["peft_type"] == "LORA"
    for name, W_OI, dW_OI in injection:
        stored = load_file(tmp_path / WEIGHTS)
        A, B = (stored[f"base_model.model.{name}.lora_{f}.weight"] for f in "AB")
        scale = made.config["lora_alpha"] / 3
        error = (dW_OI - scale * B @ A).norm() / dW_OI.norm()
        assert error == pytest.approx(made.errors[name], rel=1e-3)
        best = torch.linalg.svdvals(dW_OI)
        assert error == pytest.approx(float(best[3:].norm() / best.norm()), rel=1e-3)
        assert W_OI.shape == dW_OI.shape


# --- from PEFT to here ------------------------------------------------------------------------------------

LORA = {"r": 4, "lora_alpha": 6}
THEIRS = {
    "LoRA": peft.LoraConfig(**LORA),
    "rsLoRA": peft.LoraConfig(**LORA, use_rslora=True),
    "DoRA": peft.LoraConfig(**LORA, use_dora=True),
    "rsLoRA and DoRA": peft.LoraConfig(**LORA, use_dora=True, use_rslora=True),
    "Gaussian start": peft.LoraConfig(**LORA, init_lora_weights="gaussian"),
    "PiSSA": peft.LoraConfig(**LORA, init_lora_weights="pissa"),
    "PiSSA, rsLoRA": peft.LoraConfig(**LORA, init_lora_weights="pissa", use_rslora=True),
    "PiSSA, DoRA": peft.LoraConfig(**LORA, init_lora_weights="pissa", use_dora=True),
    "AdaLoRA": peft.AdaLoraConfig(init_r=6, target_r=3, lora_alpha=9, total_step=12, tinit=1, tfinal=2),
    "VeRA": peft.VeraConfig(r=16, projection_prng_key=5),
    "VeRA from its seed": peft.VeraConfig(r=16, projection_prng_key=7, save_projection=False),
    "(IA)³": peft.IA3Config(feedforward_modules=r".*(v_proj|value|c_fc)"),
    "rank above the layer's": peft.LoraConfig(r=20, lora_alpha=6),
    "fewer layers": peft.LoraConfig(**LORA, layers_to_transform=[1]),
}
NOT_CONV1D = {
    "OLoRA": peft.LoraConfig(**LORA, init_lora_weights="olora"),
    "patterns": peft.LoraConfig(
        **LORA,
        rank_pattern={"v_proj|value": 2, r"^model\.layers\.1\.self_attn\.q_proj": 7},
        alpha_pattern={"q_proj|query": 11, "value": 3},
    ),
}
MODULES = {
    "llama": {"target_modules": ["q_proj", "v_proj"]},
    "bert": {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]},
    "gpt2": {"target_modules": ["c_attn", "c_fc"]},
}
CASES = {(kind, case) for kind in MODULES for case in THEIRS} | {
    (k, c) for k in MODULES if k != "gpt2" for c in NOT_CONV1D
}


def prune(model, config):
    """Other triplets in each layer, instead of whole layers as in so short a run."""
    assert config.rank_pattern is not None
    for number, name in enumerate(sorted(config.rank_pattern)):
        mask = [bool(bit) for bit in ([1, 0, 1, 1, 0, 0] * 2)[number % 6 :][:6]]
        config.rank_pattern[name] = mask
        E = model.get_parameter(f"base_model.model.{name}")
        randomise([E], 0.5)
        E.data[~torch.tensor(mask)] = 0


def saved_by_peft(kind, case, folder, dtype=torch.float32):
    """The plain base, and what PEFT loads of a trained and perturbed model that it saved to `folder`."""
    base = bare(kind, dtype)
    config = copy.deepcopy((THEIRS | NOT_CONV1D)[case])
    for key, value in MODULES[kind].items():
        setattr(config, key, list(value))
    model = quietly(peft.get_peft_model, copy.deepcopy(base), config)
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=1e-2)
    for step in range(12):
        optimizer.zero_grad()
        quietly(model, **batch(kind)).loss.backward()
        optimizer.step()
        if config.peft_type == "ADALORA":
            model.base_model.update_and_allocate(step)
    if config.peft_type != "ADALORA":
        randomise(own, 0.2)
    else:
        prune(model, config)
    quietly(model.eval().save_pretrained, folder)
    return base, in_peft(base, folder)


def read(kind, case, folder, dtype=torch.float32):
    """The largest |Δlogit| of the adapter read here, and of PEFT's adapter to the plain model."""
    base, theirs = saved_by_peft(kind, case, folder, dtype)
    ours = copy.deepcopy(base)
    quietly(load_adapter, ours, folder)
    expected = logits(theirs, kind).float()
    return [float((expected - logits(m, kind).float()).abs().max()) for m in (ours, base)]


@pytest.mark.parametrize("kind, case", sorted(CASES))
def test_we_compute_what_peft_saved(tmp_path, kind, case):
    difference, change = read(kind, case, tmp_path)
    assert change > 1e-3
    assert difference <= LIMIT


@pytest.mark.parametrize("case", ["LoRA", "DoRA", "AdaLoRA", "VeRA"])
def test_we_compute_what_peft_saved_on_a_bfloat16_base(tmp_path, case):
    difference, change = read("llama", case, tmp_path, torch.bfloat16)
    assert difference <= 0.05 and difference < change


@pytest.mark.parametrize("case", THEIRS)
def test_what_we_read_from_peft_we_write_and_keep(tmp_path, case):
    base, theirs = saved_by_peft("gpt2", case, tmp_path / "theirs")
    model, expected = copy.deepcopy(base), logits(theirs, "gpt2")
    injection = load_adapter(model, tmp_path / "theirs")
    save_peft(injection, tmp_path / "back")
    assert (logits(in_peft(base, tmp_path / "back"), "gpt2") - expected).abs().max() <= LIMIT
    save_adapter(injection, tmp_path / "ours")
    again = copy.deepcopy(base)
    load_adapter(again, tmp_path / "ours")
    assert torch.equal(logits(again, "gpt2"), logits(model, "gpt2"))


def test_pruned_triplets_of_peft_s_adalora_are_zeros_here(tmp_path):
    base, _ = saved_by_peft("llama", "AdaLoRA", tmp_path)
    masks = json.loads((tmp_path / CONFIG).read_text())["rank_pattern"]
    assert all(0 < sum(mask) < 6 and mask != mask[::-1] for mask in masks.values())
    injection = load_adapter(base, tmp_path)
    for name, mask in masks.items():
        adapter = injection.adapters[name.removesuffix(".lora_E")]
        assert (adapter.E_R != 0).tolist() == mask


def test_a_converted_pissa_is_plain_lora(tmp_path):
    base = bare("llama")
    config = peft.LoraConfig(**LORA, init_lora_weights="pissa", **MODULES["llama"])
    model = quietly(peft.get_peft_model, copy.deepcopy(base), config)
    model.peft_config["default"].init_lora_weights = True
    quietly(model.save_pretrained, tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    randomise([p for p in model.parameters() if p.requires_grad], 0.2)
    out, start = tmp_path / "out", str(tmp_path / "start")
    quietly(model.save_pretrained, out, path_initial_model_for_weight_conversion=start)
    ours = copy.deepcopy(base)
    assert load_adapter(ours, out).variant.name == "lora"
    expected = logits(in_peft(base, out), "llama")
    assert (logits(ours, "llama") - expected).abs().max() <= LIMIT
    assert (logits(model, "llama") - expected).abs().max() <= LIMIT


def test_a_pickled_file_of_peft_s_is_read(tmp_path):
    base, theirs = saved_by_peft("bert", "LoRA", tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "adapter_model.bin")
    (tmp_path / WEIGHTS).unlink()
    load_adapter(base, tmp_path)
    assert (logits(base, "bert") - logits(theirs, "bert")).abs().max() <= LIMIT


# --- layers of other kinds --------------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.table = nn.Embedding(19, 8, padding_idx=0)
        self.one, self.two = nn.Conv1d(8, 6, 3, padding=1), nn.Conv2d(6, 8, (2, 3), stride=2, groups=groups)
        self.three = nn.Conv3d(8, 4, (1, 1, 2), bias=False)

    def forward(self, x):
        h = self.one(self.table(x).mT)[:, :, None].tanh().expand(-1, -1, 4, -1)
        return self.three(self.two(h).tanh()[:, :, None])


def mixed(groups):
    torch.manual_seed(0)
    return Mixed(groups), torch.randint(1, 19, (3, 9))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "pissa"])
def test_embeddings_and_convolutions_arrive(tmp_path, name, groups):
    base, x = mixed(groups)
    model, back = copy.deepcopy(base), copy.deepcopy(base)
    injection = inject(model, name, target_modules=["table", "one", "two", "three"], rank=2, alpha=3.0)
    perturb(injection)
    save_peft(injection, tmp_path)
    again = load_adapter(back, tmp_path)
    assert (model(x) - base(x)).abs().max() > 0.1
    assert (in_peft(base, tmp_path)(x) - model(x)).abs().max() <= LIMIT
    assert (back(x) - model(x)).abs().max() <= LIMIT
    before = contents(tmp_path)
    save_peft(again, tmp_path)
    assert contents(tmp_path) == before


def test_a_grouped_convolution_with_an_a_for_each_group_is_read(tmp_path):
    base, x = mixed(2)
    theirs = quietly(
        peft.get_peft_model, copy.deepcopy(base), peft.LoraConfig(r=4, lora_alpha=5, target_modules=["two"])
    )
    randomise([p for n, p in theirs.named_parameters() if "lora_" in n], 0.3)
    quietly(theirs.save_pretrained, tmp_path)
    with pytest.raises(ValueError, match=r"two\.lora_A\.weight reads the channels of other groups"):
        load_adapter(copy.deepcopy(base), tmp_path)
    A = theirs.base_model.model.two.lora_A["default"].weight.data
    A[:2, 3:], A[2:, :3] = 0, 0
    quietly(theirs.save_pretrained, tmp_path)
    ours = copy.deepcopy(base)
    load_adapter(ours, tmp_path)
    assert (ours(x) - theirs(x)).abs().max() <= LIMIT


EXPERTS = {"mixtral": MIXTRAL, "gpt_oss": GPT_OSS, "llama_4": LLAMA_4}


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("name", ["lora", "rslora", "pissa", "vera"])
def test_stacked_experts_arrive(tmp_path, kind, name):
    base, x = EXPERTS[kind].base().eval(), EXPERTS[kind].inputs(0)
    targets = EXPERTS[kind].ours if name != "pissa" else ["experts.down_proj", "q"]
    model, back = copy.deepcopy(base), copy.deepcopy(base)
    injection = inject(model, name, target_modules=targets, **settings(name, 2, alpha=3.0))
    perturb(injection)
    save_peft(injection, tmp_path)
    again = load_adapter(back, tmp_path)
    ours = evaluated(model, x)
    assert (ours - evaluated(base, x)).abs().max() > 1e-2
    assert (evaluated(in_peft(base, tmp_path), x) - ours).abs().max() <= 3e-5
    assert (evaluated(back, x) - ours).abs().max() <= 3e-5
    before = contents(tmp_path)
    save_peft(again, tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match="PEFT has plain LoRA alone"):
        save_peft(inject(base, "dora", target_modules=EXPERTS[kind].ours, rank=2), tmp_path)


@pytest.mark.parametrize(
    ("feedforward", "said"), [("0.k_proj", "some layers of role k"), ("2", "some layers of no role")]
)
def test_ia3_of_layers_that_differ_within_a_role_is_refused(tmp_path, feedforward, said):
    def net():
        return nn.Sequential(*(nn.ModuleDict({"k_proj": nn.Linear(4, 3)}) for _ in range(2)), nn.Linear(4, 3))

    targets = {feedforward, "1.k_proj"}
    config = peft.IA3Config(target_modules=targets, feedforward_modules={feedforward})
    quietly(peft.get_peft_model, net(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"feedforward_modules takes {said}"):
        load_adapter(net(), tmp_path)


# --- round trips ------------------------------------------------------------------------------------------


@budget(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_writing_reading_and_writing_gives_the_same_bytes(data):
    name = data.draw(st.sampled_from([name for name in POINTWISE if VARIANTS[name].changes_weight]))
    shapes = data.draw(st.lists(st.tuples(st.integers(4, 9), st.integers(4, 9)), min_size=1, max_size=3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    rank, alpha = data.draw(st.integers(1, 2)), data.draw(st.floats(0.01, 64.0))
    ranks = {str(n): data.draw(st.integers(1, 2)) for n in range(len(shapes))}
    alphas = {str(n): data.draw(st.floats(0.01, 64.0)) for n in range(len(shapes))}
    torch.manual_seed(data.draw(st.integers(0, 9)))
    model = nn.Sequential(*(nn.Linear(I, O) for O, I in shapes)).to(dtype)
    known = settings(name, rank, alpha=alpha)
    more = {f"{key}_pattern": own for key, own in {"rank": ranks, "alpha": alphas}.items() if key in known}
    if (
        not data.draw(st.booleans()) or name == "vera"
    ):  # its files know the greatest rank's gain, which rounds
        more = {}
    base, cls = copy.deepcopy(model), VARIANTS[name]
    own = [{"rank": ranks[n]} if more and "rank" in known else {} for n in ranks]
    hyper = [cls.complete(complete_hyperparameters(cls, known | one)) for one in own]
    assume(not any(cls.refusal("linear", shape, one) for shape, one in zip(shapes, hyper, strict=True)))
    injection = inject(model, name, target_modules=list(ranks), **more, **known)
    perturb(injection)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        try:
            save_peft(injection, first, base="some/model")
        except ValueError as refusal:
            assert "which is no LoRA" in str(refusal)
            return
        again = load_adapter(base, first)
        save_peft(again, second, base="some/model")
        assert contents(first) == contents(second)
        for name, _, dW in injection:
            other = {update.name: update.dW_OI for update in again}[name]
            torch.testing.assert_close(other, dW, rtol=1e-4, atol=1e-4)


# --- what is refused --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    _, _, injection = adapted("bert", "lora")
    save_peft(injection, tmp_path)
    return tmp_path


def configured(folder, **changes):
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def refused(folder, kind="bert"):
    """The one line with which the folder is refused; the model stays plain."""
    model = bare(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_adapter(model, folder)
    assert model.state_dict().keys() == before.keys() and "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    return str(error.value)


OPTIONS = {
    "bias": "all",
    "use_qalora": True,
    "alora_invocation_tokens": [1],
    "layer_replication": [[0, 1]],
    "trainable_token_indices": [3],
    "lora_bias": True,
    "kasa_config": {"beta": 1},
    "something_new": "on",
    "init_lora_weights": "loftq",
    "peft_type": "POLY",
    "r": "8",
    "lora_alpha": None,
    "rank_pattern": {"query": "2"},
    "alpha_pattern": ["query"],
    "target_modules": "(",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_would_change_the_function_is_refused_by_name(folder, option):
    said = refused(configured(folder, **{option: OPTIONS[option]}))
    assert option in said and ("adapter_" in said)


def test_options_without_effect_are_ignored(folder):
    configured(
        folder,
        loftq_config={"a": 1},
        megatron_core="x",
        eva_config={"rho": 2},
        use_bdlora=None,
        revision="v1",
    )
    load_adapter(bare("bert"), folder)


TENSORS = {
    "missing": (lambda t, k: t.pop(k), "lora_A.weight is missing"),
    "extra": (lambda t, k: t.update({f"{k}x": t[k].clone()}), "is not expected"),
    "no prefix": (lambda t, k: t.update({"x": t[k].clone()}), "does not start with"),
    "shape": (lambda t, k: t.update({k: t[k].T.contiguous()}), r"lora_A.weight is (16, 4), not"),
    "rank": (lambda t, k: t.update({k: t[k][:3].contiguous()}), "lora_B.weight is (16, 4), not (16, 3)"),
    "layer": (lambda t, k: t.update({k.replace("layer.0", "layer.9"): t[k].clone()}), "no such layer"),
    "all of a layer": (
        lambda t, k: [t.pop(n) for n in list(t) if n.startswith(k.removesuffix("lora_A.weight"))],
        "tensors are missing",
    ),
    "head": (lambda t, k: t.pop("base_model.model.classifier.bias"), "classifier.bias"),
}


@pytest.mark.parametrize("change", TENSORS)
def test_tensors_that_do_not_fit_are_refused_with_file_and_name(folder, change):
    break_it, said = TENSORS[change]
    tensors = load_file(folder / WEIGHTS)
    break_it(tensors, "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight")
    save_file(tensors, folder / WEIGHTS)
    message = refused(folder)
    assert said in message and WEIGHTS in message


def test_another_model_a_broken_file_and_pickled_code_are_refused(folder):
    assert "another model" in refused(folder, "llama")
    ranks = configured(folder, rank_pattern={"layer.1.attention.self.query": 2})
    assert "rank 4, the configuration says 2" in refused(ranks)
    (folder / CONFIG).write_text("{")
    assert CONFIG in refused(folder)
    (folder / CONFIG).write_text('{"peft_type": "LORA"}')
    (folder / WEIGHTS).write_bytes(b"nothing")
    assert WEIGHTS in refused(folder)
    (folder / WEIGHTS).unlink()
    ran = folder / "ran"

    class Code:
        def __reduce__(self):
            return Path.touch, (ran,)

    torch.save({"base_model.model.x": Code()}, folder / "adapter_model.bin")
    assert "code in it never runs" in refused(folder)
    assert not ran.exists()
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load_adapter(bare("bert"), folder)


@pytest.mark.parametrize("apart", [True, False])
def test_names_that_end_alike_get_an_expression(tmp_path, apart):
    """PEFT takes a target for the end of a name: "0" would mean "0.0" as well."""
    base = nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)))
    model, x = copy.deepcopy(base), torch.randn(3, 5)
    chosen = ["^0$", r"^1\.1$"] if apart else ["^0$", r"^1\.0$", r"^1\.1$"]
    injection = inject(model, "lora", target_modules=chosen, rank_pattern={"^0$": 2}, rank=3)
    perturb(injection)
    save_peft(injection, tmp_path)
    assert (in_peft(base, tmp_path)(x) - model(x)).abs().max() <= LIMIT
    load_adapter(base, tmp_path)
    assert (base(x) - model(x)).abs().max() <= LIMIT


def test_what_peft_computes_otherwise_is_not_written(tmp_path):
    dilated = nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2))
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    for model, name, target, said in (
        (dilated, "lora", "0", "dilation"),
        (attention, "lora", "0.in_proj_weight", "not exchanged"),
    ):
        with pytest.raises(ValueError, match=said):
            save_peft(inject(model, name, target_modules=[target], rank=2), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("trained", [False, True])
def test_a_row_of_zeros_keeps_its_output_in_peft_s_dora(tmp_path, trained):
    """As in the shipped pocket model: PEFT would divide by the norm of a row without one."""
    base, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(3, 5)
    nn.init.zeros_(base[0].weight[1])
    model = copy.deepcopy(base)
    injection = inject(model, "dora", target_modules=["0"], rank=2)
    if trained:
        perturb(injection)
        with torch.no_grad():
            injection.adapters["0"].B_OR[1] = 0
    before = {name: tensor.clone() for name, tensor in injection.state_dict().items()}
    save_peft(injection, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in injection.state_dict().items())
    assert (in_peft(base, tmp_path)(x) - model(x)).abs().max() <= LIMIT
    load_adapter(base, tmp_path)
    assert (base(x) - model(x)).abs().max() <= LIMIT
    with torch.no_grad():
        injection.adapters["0"].A_RI.zero_()
    with pytest.raises(ValueError, match="row of zeros, and so has A"):
        save_peft(injection, tmp_path / "none")


# --- the table --------------------------------------------------------------------------------------------


def table():
    """The largest differences in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        lines = ["| written here | base | dtype | PEFT's logits | ours, read again | the adapter's change |"]
        lines.append("|---|---|---|---|---|---|")
        for name in POINTWISE:
            for way in (way for way in WAYS if (way, name) not in BIASED_PARTS):
                for said, dtype in DTYPES.items():
                    numbers = written(way, name, Path(folder) / f"{name}{way}{said}", dtype)
                    lines.append(f"| {name} | {way} | {said} | {' | '.join(f'{n:.1e}' for n in numbers)} |")
        lines += [
            "",
            "| saved by PEFT | base | dtype | our logits | the adapter's change |",
            "|---|---|---|---|---|",
        ]
        for kind, case in sorted(CASES, key=lambda pair: pair[::-1]):
            for said, dtype in DTYPES.items():
                numbers = read(kind, case, Path(folder) / f"{kind}{case}{said}", dtype)
                lines.append(f"| {case} | {kind} | {said} | {' | '.join(f'{n:.1e}' for n in numbers)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"Largest |Δlogit| between PEFT {peft.__version__} and this package.\n")
    print(table())
