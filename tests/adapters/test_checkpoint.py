"""An adapter on disk: what is stored, and what is refused with which words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_zoo.conformance.cases import fresh, logits, lone, perturb, settings
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.description import DESCRIPTION, WEIGHTS, read_description
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.injection.inject import inject


@pytest.fixture
def folder(tmp_path):
    """A perturbed LoRA of rank 3 on a linear layer, saved."""
    injection = inject(lone("linear"), "lora", target_modules="layer", rank=3, alpha=5.0, seed=9)
    perturb(injection)
    return save_adapter(injection, tmp_path / "saved", base="a linear layer")


def rewrite(folder, change):
    """Apply `change` to the stored tensors."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_the_folder_holds_two_files_and_says_what_the_adapter_is(folder):
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, DESCRIPTION}
    description = read_description(folder)
    assert description["variant"] == "lora" and description["seed"] == 9
    assert description["hyperparameters"]["rank"] == 3 and description["hyperparameters"]["alpha"] == 5.0
    assert description["target_modules"] == ["layer"]
    assert description["about"] == {"base": "a linear layer"}


def test_only_what_the_base_lacks_is_stored(folder):
    assert load_file(folder / WEIGHTS).keys() == {"layer.A_RI", "layer.B_OR"}


def test_saving_again_replaces_the_adapter(folder):
    injection = load_adapter(lone("linear"), folder)
    perturb(injection)
    save_adapter(injection, folder)
    stored = load_file(folder / WEIGHTS)
    assert torch.equal(stored["layer.A_RI"], injection.adapters["layer"].A_RI)
    assert len(list(folder.iterdir())) == 2


def test_a_folder_without_an_adapter_is_refused(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        load_adapter(lone("linear"), tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        load_adapter(lone("linear"), tmp_path / "nowhere")
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        load_adapter(lone("linear"), folder)


CHANGES = {
    "missing": (lambda t: t.pop("layer.A_RI"), "'layer.A_RI' is missing"),
    "extra": (lambda t: t.update({"layer.C": torch.zeros(2)}), "'layer.C' is not expected"),
    "shape": (
        lambda t: t.update({"layer.A_RI": torch.zeros(2, 14)}),
        r"layer.A_RI is \(2, 14\), not \(3, 14\)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_fit_are_refused_and_the_model_is_left_plain(folder, change):
    break_it, said = CHANGES[change]
    rewrite(folder, break_it)
    model, plain = lone("linear"), lone("linear")
    with pytest.raises(ValueError, match=said):
        load_adapter(model, folder)
    assert type(model.layer) is torch.nn.Linear
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_a_base_of_another_shape_is_refused(folder):
    with pytest.raises(ValueError, match="layer"):
        load_adapter(lone("linear", 12, 14), folder)
    with pytest.raises(ValueError, match="layer"):
        load_adapter(torch.nn.Sequential(torch.nn.Linear(14, 10)), folder)


def described(folder, **changes):
    description = {**json.loads((folder / DESCRIPTION).read_text()), **changes}
    (folder / DESCRIPTION).write_text(json.dumps(description))
    return folder


def test_another_format_version_is_refused(folder):
    with pytest.raises(ValueError, match="unknown format '2'"):
        load_adapter(lone("linear"), described(folder, format=2))


def test_an_unknown_variant_is_refused(folder):
    with pytest.raises(ValueError, match="Did you mean 'lora'"):
        load_adapter(lone("linear"), described(folder, variant="loraa"))


def test_vera_stores_its_vectors_and_no_projection(tmp_path):
    for projection in ("nested", "peft"):
        model = lone("linear")
        injection = inject(model, "vera", target_modules="layer", rank=5, projection=projection)
        perturb(injection)
        save_adapter(injection, tmp_path)
        assert {n: tuple(t.shape) for n, t in load_file(tmp_path / WEIGHTS).items()} == {
            "layer.b_O": (10,),
            "layer.d_R": (5,),
        }
        again = lone("linear")
        load_adapter(again, tmp_path)
        x = torch.randn(3, 14, dtype=torch.float64)
        assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("variant, init", [("pissa", "pissa"), ("milora", "milora"), ("lora", "olora")])
def test_loading_a_residual_start_decomposes_nothing(tmp_path, monkeypatch, variant, init):
    model = lone("linear")
    injection = inject(model, variant, target_modules="layer", rank=3, init=init)
    perturb(injection)
    save_adapter(injection, tmp_path)
    assert load_file(tmp_path / WEIGHTS).keys() >= {"layer.A0_RI", "layer.B0_OR"}
    for decomposition in ("svd", "qr", "svdvals", "eigh"):
        monkeypatch.setattr(torch.linalg, decomposition, None)
    again = lone("linear")
    load_adapter(again, tmp_path)
    x = torch.randn(3, 14, dtype=torch.float64)
    assert torch.equal(again(x), model(x))


def test_blank_starts_end_with_the_loading(folder):
    load_adapter(lone("linear"), folder)
    assert inject(lone("linear"), "lora", target_modules="layer", rank=3).adapters["layer"].A_RI.all()
    rewrite(folder, lambda t: t.pop("layer.A_RI"))
    with pytest.raises(ValueError):
        load_adapter(lone("linear"), folder)
    assert inject(lone("linear"), "lora", target_modules="layer", rank=3).adapters["layer"].A_RI.all()


@pytest.mark.filterwarnings("ignore:.*tied.*")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_head_that_is_tied_to_the_embedding_comes_back_as_its_own_copy(tmp_path, name):
    model, where = fresh("llama")
    injection = inject(model, name, **{**where, "modules_to_save": ["lm_head"]}, **settings(name, 2))
    perturb(injection, 0.1)
    save_adapter(injection, tmp_path)
    again, _ = fresh("llama")
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again, "llama"), logits(model, "llama"))
