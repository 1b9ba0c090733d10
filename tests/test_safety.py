"""Strangers' files run no code and write nowhere; keys and tokens reach no file and no screen.

Each attack is planted where a stranger could, beside a proof that the trap would have sprung.
"""

import ast
import contextlib
import json
import logging
import os
import pickle
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import lora_zoo
from lora_zoo.config.schema import Model, Settings, Task
from lora_zoo.formats.native import load_adapter, load_adapters, save_adapter, save_adapters
from lora_zoo.injection.inject import inject
from lora_zoo.merge import main
from lora_zoo.models.loading import load_model, load_tokenizer
from lora_zoo.models.merging import merge
from lora_zoo.pocket import HUB
from lora_zoo.runs.record import claim_folder
from lora_zoo.runs.redact import MASK, RedactingFormatter, is_secret, redacted
from lora_zoo.tasks.data import load_splits
from tests.processes import run as wrapper

PACKAGE = Path(lora_zoo.__file__).parent
CAUSAL = "AutoModelForCausalLM"
REFUSED = (ValueError, RuntimeError, OSError, pickle.UnpicklingError, TypeError, LookupError)


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """It exists once a trap has sprung."""
    return tmp_path / "sprung"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model in Hub format, with a tokenizer."""
    folder = tmp_path / "model"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, vocab_size=725, pad_token_id=0)).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(HUB).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    """An adapter of `model`, as a run leaves it."""
    network = tf.AutoModelForCausalLM.from_pretrained(model)
    said = {"model": {"name": "m", "path": str(model)}, "auto_class": CAUSAL, "head": {}}
    return save_adapter(inject(network, "lora", rank=2), tmp_path / "adapter", **said)


def plant(path: Path, content: Any, legacy: bool = False) -> None:
    """A pickle, as torch writes them today or as it once did."""
    path.unlink(missing_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder: Path, **settings: Any) -> None:
    said = Model(name="m", path=str(folder), **settings)
    load_model(said, CAUSAL, {}, load_tokenizer(said), seed=0)


@pytest.mark.parametrize("legacy", [True, False])
def test_the_trap_is_one(mark: Path, tmp_path: Path, legacy: bool) -> None:
    plant(tmp_path / "x", Trap(mark), legacy)
    torch.load(tmp_path / "x", weights_only=False)
    assert mark.is_dir()


# --- models


@pytest.mark.parametrize("legacy", [True, False])
def test_a_models_pickled_weights_run_no_code(model: Path, mark: Path, legacy: bool) -> None:
    (model / "model.safetensors").unlink()
    plant(model / "pytorch_model.bin", {"lm_head.weight": Trap(mark)}, legacy)
    with pytest.raises(REFUSED):
        load(model)
    assert not mark.exists()


def test_an_adapter_that_hides_in_a_models_folder_runs_no_code(
    model: Path, mark: Path, tmp_path: Path
) -> None:
    """transformers follows an adapter_config.json in a model's folder to another base."""
    evil = tmp_path / "evil"
    shutil.copytree(model, evil)
    (evil / "model.safetensors").unlink()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(model),
        "target_modules": ["q_proj"],
        "r": 2,
    }
    (evil / "adapter_config.json").write_text(json.dumps(config))
    plant(evil / "adapter_model.bin", {"x": Trap(mark)})
    with pytest.raises(REFUSED):
        load(evil)
    assert not mark.exists()


