"""ΔW read from disk: PEFT's own merge is what theirs must be, an injection's W' - W what ours must be."""

import copy
import json
import resource
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import loralib
import numpy
import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_zoo import updates as deltas
from lora_zoo.conformance.cases import MODELS, fresh, nearest_rank, on_models, perturb, randomise, settings
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.description import DESCRIPTION, WEIGHTS
from lora_zoo.formats.native import save_adapter
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.pocket import HUB
from lora_zoo.updates import reading, without_base
from lora_zoo.updates.weight_update import DenseUpdate, FactoredUpdate
from lora_zoo.variants.low_rank import LowRank

NOWHERE = "nobody/nothing"
CLASSES = {"bert": "AutoModelForSequenceClassification"}
NEAR = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The tiny models of the adapters' tests in the Hub's format."""
    folders = {kind: tmp_path_factory.mktemp("bases") / kind for kind in MODELS}
    for kind, folder in folders.items():
        fresh(kind)[0].save_pretrained(folder)
        tf.AutoTokenizer.from_pretrained(HUB).save_pretrained(folder)
    return folders


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that loads a model's weights fails."""

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("the base's weights are loaded")

    monkeypatch.setattr(reading, "load_model", refused)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the models that were loaded."""
    paths: list[str] = []

    def load(settings: Any, *rest: Any, **more: Any) -> Any:
        paths.append(settings.path)
        return base_weight(settings, *rest, **more)

    base_weight = reading.load_model
    monkeypatch.setattr(reading, "load_model", load)
    return paths


# --- PEFT's -----------------------------------------------------------------------------------------------

LORA = {"r": 4, "lora_alpha": 6}
Q_V = {"target_modules": ["q_proj", "v_proj"]}
FROM_FACTORS = {
    "LoRA": ("llama", peft.LoraConfig(**LORA, **Q_V)),
    "rsLoRA": ("llama", peft.LoraConfig(**LORA, **Q_V, use_rslora=True)),
    "ranks and alphas": (
        "llama",
        peft.LoraConfig(
            **LORA,
            **Q_V,
            rank_pattern={"v_proj": 2, r"^model\.layers\.1\.self_attn\.q_proj": 7},
            alpha_pattern={"q_proj": 11},
        ),
    ),
    "one layer": ("llama", peft.LoraConfig(**LORA, **Q_V, layers_to_transform=[1])),
    "rank above the matrix's": ("llama", peft.LoraConfig(r=20, lora_alpha=6, **Q_V)),
    "AdaLoRA": ("llama", peft.AdaLoraConfig(init_r=6, target_r=3, lora_alpha=9, total_step=12, **Q_V)),
    "Conv1D": ("gpt2", peft.LoraConfig(**LORA, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
}
FROM_STRUCTURE = {
    "a head": (
        "bert",
        peft.LoraConfig(
            **LORA,
            target_modules=["query", "value"],
            modules_to_save=["classifier"],
            task_type="SEQ_CLS",
        ),
    ),
    "an embedding": ("gpt2", peft.LoraConfig(**LORA, target_modules=["wte", "c_fc"], task_type="CAUSAL_LM")),
    "VeRA": ("llama", peft.VeraConfig(r=8, projection_prng_key=5, **Q_V)),
    "VeRA from its seed": (
        "llama",
        peft.VeraConfig(r=8, projection_prng_key=5, save_projection=False, **Q_V),
    ),
}
FROM_WEIGHTS = {
    "DoRA": ("llama", peft.LoraConfig(**LORA, **Q_V, use_dora=True)),
    "PiSSA": ("llama", peft.LoraConfig(**LORA, **Q_V, init_lora_weights="pissa")),
    "PiSSA, DoRA": ("llama", peft.LoraConfig(**LORA, **Q_V, init_lora_weights="pissa", use_dora=True)),
    "an embedding and its copy": (
        "llama",
        peft.LoraConfig(**LORA, target_modules=["embed_tokens", "q_proj"]),
    ),
}
CASES = FROM_FACTORS | FROM_STRUCTURE | FROM_WEIGHTS


def saved_by_peft(case: str, folder: Path, base: str | Path) -> dict[str, Tensor]:
    """Save a perturbed adapter that names `base`; what PEFT's merge changes: name -> ΔW as it is stored."""
    kind, config = copy.deepcopy(CASES[case])
    plain = fresh(kind)[0]
    before = {name: p.detach().clone() for name, p in plain.named_parameters(remove_duplicate=False)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(plain, config)
        randomise([p for p in model.parameters() if p.requires_grad], 0.2)
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(folder)
        merged = model.merge_and_unload()
    after = dict(merged.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    matrix_names = {name: (after[name] - before[name]).detach().double() for name in before}
    return {
        name.removesuffix(".weight"): dW
        for name, dW in matrix_names.items()
        if dW.ndim == 2 and dW.abs().max() > 0
    }


def compare(
    found: deltas.AdapterUpdates, expected: dict[str, Tensor], *, transposed: tuple[str, ...] = ()
) -> None:
    assert set(found) == set(expected) and len(found) == len(expected) > 0
    for name, delta in found.items():
        dW_OI = expected[name].T if name.endswith(transposed) else expected[name]
        assert delta.name == name and delta.shape == dW_OI.shape
        torch.testing.assert_close(delta.dense(), dW_OI, **NEAR)
        sigma = torch.linalg.svdvals(dW_OI)
        torch.testing.assert_close(delta.singular_values, sigma[: len(delta.singular_values)], **NEAR)
        assert float(dW_OI.norm()) > 0.05


TRANSPOSED = ("c_attn", "c_proj", "c_fc", "wte", "embed_tokens")  # stored as (I, O)


@pytest.mark.parametrize("case", FROM_FACTORS)
def test_peft_s_factors_alone_are_its_merge(tmp_path: Path, no_weights: None, case: str) -> None:
    expected = saved_by_peft(case, tmp_path / "theirs", NOWHERE)
    found = deltas.read(tmp_path / "theirs")
    compare(found, expected, transposed=TRANSPOSED)
    assert {type(delta) for delta in found.values()} == {FactoredUpdate}
    assert (found.label, found.skipped) == ("theirs", [])


@pytest.mark.parametrize("case", FROM_STRUCTURE)
def test_what_the_factors_do_not_tell_stands_in_the_base_s_configuration(
    tmp_path: Path, no_weights: None, bases: Mapping[str, Path], case: str
) -> None:
    kind = CASES[case][0]
    expected = saved_by_peft(case, tmp_path, bases[kind])
    found = deltas.read(tmp_path)
    head = {name: expected.pop(name) for name in found.skipped}
    # GPT-2's head is tied to the embedding: PEFT's merge changes it, too
    expected.pop("lm_head", None)
    compare(found, expected, transposed=TRANSPOSED)
    assert list(head) == (["classifier"] if kind == "bert" else [])


@pytest.mark.parametrize("case", FROM_WEIGHTS)
def test_what_depends_on_the_base_loads_it(
    tmp_path: Path, loaded: list[str], bases: Mapping[str, Path], case: str
) -> None:
    expected = saved_by_peft(case, tmp_path, bases["llama"])
    expected.pop("lm_head", None)  # tied, as above
    compare(deltas.read(tmp_path), expected, transposed=TRANSPOSED)
    assert loaded == [str(bases["llama"])]


@pytest.mark.parametrize("case", CASES)
def test_with_its_base_everything_is_there_w_included(
    tmp_path: Path, loaded: list[str], bases: Mapping[str, Path], case: str
) -> None:
    kind = CASES[case][0]
    expected = saved_by_peft(case, tmp_path, bases[kind])
    expected.pop("lm_head", None)  # tied, as above
    found = deltas.read(tmp_path, base=True)
    compare(found, expected, transposed=TRANSPOSED)
    assert loaded == [str(bases[kind])] and found.skipped == []
    W = dict(fresh(kind)[0].named_parameters())
    for name in found:
        stored = W[f"{name}.weight"].T if name.endswith(TRANSPOSED) else W[f"{name}.weight"]
        assert torch.equal(found.base(name), stored) and found.base(name).shape == found[name].shape


@pytest.mark.parametrize("case", ["LoRA", "DoRA"])
def test_another_base_may_stand_in(
    tmp_path: Path, loaded: list[str], bases: Mapping[str, Path], case: str
) -> None:
    expected = saved_by_peft(case, tmp_path, NOWHERE)
    compare(deltas.read(tmp_path, model=str(bases["llama"])), expected)
    assert loaded == [str(bases["llama"])] * (case == "DoRA")


@pytest.mark.parametrize("case", ["DoRA", "VeRA"])
def test_a_base_that_is_not_there_is_named_with_what_needs_it(tmp_path: Path, case: str) -> None:
    saved_by_peft(case, tmp_path, NOWHERE)
    with pytest.raises(ValueError, match=rf"{tmp_path}: .*(base's weights|shapes).*{NOWHERE}") as error:
        deltas.read(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"weights were requested; .*{NOWHERE}"):
        deltas.read(tmp_path, base=True)


def test_a_file_of_another_model_s_is_refused(tmp_path: Path, bases: Mapping[str, Path]) -> None:
    saved_by_peft("LoRA", tmp_path, NOWHERE)
    with pytest.raises(ValueError, match="no such layer: it belongs to another model"):
        deltas.read(tmp_path, model=str(bases["gpt2"]))


# --- ours -------------------------------------------------------------------------------------------------


def saved_here(
    kind: str, variant: str, folder: Path, base: str | Path, size: float = 0.1, **where: Any
) -> Injection:
    """Save a perturbed adapter of ours that names `base`."""
    model, usual = fresh(kind)
    usual = usual | where
    rank = nearest_rank(variant, model, 3, usual["target_modules"])
    injection = inject(model, variant, **usual, **settings(variant, rank))
    perturb(injection, size)
    head = {"num_labels": 3} if kind == "bert" else {}
    about = {"model": {"path": str(base), "dtype": "float32"}, "head": head}
    save_adapter(injection, folder, auto_class=CLASSES.get(kind, "AutoModelForCausalLM"), **about)
    return injection


def compare_with(found: deltas.AdapterUpdates, injection: Injection, skipped: bool) -> None:
    updates = {update.name: update for update in injection}
    assert [*found, *found.skipped] == list(updates)
    assert found.skipped == (list(updates)[len(injection) :] if skipped else [])
    for name, delta in found.items():
        torch.testing.assert_close(delta.dense(), updates[name].dW_OI.double(), **NEAR)
        assert delta.shape == updates[name].W_OI.shape
    assert (found.variant, found.rank) == (injection.variant.name, injection.hyper.get("rank"))


@pytest.mark.parametrize(("variant", "kind"), on_models(MODELS))
def test_every_variant_is_read_with_its_base_and_without(
    tmp_path: Path, loaded: list[str], bases: Mapping[str, Path], kind: str, variant: str
) -> None:
    injection = saved_here(kind, variant, tmp_path, bases[kind])
    if not injection.variant.pointwise:
        for base in (False, True):
            with pytest.raises(ValueError, match=f"{variant} has no effective weight.*read as a ΔW"):
                deltas.read(tmp_path, base=base)
        return
    if not injection.matrix_names():
        for base in (False, True):
            with pytest.raises(ValueError, match=f"{tmp_path}: {variant} changes no matrix"):
                deltas.read(tmp_path, base=base)
        return
    thin = bool(injection.adapters) and all(a.factors() is not None for a in injection.adapters.values())
    compare_with(deltas.read(tmp_path), injection, skipped=thin)
    assert len(loaded) == (not thin), "weights are loaded where ΔW is no product of factors, and only there"
    found = deltas.read(tmp_path, base=True)
    compare_with(found, injection, skipped=False)
    for name, W_OI, _ in injection:
        assert torch.equal(found.base(name), W_OI)


@pytest.mark.parametrize("variant", [n for n, cls in VARIANTS.items() if issubclass(cls, LowRank)])
def test_factors_that_are_stored_need_no_base_at_all(tmp_path: Path, no_weights: None, variant: str) -> None:
    injection = saved_here("bert", variant, tmp_path, NOWHERE)
    if all(adapter.factors() is not None for adapter in injection.adapters.values()):
        compare_with(deltas.read(tmp_path), injection, skipped=True)
    else:
        with pytest.raises(AssertionError, match="the base's weights are loaded"):
            deltas.read(tmp_path)


def test_a_base_that_is_needed_and_nowhere_is_named(tmp_path: Path) -> None:
    saved_here("bert", "dora", tmp_path, NOWHERE)
    with pytest.raises(ValueError, match=f"ΔW of dora depends on the base's weights; .*{NOWHERE}"):
        deltas.read(tmp_path)


TIED = [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"], ["norm"]]


@pytest.mark.parametrize("fully_trained", TIED, ids=" and ".join)
@pytest.mark.filterwarnings("ignore:.*is tied to")
def test_tied_matrices_that_train_in_full_are_left_out_once(
    tmp_path: Path, bases: Mapping[str, Path], fully_trained: list[str]
) -> None:
    injection = saved_here("llama", "lora", tmp_path, bases["llama"], modules_to_save=fully_trained)
    compare_with(deltas.read(tmp_path), injection, skipped=True)
    compare_with(deltas.read(tmp_path, base=True), injection, skipped=False)


def test_a_product_stays_one_with_its_base_and_full_training_never_is(
    tmp_path: Path, bases: Mapping[str, Path]
) -> None:
    for variant, kind in {"lora": FactoredUpdate, "dora": DenseUpdate, "full": DenseUpdate}.items():
        saved_here("llama", variant, tmp_path / variant, bases["llama"])
        found = deltas.read(tmp_path / variant, base=True)
        assert {type(delta) for delta in found.values()} == {kind}


def test_without_its_base_w_is_not_there_and_other_names_are_not_either(tmp_path: Path) -> None:
    saved_here("llama", "lora", tmp_path, NOWHERE)
    found = deltas.read(tmp_path)
    name = next(iter(found))
    with pytest.raises(deltas.NeedsBase, match=f"{tmp_path.name} was read from its factors alone"):
        found.base(name)
    with pytest.raises(
        KeyError, match=r"unknown matrix .*Did you mean 'model\.layers\.0\.self_attn\.q_proj'"
    ):
        found["model.layers.0.self_attn.qproj"]
    assert name in found and "elsewhere" not in found


def test_removed_nothing_is_left_and_the_base_is_plain(tmp_path: Path, bases: Mapping[str, Path]) -> None:
    saved_here("llama", "lora", tmp_path, bases["llama"])
    found = deltas.read(tmp_path, base=True)
    model = found.remove()
    assert len(found) == 0 and not list(found)
    for name, parameter in fresh("llama")[0].named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


def test_numbers_that_are_none_are_read_and_said(tmp_path: Path) -> None:
    injection = saved_here("llama", "lora", tmp_path, NOWHERE)
    state = load_file(tmp_path / WEIGHTS)
    first, second = list(injection.adapters)[:2]
    state[f"{first}.B_OR"][0, 0] = float("nan")
    save_file(state, tmp_path / WEIGHTS)
    found = deltas.read(tmp_path)
    assert numpy.isnan(found[first].norm) and found[second].norm > 0
    with pytest.raises(ValueError, match=f"ΔW of {first} holds NaN or inf"):
        _ = found[first].triplets


# --- loralib's --------------------------------------------------------------------------------------------


class Layers(nn.Module):
    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.first = make("Embedding", 17, 6), make("Linear", 6, 8)
        self.head = nn.Linear(8, 3)


def loralib_layers() -> Layers:
    model = Layers(lambda kind, *sizes: getattr(loralib, kind)(*sizes, r=2, lora_alpha=6))
    randomise([p for n, p in model.named_parameters() if "lora_" in n], 0.3)
    return model


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loralib_s_file_needs_its_alpha_alone(tmp_path: Path, no_weights: None, suffix: str) -> None:
    theirs, path = loralib_layers(), tmp_path / f"lora{suffix}"
    state = loralib.lora_state_dict(theirs) | {
        "head.weight": theirs.head.weight,
        "head.bias": theirs.head.bias,
    }
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    found = deltas.read(path, alpha=6)
    before = {name: getattr(theirs, name).weight.detach().clone() for name in ("table", "first")}
    theirs.eval()  # loralib merges here
    merged = {name: (getattr(theirs, name).weight - W).detach().double() for name, W in before.items()}
    compare(found, merged, transposed=("table",))
    assert (found.skipped, found.label) == (["head"], path.name)
    with pytest.raises(ValueError, match=f"{path}: .* do not hold alpha"):
        deltas.read(path)


def gpt2_of_loralib(enable: list[bool]) -> tuple[Any, dict[str, Tensor]]:
    """A GPT-2 with fused layers of loralib's, and the ΔW (3 O, I) that loralib merges into each."""
    theirs = fresh("gpt2")[0]
    for block in theirs.transformer.h:
        new = loralib.MergedLinear(16, 48, r=3, lora_alpha=6, enable_lora=enable, fan_in_fan_out=True)
        new.weight.data, new.bias.data = block.attn.c_attn.weight.data.clone(), block.attn.c_attn.bias.data
        block.attn.c_attn = new
    randomise([p for n, p in theirs.named_parameters() if "lora_" in n], 0.2)
    layers = {
        f"transformer.h.{k}.attn.c_attn": block.attn.c_attn for k, block in enumerate(theirs.transformer.h)
    }
    twin = copy.deepcopy(layers)
    before = {name: layer.weight.detach().clone() for name, layer in twin.items()}
    for layer in twin.values():
        layer.eval()  # loralib merges here
    return theirs, {name: (layer.weight - before[name]).detach().T for name, layer in twin.items()}


@pytest.mark.parametrize(
    "enable, said, roles", [([True, False, True], ("q", "v"), "qv"), ([False, True, False], ("k",), "k")]
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_fused_layer_needs_its_model(
    tmp_path: Path,
    bases: Mapping[str, Path],
    enable: list[bool],
    said: tuple[str, ...],
    roles: str,
    whole: bool,
) -> None:
    theirs, merged = gpt2_of_loralib(enable)
    path = tmp_path / "lora.pt"
    torch.save(theirs.state_dict() if whole else loralib.lora_state_dict(theirs), path)
    with pytest.raises(ValueError, match=f"{path} does not say which model it adapts; give --model"):
        deltas.read(path, alpha=6, enable=said)
    found = deltas.read(path, alpha=6, enable=said, model=str(bases["gpt2"]))
    parts = {
        f"{name}.{role}": dW.double()[16 * "qkv".index(role) : 16 * "qkv".index(role) + 16]
        for name, dW in merged.items()
        for role in roles
    }
    compare(found, parts)
    assert found.skipped == []


def test_a_whole_state_of_loralib_s_is_not_taken_for_training_in_full(tmp_path: Path) -> None:
    torch.save(loralib_layers().state_dict(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"it holds tensors of its base, .*give --model"):
        deltas.read(tmp_path / "whole.pt", alpha=6)


def test_only_loralib_s_files_take_an_alpha(tmp_path: Path) -> None:
    saved_here("llama", "lora", tmp_path, NOWHERE)
    for more in ({"alpha": 6.0}, {"enable": ["q"]}):
        with pytest.raises(ValueError, match=f"{tmp_path} knows alpha and its parts"):
            deltas.read(tmp_path, **more)


# --- folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [False, True])
def test_where_no_adapter_is_this_is_said(tmp_path: Path, base: bool) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'missing'} does not exist"):
        deltas.read(tmp_path / "missing", base=base)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no adapter: {DESCRIPTION} and {WEIGHTS}"):
        deltas.read(tmp_path, base=base)


def test_a_run_s_folder_is_its_adapter_by_the_run_s_name(tmp_path: Path) -> None:
    injection = saved_here("llama", "lora", tmp_path / "run" / "adapter", NOWHERE)
    compare_with(unnamed := deltas.read(tmp_path / "run"), injection, skipped=True)
    (tmp_path / "run" / "result.json").write_text(json.dumps({"name": "lora-r3-s0"}))
    labels = [
        unnamed.label,
        deltas.read(str(tmp_path / "run")).label,
        deltas.read(tmp_path / "run/adapter").label,
    ]
    assert labels == ["run", "lora-r3-s0", "adapter"]
    for broken in ("{", "[]", "{}"):
        (tmp_path / "run" / "result.json").write_text(broken)
        assert deltas.read(tmp_path / "run").label == "run"


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-7.part", "checkpoint-x"):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / DESCRIPTION).touch()
    (tmp_path / "checkpoints" / "checkpoint-11").mkdir()
    found = deltas.checkpoints(tmp_path)
    assert list(found) == [9, 10, 100] and found[10] == tmp_path / "checkpoints" / "checkpoint-10"
    with pytest.raises(ValueError, match=r"has no checkpoints; .*trainer\.save_steps=N"):
        deltas.checkpoints(tmp_path / "checkpoints")


def test_several_adapters_share_one_base(
    tmp_path: Path, loaded: list[str], bases: Mapping[str, Path]
) -> None:
    made = {
        name: saved_here("llama", variant, tmp_path / name, bases["llama"], size)
        for name, (variant, size) in {"a": ("lora", 0.1), "b": ("dora", 0.2), "c": ("full", 0.01)}.items()
    }
    labels = []
    for found in deltas.read_each({name: tmp_path / name for name in made}):
        compare_with(found, made[found.label], skipped=False)
        for name, W_OI, _ in made[found.label]:
            assert torch.equal(found.base(name), W_OI)
        labels.append(found.label)
    assert labels == ["a", "b", "c"] and loaded == [str(bases["llama"])]


@pytest.mark.parametrize(
    "name, role, layer",
    [
        ("model.layers.11.self_attn.q_proj", "q", 11),
        ("transformer.h.3.attn.c_attn.v", "v", 3),
        ("bert.encoder.layer.0.output.dense", "down", 0),
        ("model.layers.2.mlp.experts.7.up_proj", "up", 2),
        ("model.embed_tokens", "embed", None),
        ("lm_head", "head", None),
        ("0", "", None),
    ],
)
def test_a_name_tells_role_and_layer(name: str, role: str, layer: int | None) -> None:
    assert reading.position(name) == (role, layer)


# --- models without weights -------------------------------------------------------------------------------


def resident() -> int:
    """The most memory that this process has used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def stored(model: nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in model.parameters())


def llama_7b(layers: int = 32) -> dict[str, tuple[int, int]]:
    own = {"self_attn.q_proj": (4096, 4096), "self_attn.v_proj": (4096, 4096), "mlp.up_proj": (11008, 4096)}
    return {f"model.layers.{k}.{name}": shape for k in range(layers) for name, shape in own.items()}


def test_a_skeleton_has_the_shapes_of_a_model_and_none_of_its_memory() -> None:
    before, shapes = resident(), llama_7b()
    head = torch.zeros(()).expand(32000, 4096)
    model = without_base.meta_model(shapes, {"lm_head.weight": head, "model.norm.weight": head[0]})
    assert sum(p.numel() for p in model.parameters()) > 2.5e9 and stored(model) < 1000
    for name, (O, I) in shapes.items():
        layer = model.get_submodule(name)
        assert type(layer) is nn.Linear and (layer.out_features, layer.in_features) == (O, I)
        assert layer.weight.shape == (O, I) and layer.bias is None
    assert model.get_parameter("lm_head.weight").shape == (32000, 4096)
    assert model.get_parameter("model.norm.weight").shape == (4096,)
    injection = inject(model, "lora", target_modules=["q_proj", "v_proj", "up_proj"], rank=1)
    assert len(injection) == 96 and resident() - before < 400e6


def test_a_empty_model_model_has_everything_but_numbers() -> None:
    config = tf.LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, intermediate_size=11008, tie_word_embeddings=True
    )
    before = resident()
    with torch.device("meta"):
        model = tf.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    assert without_base.empty_model(model) is model
    assert sum(p.numel() for p in model.parameters()) > 6e9 and stored(model) < 2000
    assert {(p.device.type, p.dtype, p.requires_grad) for p in model.parameters()} == {
        ("cpu", torch.bfloat16, False)
    }
    assert model.lm_head.weight is model.model.embed_tokens.weight, "what is tied stays tied"
    assert not model.model.norm.weight.any() and resident() - before < 300e6


def test_one_parameter_under_two_names_of_a_module_stays_one() -> None:
    module = nn.Module()
    module.a = module.b = nn.Parameter(torch.ones(2, 3, device="meta"))
    without_base.empty_model(module)
    assert module.a is module.b and module.a.tolist() == [[0.0] * 3] * 2


def test_a_layer_s_bias_stands_beside_it_and_a_name_stands_once() -> None:
    others = {"a.b.weight": torch.ones(3, 2), "a.b.bias": torch.ones(3), "a.c.d": torch.ones(2, 2, 2)}
    model = without_base.meta_model({"a.b": (3, 2), "a.b2": (1, 5)}, others)
    shapes = {name: tuple(p.shape) for name, p in base_parameters(model).items()}
    assert shapes == {"a.b.weight": (3, 2), "a.b.bias": (3,), "a.b2.weight": (1, 5), "a.c.d": (2, 2, 2)}
    with pytest.raises(ValueError, match=r"a\.b is there twice"):
        without_base.meta_model({"a.b": (3, 2)}, {"a.b": torch.ones(3)})


def test_every_name_of_the_package_is_there() -> None:
    assert set(deltas.__all__) >= {"read", "spectra", "comparison", "evolution", "NeedsBase"}
    assert all(getattr(deltas, name).__name__ == name for name in deltas.__all__)
    with pytest.raises(AttributeError, match="no attribute 'spectre'"):
        _ = deltas.spectre
