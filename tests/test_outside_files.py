"""Files from outside hold settings and call nothing; a key that is accepted reaches a consumer."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from lora_zoo import run
from lora_zoo.config import command_line, compose
from lora_zoo.config.outside import DEEPEST, LARGEST, check_keys, read_yaml
from lora_zoo.config.schema import Model, Settings, Task, Tracking, register
from lora_zoo.tasks.data import load_splits

register()
ABOUT = {"title": "T", "question": "Q", "grid": {"rank": [1]}, "rows": ["rank"]}
CALL = {"_target_": "os.mkdir", "path": "sprung"}


def refusal(*words: str) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(ValueError) as refused:
        multirun = "-m" in words
        compose.check(command_line.overrides(command_line.rewritten(list(words))), multirun=multirun)
    return str(refused.value)


def experiment(folder: Path, **content: Any) -> str:
    (folder / "x.yaml").write_text(yaml.safe_dump({"experiment": ABOUT} | content))
    return f"experiment={folder}/x.yaml"


EVIL: dict[str, tuple[dict[str, Any], str]] = {
    "callbacks": ({"hydra": {"callbacks": {"x": CALL}}}, "unknown key 'hydra'"),
    "a log's handler": ({"hydra": {"job_logging": {"handlers": {"x": {"()": "os.abort"}}}}}, "'hydra'"),
    "a group of Hydra's": ({"hydra/launcher": "joblib"}, "unknown key 'hydra/launcher'"),
    "defaults": ({"defaults": [{"override /hydra/job_logging": "x"}]}, "defaults: {"),
    "a default that is a file": ({"defaults": ["../x"]}, "defaults: '../x'"),
    "a target below": ({"trainer": {"a": [{"b": CALL}]}}, "trainer.a.b._target_"),
    "a target in a text": ({"task": {"options": {"x": "${oc.create:{_target_: os.abort}}"}}}, "_target_"),
    "a grid over Hydra's": ({"experiment": ABOUT | {"grid": {"hydra.callbacks.x": [1]}}}, "'hydra'"),
    "a grid that calls": ({"experiment": ABOUT | {"grid": {"trainer.x": [CALL]}}}, "_target_"),
    "a grid of code": ({"experiment": ABOUT | {"grid": {"variant": ["./evil.py"]}}}, "names code"),
    "a key with a value": ({"experiment": ABOUT | {"grid": {"rank=1 hydra.mode": [1]}}}, "unknown key"),
    "a file of code": ({"files": ["evil.py"]}, "may run code"),
    "a grid of initialisations": ({"experiment": ABOUT | {"grid": {"init": ["./evil.py"]}}}, "names code"),
    "a grid of programs": ({"experiment": ABOUT | {"grid": {"program": ["./evil.py"]}}}, "names code"),
    "a grid of files": ({"experiment": ABOUT | {"grid": {"files": [["evil.py"]]}}}, "may run code"),
    "an initialisation of a file": ({"init": "./evil.py"}, "names code"),
    "a program of a file": ({"program": {"name": "./evil.py"}}, "evil"),
    "remote code": ({"model": {"trust_remote_code": True}}, "may run code"),
    "a metric's file": ({"task": {"metrics": ["./evil.py"]}}, "names code"),
    "a nested key": ({"task": {"foo": 1}}, "unknown key of task 'foo'"),
    "a nested key's own": ({"model": {"max_memory": 1}}, "unknown key of model 'max_memory'"),
    "a title that is none": ({"experiment": ABOUT | {"title": {"a": 1}}}, "experiment.title must be a text"),
}


@pytest.mark.parametrize("what", EVIL)
def test_an_experiment_holds_settings_and_calls_nothing(what: str, tmp_path: Path) -> None:
    content, said = EVIL[what]
    line = refusal(experiment(tmp_path, **content))
    assert said in line and "\n" not in line, line


def test_an_experiment_may_hold_any_setting(tmp_path: Path) -> None:
    held = {"task": {"sizes": {"train": 3}}, "trainer": {"optim": "sgd"}, "rank": 4}
    ready = command_line.rewritten(
        [experiment(tmp_path, **held, defaults=["_self_", {"override /variant": "vera"}])]
    )
    (job,) = compose.check(command_line.overrides(ready), multirun=False)
    assert (job.task.sizes["train"], job.trainer["optim"], job.variant["name"]) == (3, "sgd", "vera")


def dotted(schema: Any = Settings, parent: str = "") -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(schema):
        yield f"{parent}{f.name}", f.type
        if dataclasses.is_dataclass(f.type):
            yield from dotted(f.type, f"{parent}{f.name}.")


KEYS = dict(dotted())
PARTS = {"": Settings, "model.": Model, "task.": Task, "tracking.": Tracking}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PARTS)), st.from_regex(r"[a-z_]{1,12}", fullmatch=True))
def test_a_key_is_accepted_exactly_where_the_schema_has_it(part: str, name: str) -> None:
    """From a file and with `+`, at every depth."""
    content: dict[str, Any] = {name: None}
    content = {part.rstrip("."): content} if part else content
    known = f"{part}{name}" in KEYS
    try:
        check_keys(content)
    except ValueError:
        assert not known
    else:
        assert known
    config = OmegaConf.structured(Settings)
    with open_dict(config):
        OmegaConf.update(config, f"{part}{name}", "1", force_add=True) if not known else None
    if known:
        compose.check_known(config)
    else:
        with pytest.raises(ValueError, match=f"'{name}'"):
            compose.check_known(config)


@pytest.mark.parametrize(
    "words",
    [
        "hydra.job.chdir=true",
        "hydra.callbacks.x=1",
        "hydra.job_logging.handlers={}",
        "hydra.job.env_set.LD_PRELOAD=x",
        "hydra.output_subdir=x",
        "hydra/job_logging=${oc.decode:1}",
        "hydra.launcher.x={_target_:os.abort}",
        "hydra.launcher.x=${variant.x}",
        "hydra.launcher._target_=os.abort",
        "trainer.x={y:{_target_:os.abort}}",
        "+model.bits=4",
        "+model.max_memory=1",
        "+task.foo=1",
        "+tracking.foo=1",
        "+experiment.foo=1",
        "task=pocket-sql task.data_dir=.",
        "task=pocket-nli task.splits={test:x}",
        "task=pocket-sql +task.options.difficulty=2",
        "task=classification task.dataset=csv task.data_dir=no-such-folder",
    ],
)
def test_what_nothing_reads_or_what_calls_is_refused(words: str) -> None:
    line = refusal(*words.split())
    assert "\n" not in line and "Traceback" not in line
    assert words.rsplit(maxsplit=1)[-1].lstrip("+").partition("=")[0].rpartition(".")[2] in line


@pytest.mark.parametrize("words", ["hydra.verbose=true", "hydra/launcher=joblib hydra.launcher.n_jobs=2"])
def test_what_says_where_and_how_a_sweep_runs_is_let_through(words: str) -> None:
    assert compose.check(words.split(), multirun=True)


def test_a_sweep_whose_trainer_cannot_be_made_is_one_line_and_makes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["-m", "seed=0,1", "trainer.weight_decay=-5", "tracking=none", f"out={tmp_path / 'o'}"])
    assert ended.value.code == 2 and not (tmp_path / "o").exists()
    assert capsys.readouterr().err.strip().count("\n") == 0


BOMBS = {
    "too deep": "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
    "very deep": "a: " + "[" * 100_000,
    "too large": f"a: {'x' * LARGEST}",
    "laughs": "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "not text": "\ud800",
    "no mapping": "[1, 2]",
    "a tag": "a: !!python/object/apply:os.abort []",
    "a long number": f"a: {'9' * 5000}",
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_file_that_grows_beyond_bounds_is_refused(what: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(BOMBS[what].encode(errors="surrogatepass"))
    with pytest.raises(ValueError) as refused:
        read_yaml(tmp_path / "x.yaml")
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_data_dir_is_the_folder_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, words in {"here": ("cat", "dog"), "right": ("yes", "no")}.items():
        (tmp_path / folder).mkdir()
        rows = [f"w {i},{words[i % 2]}" for i in range(20)]
        (tmp_path / folder / "train.csv").write_text("\n".join(["text,label", *rows]))
    monkeypatch.chdir(tmp_path / "here")
    said = {"name": "t", "type": "classification", "dataset": "csv", "metrics": ["accuracy"], "lr": 1.0}
    splits = load_splits(Task(**said, data_dir=str(tmp_path / "right")))
    assert set(map(str, splits["train"]["label"])) <= {"yes", "no", "0", "1"}
    assert json.dumps(splits["train"][0]).count("cat") == 0