def with_code(folder: Path, mark: Path) -> None:
    """The folder asks for a class of its own, in a file beside its weights."""
    code = f"import os\nos.mkdir({str(mark)!r})\nfrom transformers import *\n"
    code += "class Own(LlamaConfig):\n    model_type = 'own'\n"
    code += "class Net(LlamaForCausalLM):\n    config_class = Own\n"
    (folder / "own.py").write_text(code)
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", CAUSAL: "own.Net"})


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_models_own_code_runs_only_where_the_user_said_so(
    answer: str, model: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody is asked on the way either: an answer of `yes |` is not the user's."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    with_code(model, mark)
    with pytest.raises(REFUSED):
        load(model)
    assert not mark.exists()
    load(model, trust_remote_code=True)
    assert mark.exists(), "the trap is none"


def test_a_tokenizers_own_code_does_not_run(model: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (model / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Own: ...\n")
    own = {"AutoTokenizer": ["own.Own", "own.Own"]}
    edit(model / "tokenizer_config.json", auto_map=own, tokenizer_class="Own")
    with contextlib.suppress(*REFUSED):
        load(model)
    assert not mark.exists()


def test_remote_code_is_off_by_default() -> None:
    assert Model().trust_remote_code is False
    for path in (PACKAGE.parent / "conf").rglob("*.yaml"):
        assert "trust_remote_code" not in path.read_text(), path


# --- adapters


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_in_the_place_of_an_adapter_runs_no_code(
    adapter: Path, mark: Path, legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(adapter / "adapter.safetensors", Trap(mark), legacy)
    assert stopped(str(adapter), str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert said.startswith("lora_zoo: ") and said.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_pickles_of_peft_and_loralib_run_no_code(
    model: Path, mark: Path, legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(model),
        "target_modules": ["q_proj"],
        "r": 2,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for weights in ({"base_model.model.x": Trap(mark)}, Trap(mark)):
        plant(folder / "adapter_model.bin", weights, legacy)
        assert stopped(str(folder), str(tmp_path / "out")) == 2
        plant(tmp_path / "lora.pt", weights, legacy)
        assert (
            stopped(str(tmp_path / "lora.pt"), str(tmp_path / "out"), "--model", str(model), "--alpha", "1")
            == 2
        )
        assert capsys.readouterr().err.count("\n") == 2
    assert not mark.exists() and not (tmp_path / "out").exists()


def stopped(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"head": {"weights_only": False}}, "unknown key of head 'weights_only'"),
        ({"head": {"trust_remote_code": True}}, "unknown key of head"),
        ({"head": [1]}, "head cannot be read"),
        ({"auto_class": "pipeline"}, "no class that loads a model"),
        ({"auto_class": "AutoModel.__init__"}, "no class that loads a model"),
        ({"auto_class": ["AutoModel"]}, "no class that loads a model"),
        ({"model": {"path": ["x"]}}, "model cannot be read"),
        ({"model": "x"}, "model cannot be read"),
        ({"model": {"path": "x", "attn_implementation": "evil/kernel"}}, "is code from the Hub"),
        ({"model": {"path": "x", "dtype": "quint8"}}, "unknown dtype"),
        ({"standardised": {"mean": "x"}}, "cannot be read"),
    ],
)
def test_what_an_adapter_says_of_its_base_is_names_not_options(
    lie: dict[str, Any], said: str, adapter: Path, tmp_path: Path
) -> None:
    about = json.loads((adapter / "adapter.json").read_text())["about"]
    edit(adapter / "adapter.json", about=about | lie)
    with pytest.raises(ValueError, match=said):
        merge(adapter, tmp_path / "out")


def test_an_adapter_cannot_switch_its_bases_code_on(
    model: Path, adapter: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    with_code(model, mark)
    about = json.loads((adapter / "adapter.json").read_text())["about"]
    about["model"]["trust_remote_code"] = True
    edit(adapter / "adapter.json", about=about)
    with pytest.raises(ValueError, match="custom code"):
        merge(adapter, tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../evil", "{tmp_path}/evil", "a/b", "..", "", "a\0b"])
def test_an_adapters_name_leads_nowhere(name: str, adapter: Path, model: Path, tmp_path: Path) -> None:
    edit(adapter / "adapter.json", name=name.format(tmp_path=tmp_path))
    network = tf.AutoModelForCausalLM.from_pretrained(model)
    inside = tmp_path / "a" / "b" / "c"
    before = files(tmp_path)
    with pytest.raises(ValueError):
        load_adapter(network, adapter)
        save_adapters(network, inside)
    assert {path for path in files(tmp_path) - before if inside not in path.parents} == set()


def test_adapters_are_found_in_their_folder_alone(adapter: Path, model: Path, tmp_path: Path) -> None:
    network = tf.AutoModelForCausalLM.from_pretrained(model)
    shutil.copytree(adapter, tmp_path / "many" / "one")
    edit(tmp_path / "many" / "one" / "adapter.json", variant="../../evil")
    with pytest.raises(ValueError, match="unknown variant"):
        load_adapters(network, tmp_path / "many")


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_tokenizers_template_is_not_written_outside_of_the_merged_folder(
    model: Path, adapter: Path, tmp_path: Path
) -> None:
    templates = [{"name": "default", "template": "x"}, {"name": "../../evil", "template": "evil"}]
    edit(model / "tokenizer_config.json", chat_template=templates)
    with pytest.raises(ValueError, match="template"):
        merge(adapter, tmp_path / "out")
    assert not list(tmp_path.rglob("evil*")) and not (tmp_path / "out").exists()


# --- checkpoints

PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.slope * x - labels).square().mean()}


@pytest.mark.parametrize("file", PICKLED)
def test_a_checkpoint_of_transformers_runs_no_code(file: str, mark: Path, tmp_path: Path) -> None:
    def trainer(steps: int) -> tf.Trainer:
        options = {"save_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
        arguments = tf.TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=steps, **options)
        return tf.Trainer(
            Line(), arguments, train_dataset=[{"x": float(i), "labels": 2.0 * i} for i in range(40)]
        )

    trainer(1).train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    assert (checkpoint / file).is_file()
    plant(checkpoint / file, {"state": Trap(mark), "python": Trap(mark)})
    with contextlib.suppress(*REFUSED):
        trainer(2).train(resume_from_checkpoint=str(checkpoint))
    assert not mark.exists()


QUICK = (
    "task.sizes={train:32,validation:4,test:4}",
    "threads=1",
    "batch_size=4",
    "eval_before_training=false",
    "eval_splits=[validation]",
    "task.max_new_tokens=2",
    "forgetting_text=null",
)


def test_a_run_that_goes_on_runs_no_code_of_its_checkpoint(mark: Path, tmp_path: Path) -> None:
    """Whoever can plant a pickle can also write a manifest that fits."""
    from lora_zoo.training.checkpoints import seal

    words = ("steps=4", "trainer.save_steps=2", "tracking=none", *QUICK)
    assert wrapper(*words, at=tmp_path).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    result = json.loads((run / "result.json").read_text())
    kept = {k: v for k, v in result.items() if k not in ("adapter", "metrics", "history")}
    (run / "result.json").write_text(json.dumps(kept | {"state": "interrupted"}))
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    for file in PICKLED[:3]:
        shutil.rmtree(run)
        shutil.copytree(whole, run)
        checkpoint = run / "checkpoints" / "checkpoint-2"
        plant(checkpoint / file, {"state": Trap(mark)})
        (checkpoint / "manifest.json").unlink()
        seal(checkpoint)
        ended = wrapper(*words, "resume=true", at=tmp_path)
        assert not mark.exists(), file
        said = " ".join((ended.stdout + ended.stderr).split())
        assert ended.returncode == 0 and "checkpoint-2 is damaged and not used" in said, said
        assert "resuming from step 0" in said and "weights_only" not in said, "torch's advice is not ours"
    shutil.rmtree(run)
    shutil.copytree(whole, run)
    assert wrapper(*words, "resume=true", at=tmp_path).returncode == 0, "it is the planted file that stops it"


# --- data and configuration


def task(**settings: Any) -> Task:
    columns = {"prompt": "prompt", "target": "target"}
    return Task(
        **{"name": "t", "type": "causal_lm", "columns": columns, "metrics": ["bleu"], "lr": 1.0} | settings
    )


def test_a_data_sets_script_does_not_run(mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    (folder / "train.csv").write_text("prompt,target\na,b\n")
    for path in (folder, folder / "data.py"):
        for options in ({}, {"trust_remote_code": True}):
            with contextlib.suppress(*REFUSED):
                load_splits(task(dataset=str(path), options=options))
    assert not mark.exists()


@pytest.mark.parametrize("path", ["pandas", "webdataset", "{folder}"])
def test_pickled_data_run_no_code(path: str, mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.pkl").write_bytes(pickle.dumps(Trap(mark)))
    shutil.make_archive(str(folder / "train"), "tar", folder, "train.pkl")
    file = "train.tar" if path == "webdataset" else "train.pkl"
    with pytest.raises((*REFUSED, Exception)):
        load_splits(
            task(dataset=path.format(folder=folder), data_dir=str(folder), data_files={"train": file})
        )
    assert not mark.exists()


def test_a_task_file_is_data(mark: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text(f"name: !!python/object/apply:os.mkdir [{str(mark)!r}]\n")
    ended = wrapper("task=evil.yaml", "dry_run=true", at=tmp_path)
    assert ended.returncode and not mark.exists()
    (tmp_path / "evil.yaml").write_text(f"_target_: os.mkdir\nname: x\ndataset: {mark}\n")
    ended = wrapper("task=evil.yaml", "dry_run=true", at=tmp_path)
    assert ended.returncode == 2 and not mark.exists()


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "..", "~/x", "a\nb", "x" * 300, "C:\\evil", "\0"]
)
def test_names_become_folders_inside_the_folder_of_runs(name: str, tmp_path: Path) -> None:
    from lora_zoo.config.spec import readable_name
    from lora_zoo.core.variants import VARIANTS

    settings = Settings(lr=1.0, model=Model(name=name, path="pocket"), task=Task(name=name))
    made = claim_folder(tmp_path / "runs", f"{readable_name(settings, VARIANTS.find('lora'))}-0123abcd")
    assert made.parent == tmp_path / "runs" and made.resolve().parent == (tmp_path / "runs").resolve()
    assert made.is_dir() and list(tmp_path.iterdir()) == [tmp_path / "runs"]


def calls(path: Path) -> set[str]:
    """The names that the code in a file calls, as they are written there."""
    return {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


def test_no_code_here_unpickles_evaluates_or_trusts() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 400
    for path, call in ((each, call) for each in paths for call in calls(each)):
        name = call.partition("(")[0]
        assert not re.fullmatch(
            r"(c?[pP]ickle|dill|cloudpickle|joblib|marshal|shelve)\.\w+|yaml\.load", name
        ), (path, call)
        assert name not in ("exec", "os.system", "os.popen", "compile", "__import__"), (path, call)
        assert name != "eval" or "'__builtins__': {}" in call, (path, call)
        assert name != "torch.load" or "weights_only=True" in call, (path, call)
        assert "shell=True" not in call and "allow_pickle=True" not in call, (path, call)
        assert "trust_remote_code=True" not in call and "weights_only=False" not in call, (path, call)


# --- secrets

FORTY = "0123456789abcdef" * 2 + "01234567"
HUB_TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrSt" * 2
STAYS = [
    "pad_token: <pad>, max_new_tokens=3, tokenizer: x, projection_prng_key: 0",
    f"model.revision={FORTY}",
    f"commit {FORTY}",
    f"/cache/models--a--b/snapshots/{FORTY}/config.json",
    "hf://datasets/a/b@main/train.csv",
    "trainer.hub_token=null",
    "https://host/path?split=train&x=1",
    "unknown key of trainer 'hub_tokn'. Did you mean 'hub_token'? Choices: a, b",
    "hf_hub_download_with_a_long_name_of_an_ordinary_function",
    "sha256 " + "ab" * 32,
    "sk-learn, sk-learn-pipelines, task-pocket-s0-12345678, risk-averse-2024",
    "key=value, sort_key=rank, alpha_pattern={q_proj:4}, pass=forward",
]
GOES = {
    f"trainer.hub_token={HUB_TOKEN}": HUB_TOKEN,
    "++trainer.hub_token=a secret of several words": "several words",
    "{'api_key': 'ab,c', 'x': 1}": "ab,c",
    '{"password": "x y z", "n": 1}': "x y z",
    '"{\\"hub_token\\": \\"qwerty\\"}"': "qwerty",
    "api_key: 'qwerty'": "qwerty",
    "wandb.api_key=qwerty, rank=8": "qwerty",
    "https://me:qwerty@host/x": "qwerty",
    "https://qwerty@host/x": "qwerty",
    "s3://me:qw@erty@host/x": "qw@erty",
    "see https://host/x?a=1&token=qwerty&b=2": "qwerty",
    "https://h/x?X-Amz-Signature=qwerty&b=2": "qwerty",
    "Authorization: Basic cXdlcnR5": "cXdlcnR5",
    "bearer qwertyqwerty": "qwertyqwerty",
    f"wandb login {FORTY}": FORTY,
    f"the key {FORTY} is wrong": FORTY,
    "wandb_v1_" + "Qw_erty-" * 5: "Qw_erty",
    f"found {HUB_TOKEN}.": HUB_TOKEN,
    "task.options.storage_options={key: AAA1, secret: BBB2}": "AAA1",
    "task.options.storage_options.key=AAA1": "AAA1",
    "client_secret=qwerty": "qwerty",
    "PGPASS=qwerty": "qwerty",
    "alert_webhook=https://h/x/qwerty": "qwerty",
    "https://hooks.slack.com/services/T0/B0/qwerty": "qwerty",
    "notes: sk-live-4f9a8b7c": "4f9a8b7c",
    "sk-proj-AbCd3FgHiJkLmN": "AbCd3FgHiJkLmN",
    "a glpat-Qwertyqwertyqwerty z": "Qwertyqwerty",
    "xoxb-12345678-qwerty": "qwerty",
    "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl": "c2lnbmF0dXJl",
    "url=https://h/x?token=qwerty": "qwerty",
}


@pytest.mark.parametrize("text", STAYS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("text", GOES)
def test_what_is_a_secret_goes(text: str) -> None:
    masked = redacted(text)
    assert GOES[text] not in masked and MASK in masked
    assert redacted(masked) == masked


def test_a_tree_keeps_its_shape() -> None:
    tree = {
        "trainer": {"hub_token": HUB_TOKEN, "push_to_hub": False, "seed": 3},
        "list": [{"api_key": "x"}, ("password=x", 1.5, None, True)],
        "storage_options": {"key": "AAA1"},
        "token": None,
        "trust": {"token": True},
        "environment": {"commit": FORTY},
        "path": Path("data/train.csv"),
        "pad_token": "<pad>",
    }
    assert redacted(tree) == {
        "trainer": {"hub_token": MASK, "push_to_hub": False, "seed": 3},
        "list": [{"api_key": MASK}, (f"password={MASK}", 1.5, None, True)],
        "storage_options": MASK,
        "token": None,
        "trust": {"token": True},
        "environment": {"commit": FORTY},
        "path": Path("data/train.csv"),
        "pad_token": "<pad>",
    }
    assert tree["trainer"]["hub_token"] == HUB_TOKEN, "the original is as it was"


@pytest.mark.parametrize(
    "name", ["hub_token", "WANDB_API_KEY", "trainer.hub-token", "PGPASSWORD", "token", "AWS_SECRET"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["pad_token", "image_token", "tokens", "tokenizer", "key", "TOKENIZERS_PARALLELISM"]
)
def test_names_of_none(name: str) -> None:
    assert not is_secret(name)


def test_what_the_environment_netrc_and_the_hub_hold_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {
        "SOME_PASSWORD": 'pass/wörd "1',
        "HF_TOKEN": "plain-token",
        "MY_TOKEN_FILE": "/a/b/c/d",
        "SOME_KEY": "key-of-a-service",
        "PGPASS": "pass-of-pg",
        "ALERT_WEBHOOK": "https://alert.example/hook",
        "SHORT_TOKEN": "a1b2",
    }.items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key-of-netrc")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "token").write_text("token-of-hub\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert redacted("x key-of-a-service pass-of-pg https://alert.example/hook a1b2 xa1b2") == (
        "x *** *** *** *** xa1b2"
    )
    text = 'a pass/wörd "1 b plain-token c key-of-netrc d token-of-hub e /a/b/c/d'
    assert redacted(text) == "a *** b *** c *** d *** e /a/b/c/d"
    assert redacted(json.dumps(text)) == json.dumps("a *** b *** c *** d *** e /a/b/c/d")
    assert redacted("x%3Fy pass%2Fw%C3%B6rd%20%221") == "x%3Fy ***"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password another-key")
    os.utime(tmp_path / "netrc", (1, 1))
    assert redacted("another-key") == MASK
    monkeypatch.setenv("SOME_PASSWORD", "true")  # too short to be told from a word
    assert redacted("x=true") == "x=true"


def test_a_log_has_none_even_in_its_tracebacks() -> None:
    record: logging.LogRecord
    try:
        raise ValueError(f"cannot reach https://me:qwerty@host with {HUB_TOKEN}")
    except ValueError:
        record = logging.LogRecord("x", 40, "f", 1, "token %s", (HUB_TOKEN,), sys.exc_info())
    said = RedactingFormatter("%(levelname)s %(message)s").format(record)
    assert "qwerty" not in said and HUB_TOKEN not in said and "ValueError" in said and "Traceback" in said


def test_transformers_own_arguments_hide_the_hubs_token(tmp_path: Path) -> None:
    arguments = tf.TrainingArguments(output_dir=str(tmp_path), hub_token=HUB_TOKEN, use_cpu=True)
    for shown in (
        repr(arguments),
        str(arguments),
        arguments.to_json_string(),
        str(arguments.to_sanitized_dict()),
    ):
        assert HUB_TOKEN not in shown


PLANTED = {
    "WANDB_API_KEY": "5ec7e7" + FORTY[:34],
    "HF_TOKEN": "hf_PlantedPlantedPlantedPlanted",
    "HUGGING_FACE_HUB_TOKEN": "hf_OtherOtherOtherOtherOther",
    "SERVICE_PASSWORD": "correct horse battery",
}
TASK = """
type: {type}
dataset: {dataset}
data_files: {{train: {train}, test: test.csv}}
columns: {{prompt: prompt, target: target}}
template: "{{prompt}} https://me:TemplateSecret@host/"
metrics: [exact_match]
lr: 1e-3
max_new_tokens: 2
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's folder, with a login."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / ".netrc").write_text("machine api.wandb.ai login user password NetrcSecretNetrcSecret\n")
    (folder / ".netrc").chmod(0o600)
    return folder


def surroundings(home: Path) -> dict[str, str]:
    return {**PLANTED, "HOME": str(home), "NETRC": str(home / ".netrc")}


SECRETS = (
    *PLANTED.values(),
    "NetrcSecretNetrcSecret",
    "TemplateSecret",
    "UrlSecret",
    "QuerySecret",
    "TypedSecret",
)


def leaks(folder: Path, *said: str) -> dict[str, list[str]]:
    """Find secrets in every byte of every file under `folder` and in the output."""
    found: dict[str, list[str]] = {}
    texts = {str(path): path.read_bytes() for path in files(folder)} | {
        f"said {i}": s.encode() for i, s in enumerate(said)
    }
    for where, content in texts.items():
        if hits := [secret for secret in SECRETS if secret.encode() in content]:
            found[where] = hits
    return found


def test_a_run_writes_and_says_no_secret(home: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    rows = "prompt,target\n" + "".join(f"select {i},from {i}\n" for i in range(8))
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(rows)
    (tmp_path / "mine.yaml").write_text(TASK.format(type="causal_lm", dataset="csv", train="train.csv"))
    words = (
        f"task={tmp_path / 'mine.yaml'}",
        f"task.data_dir={tmp_path}",
        "steps=2",
        "merge=true",
        "threads=1",
    )
    words += ("trainer.save_steps=1", "task.name=../../evil", "model.name=/etc/evil")
    notes = "tracking.notes='${oc.env:SERVICE_PASSWORD} and ${oc.env:HF_TOKEN}'"
    ended = wrapper(*words, notes, at=work, **surroundings(home))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert leaks(work, ended.stdout, ended.stderr) == {}
    (run,) = (work / "runs").iterdir()
    assert {p.name for p in tmp_path.iterdir()} == {"home", "work", "train.csv", "test.csv", "mine.yaml"}
    names = {"result.json", "config.yaml", "run.log", "adapter", "merged", "wandb", "checkpoints"}
    assert names <= {path.name for path in run.iterdir()}
    (mirrored,) = run.glob("wandb/offline-run-*/*.wandb")
    for kept in (run / "config.yaml", run / "result.json", mirrored):
        assert b"https://***@host/" in kept.read_bytes(), f"{kept} does not hold the template"
    assert b"*** and ***" in mirrored.read_bytes()


def test_a_run_that_fails_writes_and_says_no_secret(home: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    url = "https://me:UrlSecret@127.0.0.1:9/x.csv?token=QuerySecret"
    (tmp_path / "mine.yaml").write_text(TASK.format(type="causal_lm", dataset="csv", train=f'"{url}"'))
    (work / "test.csv").write_text("prompt,target\na,b\n")
    ended = wrapper(f"task={tmp_path / 'mine.yaml'}", "steps=1", at=work, **surroundings(home))
    assert ended.returncode in (1, 2)
    assert leaks(work, ended.stdout, ended.stderr) == {}
    (result,) = work.rglob("result.json")
    assert json.loads(result.read_text())["state"] == "failed"
    assert "https://***@127.0.0.1:9/x.csv" in result.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.hub_token=TypedSecret",),
        ("+tracking.api_key=TypedSecret",),
        ("task.options.storage_options={token:TypedSecret}",),
        ("-m", "trainer.hub_token=TypedSecret,TypedSecret2"),
        ("-m", "seed=0,1", "++trainer.hub_token=TypedSecret"),
        ("model=https://me:TypedSecret@host/x",),
        ("task.dataset=https://me:TypedSecret@host/x",),
    ],
    ids=lambda words: words[-1].partition("=")[0],
)
def test_a_secret_that_is_typed_is_not_written_or_said_again(
    words: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    ended = wrapper(*words, "dry_run=true", at=work, **surroundings(home))
    assert leaks(work, ended.stdout, ended.stderr) == {}
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
