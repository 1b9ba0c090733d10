"""`lora_zoo.export` and `lora_zoo.load` on the embedded model: what they write, print and refuse."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lora_zoo
from lora_zoo.export import main as export
from lora_zoo.formats.peft.forms import peft_types
from lora_zoo.load import main as load
from lora_zoo.models.compare import logits
from lora_zoo.pocket import HUB
from tests.processes import run

MODEL = {"name": "pocket", "path": "pocket"}


def pocket():
    return AutoModelForCausalLM.from_pretrained(HUB).eval()


def adapted(folder: Path, name: str, about: dict = {"model": MODEL}, **hyper):  # noqa: B006
    """A run's folder with a perturbed adapter of the pocket model, and the adapted model."""
    model = pocket()
    injection = lora_zoo.inject(model, name, target_modules=["q", "v"], **hyper)
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    lora_zoo.save_adapter(injection, folder / "adapter", **about)
    return model


def in_peft(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(pocket(), folder)


def refusal(command, capsys, *arguments):
    """The line on stderr of a command that ends with code 2 and prints nothing else."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command([str(a) for a in arguments])
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    assert said.err.startswith("lora_zoo: ") and said.err.count("\n") == 1
    return said.err


@pytest.fixture(autouse=True)
def warnings_as_they_were(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


@pytest.mark.parametrize("name", ["lora", "pissa", "dora", "adalora", "vera"])
def test_a_run_goes_to_peft_and_comes_back(tmp_path, capsys, name):
    model = adapted(tmp_path / "run", name)
    export([str(tmp_path / "run"), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert str(tmp_path / "out") in said and "largest logit difference" in said
    assert (logits(in_peft(tmp_path / "out")) - logits(model)).abs().max() < 1e-4
    load([str(tmp_path / "out"), str(tmp_path / "back")])
    assert str(tmp_path / "back") in capsys.readouterr().out
    again = pocket()
    lora_zoo.load_adapter(again, tmp_path / "back")
    assert (logits(again) - logits(model)).abs().max() < 1e-4
    export([str(tmp_path / "back"), str(tmp_path / "twice")])
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes()


def test_the_configuration_names_base_and_task(tmp_path):
    adapted(tmp_path, "lora")
    export([str(tmp_path), str(tmp_path / "out")])
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(HUB)
    assert config["task_type"] == "CAUSAL_LM"
    assert all(name.startswith("model.layers.") for name in config["target_modules"])


def test_as_lora_and_a_rank(tmp_path, capsys):
    adapted(tmp_path, "dora", rank=2)
    assert "use python -m lora_zoo.merge" in refusal(
        export, capsys, tmp_path, tmp_path / "out", "--as", "lora"
    )
    assert not (tmp_path / "out").exists()
    export([str(tmp_path), str(tmp_path / "out"), "--rank", "3"])
    said = capsys.readouterr().out
    assert "largest relative error of a matrix at rank 3" in said
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 3 and not config["use_dora"]
    assert "rank must be at least 1" in refusal(export, capsys, tmp_path, tmp_path / "new", "--rank", "0")


def test_a_file_of_loralib_s_is_read(tmp_path, capsys):
    adapted(tmp_path, "lora", rank=4, alpha=8.0)
    export([str(tmp_path), str(tmp_path / "out")])
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    state = {n.removeprefix("base_model.model.").removesuffix(".weight"): t for n, t in tensors.items()}
    torch.save(state, tmp_path / "lora.pt")
    file, new = tmp_path / "lora.pt", tmp_path / "new"
    assert "give --model" in refusal(load, capsys, file, new, "--alpha", "8")
    assert "alpha" in refusal(load, capsys, file, new, "--model", HUB)
    assert not new.exists()
    load([str(file), str(new), "--model", str(HUB), "--alpha", "8"])
    model, same = pocket(), pocket()
    lora_zoo.load_adapter(model, new)
    lora_zoo.load_adapter(same, tmp_path / "adapter")
    assert (logits(model) - logits(same)).abs().max() < 1e-5


def test_mistakes_are_one_line(tmp_path, capsys):
    adapted(tmp_path, "lora")
    out = tmp_path / "out"
    assert "holds no adapter" in refusal(export, capsys, tmp_path / "nowhere", out)
    assert "is there already" in refusal(export, capsys, tmp_path, tmp_path / "adapter")
    assert "nowhere" in refusal(export, capsys, tmp_path, out, "--model", tmp_path / "nowhere")
    assert "does not exist" in refusal(load, capsys, tmp_path / "nowhere", out)
    assert "is there already" in refusal(load, capsys, tmp_path / "adapter", tmp_path / "adapter")
    export([str(tmp_path), str(out)])
    config = json.loads((out / "adapter_config.json").read_text())
    unread = min({kind.value for kind in peft.PeftType} - set(peft_types()))
    (out / "adapter_config.json").write_text(json.dumps(config | {"peft_type": unread}))
    capsys.readouterr()
    said = refusal(load, capsys, out, tmp_path / "new")
    assert f"'{unread}'" in said and ", ".join(peft_types()) in said
    adapted(tmp_path / "other", "lora", about={})
    assert "give --model" in refusal(export, capsys, tmp_path / "other", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_commands_run_as_modules(tmp_path):
    for module in ("lora_zoo.export", "lora_zoo.load"):
        done = run("--help", at=tmp_path, module=module)
        assert done.returncode == 0 and "usage: python -m" in done.stdout
