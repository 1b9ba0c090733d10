"""The command line: what it accepts, and how it says no."""

import gzip
import itertools
import json
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lora_zoo.claims.tiny import Tiny
from lora_zoo.config import aliases, choices, command_line, help_text
from lora_zoo.config import compose as precheck
from lora_zoo.config.groups import GROUPS, folder, options
from lora_zoo.config.schema import Settings, register
from lora_zoo.config.validate import check
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import inject
from lora_zoo.injection.targets import ROLES
from lora_zoo.runs.identity import identified, specify
from lora_zoo.sweeps import progress
from lora_zoo.training.arguments import check_trainer
from lora_zoo.training.dry_run import previewed
from lora_zoo.training.experiment import target_arguments

register()

BAD = {
    "+variant=dorra": ["unknown variant 'dorra'", "'dora'", "pissa"],
    "varient=dora": ["unknown key 'varient'", "'variant'"],
    "rnak=8": ["unknown key 'rnak'", "'rank'"],
    "+foo=1": ["unknown key 'foo'"],
    "rank=abc": ["rank", "'abc'", "Integer"],
    "rank=0": ["rank must be at least 1; got 0"],
    "rank=": ["rank"],
    "lr=-1": ["lr must be above 0; got -1"],
    "lr=fast": ["lr", "'fast'", "Float"],
    "alpha=0": ["alpha must be above 0; got 0"],
    "batch_size=0": ["batch_size must be at least 1"],
    "lora_dropout=1": ["lora_dropout must be below 1"],
    "steps=0": ["steps must be at least 1"],
    "steps=3 epochs=2": ["steps=3", "epochs=2", "one"],
    "seed=-1": ["seed must be at least 0"],
    "eval_splits=[tset]": ["unknown eval_splits 'tset'", "'test'"],
    "task=pocketsql": ["unknown task 'pocketsql'", "'pocket-sql'"],
    "task.type=casual_lm": ["unknown task.type 'casual_lm'", "'causal_lm'"],
    "task.lrr=1": ["unknown key of task 'lrr'", "'lr'"],
    "budget=some": ["budget=some", "300k"],
    "budget=20k rank=4": ["budget=", "rank="],
    "rank_pattern={q:x}": ["rank_pattern.q", "an integer"],
    "alpha_pattern={q:x}": ["alpha_pattern.q", "a number above 0", "2r"],
    "dry_run=maybe": ["dry_run", "maybe"],
    "task=sick": ["task sick", "train.tsv", "task.data_dir"],
    "task=causal_lm": ["task.dataset must be given"],
    "model=pockt": ["unknown model 'pockt'", "'pocket'"],
    "model=/no/such/folder": ["model=/no/such/folder", "no such folder"],
    "model=hub": ["model.path must be given"],
    "model.dtype=float8": ["unknown model.dtype 'float8'", "float32"],
    "variant.foo=1": ["unknown hyperparameter 'foo'"],
    "+variant=vera variant.d_initail=1": ["unknown hyperparameter 'd_initail'", "'d_initial'"],
    "tracking=wandbb": ["unknown tracking 'wandbb'", "'wandb'"],
    "tracking.mode=onlin": ["unknown tracking.mode 'onlin'", "'online'"],
    "rank=[": ["rank=["],
    "variant=lora,dora": ["variant=lora,dora", "-m"],
    "alpha=${mul:2,${rnk}}": ["rnk"],
}


@pytest.mark.parametrize("line", BAD)
def test_a_mistake_ends_in_one_line_that_names_it(line: str) -> None:
    with pytest.raises((precheck.Mistake, ValueError)) as caught:
        precheck.check(command_line.rewritten(line.split()), multirun=False)
    message = str(caught.value)
    assert "\n" not in message
    for part in BAD[line]:
        assert part in message, message


def test_exit_code_2_and_no_traceback() -> None:
    ended = _shell("+variant=dorra")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_help_lists_what_exists_quickly_and_without_torch() -> None:
    began = time.perf_counter()
    ended = _shell("--help")
    assert time.perf_counter() - began < 10  # a noisy machine's bound; 0.4 s when quiet
    for name in [*VARIANTS, *options("model"), *options("task"), "target_modules", *ROLES]:
        assert name in ended.stdout, name
    probe = "import sys; from lora_zoo.config import help_text, compose; help_text.text();"
    loaded = "print([m for m in ('torch', 'transformers', 'wandb', 'datasets') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", probe + loaded], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_mistake_is_found_without_torch() -> None:
    probe = (
        "import sys; from lora_zoo import run\n"
        "try: run.main(['+variant=dorra'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


@pytest.mark.parametrize("plus", ["", "+"])
def test_a_variant_can_be_given_with_or_without_a_plus(plus: str) -> None:
    (settings,) = precheck.check(
        command_line.rewritten([f"{plus}variant=dora", f"{plus}rank=4"]), multirun=False
    )
    assert settings.variant["name"] == "dora"
    assert settings.rank == 4
    assert settings.alpha == "auto"
    assert specify(settings).settings.alpha == 8.0  # DoRA's convention: twice the rank


@pytest.mark.parametrize("name", options("variant"))
def test_a_variants_yaml_repeats_no_default(name: str) -> None:
    """Defaults stand on the class; a YAML holds what follows from other keys or differs."""
    node = yaml.safe_load((folder() / "variant" / f"{name}.yaml").read_text())
    own, known = node.pop("variant"), hyperparameters(VARIANTS[name])
    assert own.pop("name") == name
    assert set(own) <= set(known) and all("${" in str(value) for value in own.values())
    general = {f.name: f.default for f in fields(Settings)}
    assert all("${" in str(value) or value != general[key] for key, value in node.items())


@pytest.mark.parametrize("name", options("variant"))
def test_a_run_has_every_hyperparameter_of_its_variant_as_the_library_has(name: str) -> None:
    (settings,) = precheck.check(command_line.rewritten([f"variant={name}", "rank=4"]), multirun=False)
    spec, cls = specify(settings), VARIANTS[name]
    for key, parameter in hyperparameters(cls).items():
        value = spec.hyperparameters[key]
        assert value == parameter.default or key in ("rank", "alpha", "projection_prng_key"), key
    if "alpha" in hyperparameters(cls):
        assert spec.hyperparameters["alpha"] == cls.alpha_of("auto", cls.used_rank(spec.hyperparameters))
        there = {"target_modules": ["q", "v"], "modules_to_save": []}
        arguments = target_arguments(spec.settings, []) | spec.hyperparameters | there
        run, library = inject(Tiny(), cls, **arguments), inject(Tiny(), name, **there, rank=4)
        assert run.hyper == library.hyper
        assert run.scales() == library.scales() == sorted({a.scale for a in run.adapters.values()})


def test_a_preset_and_its_variant_are_one_run() -> None:
    def identity(*words: str) -> str:
        (settings,) = precheck.check(command_line.rewritten([*words, "rank=4"]), multirun=False)
        return specify(settings).identity

    assert identity("variant=pissa") == identity("variant=lora", "init=pissa")
    assert identity("variant=pissa") != identity("variant=lora")


def test_every_variant_has_a_yaml_and_every_yaml_a_variant() -> None:
    assert set(options("variant")) == set(VARIANTS)


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_composes_and_says_what_it_is(group: str) -> None:
    """Each variant, recipe and experiment composes in a test of its own."""
    with initialize_config_dir(str(folder()), version_base="1.3"):
        for name, about in options(group).items():
            assert about, f"{group}/{name} has no comment line"
            if group not in ("variant", "recipe", "experiment"):
                compose("config", [f"{group}={name}"])


def composed(*words: str) -> Settings:
    return precheck.check(command_line.rewritten(["variant=vera", *words]), multirun=False)[0]


def test_a_recipe_is_its_keys_and_the_command_line_stands_over_it() -> None:

    keys = ("rank=8", "lora_dropout=0.05", "target_modules=[lora_query,lora_value]", "lr=3e-4")
    trainer = ("lr_scheduler_type=cosine", "warmup_steps=100", "weight_decay=0.01")
    by_hand = [*keys, "alpha=16", "batch_size=128", *(f"trainer.{word}" for word in trainer)]
    for recipe in ("recipe=litgpt", "+recipe=litgpt", "preset=litgpt"):
        assert composed(recipe) == composed(*by_hand)
    assert specify(composed("recipe=litgpt")).identity == specify(composed(*by_hand)).identity
    assert composed("recipe=litgpt", "rank=4", "lr=1e-3").rank == 4
    assert composed("lr=1e-3", "recipe=litgpt").lr == 1e-3


@pytest.mark.parametrize("name", options("recipe"))
def test_a_recipe_would_run_on_a_model_that_stands_for_the_papers(name: str) -> None:
    """And with other variants: each is tried with one of the recipes."""
    task = "cola" if name.endswith("glue") else "pocket-sql"
    words = [f"recipe={name}", f"task={task}", "dry_run=true"]
    (settings,) = precheck.check(command_line.rewritten(words), multirun=False)
    found = previewed(specify(settings))
    assert found.rows and not found.unmatched
    check_trainer(settings.trainer)
    known = [*options("recipe")]
    for variant in [*VARIANTS][known.index(name) :: len(known)]:
        other = replace(settings, variant={"name": variant}, init="auto")
        check(other)
        assert specify(other).variant.name == variant


def test_a_recipe_of_several_tasks_has_the_numbers_of_each() -> None:
    def numbers(recipe: str, task: str, *words: str) -> tuple[str, Any, Any, Any]:
        (found,) = precheck.check(
            command_line.rewritten([f"recipe={recipe}", f"task={task}", "dry_run=true", *words]),
            multirun=False,
        )
        return str(found.variant["name"]), found.lr, found.batch_size, found.task.epochs

    assert numbers("lora_roberta_glue", "cola") == ("lora", 4e-4, 32, 80)
    assert numbers("lora_roberta_glue", "sst2") == ("lora", 5e-4, 16, 60)
    assert numbers("vera_roberta_glue", "rte") == ("vera", 4e-3, 64, 160)
    assert numbers("vera_roberta_glue", "rte", "variant=dora", "lr=1e-3") == ("dora", 1e-3, 64, 160)
    (other,) = precheck.check(["variant=vera", "recipe=lora_ga_metamath"], multirun=False)
    assert other.init == "auto", "VeRA has no start of LoRA-GA's"
    assert numbers("lora_roberta_glue", "wnli", "lr=1e-4") == ("lora", 1e-4, 16, 10), "the task's own batch"


def test_alpha_can_be_an_interpolation() -> None:
    (settings,) = precheck.check(command_line.rewritten(["rank=4", "alpha=${mul:3,${rank}}"]), multirun=False)
    assert settings.alpha == "3r"


@pytest.mark.parametrize("pattern", [r".*layers\.[01]\..*q_proj", r".*\.(q|v)_proj", r".*attn\.[qv]_proj"])
def test_a_regular_expression_needs_no_quotes(pattern: str) -> None:
    (settings,) = precheck.check(command_line.rewritten([f"target_modules={pattern}"]), multirun=False)
    assert settings.target_modules == pattern


def test_a_choice_of_targets_is_no_regular_expression() -> None:
    words = command_line.rewritten(["-m", "target_modules=choice([q],[q,v])"])
    assert command_line.swept(words) == ["target_modules"]


def test_a_folder_becomes_a_model_with_a_readable_name(tmp_path) -> None:
    (tmp_path / "tiny-bert").mkdir()
    (tmp_path / "tiny-bert" / "config.json").write_text("{}")
    ready = command_line.rewritten([f"model=pocket,{tmp_path}/tiny-bert"])
    assert ready == ["model=pocket,tiny-bert"]
    assert [s.model.path for s in precheck.check(ready, multirun=True)] == ["pocket", f"{tmp_path}/tiny-bert"]
    assert choices.originals(["model=tiny-bert"]) == [f"model={tmp_path}/tiny-bert"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("glob(*)", set(VARIANTS)),
        ("glob([lora*,vera],exclude=*_*)", {"lora", "vera"}),
    ],
)
def test_hydra_s_glob_means_all_that_is_registered(pattern: str, found: set[str]) -> None:
    (ready,) = command_line.rewritten([f"+variant={pattern}"])
    assert set(ready.partition("=")[2].split(",")) == found


def test_a_glob_that_matches_nothing_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"variant=glob\(zz\*\) matches none of the choices: abba, "):
        command_line.rewritten(["variant=glob(zz*)"])


def test_a_hub_name_becomes_a_model() -> None:
    (settings,) = precheck.check(command_line.rewritten(["model=FacebookAI/roberta-base"]), multirun=False)
    assert (settings.model.name, settings.model.path) == ("roberta-base", "FacebookAI/roberta-base")


def test_a_yaml_file_becomes_a_task(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "type: causal_lm\ndataset: pocket-sql\nmetrics: [exact_match]\nlr: 1e-3\n"
    )
    (settings,) = precheck.check(command_line.rewritten([f"task={tmp_path}/mine.yaml"]), multirun=False)
    assert (settings.task.name, settings.task.type, settings.lr) == ("mine", "causal_lm", 1e-3)


OLD = {
    "task.kind=choice": ("task.type", "multiple_choice"),
    "task.path=pocket-nli": ("task.dataset", "pocket-nli"),
    "task.validation_share=0.5": ("task.validation_fraction", 0.5),
    "task.terminator=x": ("task.stop", "x"),
    "retention=pocket": ("forgetting_text", "pocket"),
    "zero_shot=false": ("eval_before_training", False),
}


@pytest.mark.parametrize("typed", OLD)
def test_a_key_has_its_old_name_for_one_release(typed: str, caplog: pytest.LogCaptureFixture) -> None:
    aliases._WARNED.clear()
    (settings,) = precheck.check(command_line.rewritten([typed]), multirun=False)
    key, value = OLD[typed]
    *part, name = key.split(".")
    assert getattr(settings.task if part else settings, name) == value
    assert f"{typed.partition('=')[0]} is called {key} now" in caplog.messages[0]


def test_old_names_in_a_sweep_and_of_an_option(caplog: pytest.LogCaptureFixture) -> None:
    aliases._WARNED.clear()
    ready = command_line.rewritten(["-m", "task.kind=generation,choice,seq2seq", "+zero_shot=true,false"])
    assert ready == ["-m", "task.type=causal_lm,multiple_choice,seq2seq", "eval_before_training=true,false"]
    assert command_line.rewritten(["task=generation"]) == ["task=causal_lm"]
    assert len(caplog.messages) == len(set(caplog.messages)) == 5


def test_old_names_in_files_of_tasks_and_experiments(tmp_path) -> None:
    task = "kind: choice\npath: pocket-nli\nmetrics: [accuracy]\nlr: 1e-3\nlabels: [a, b]\n"
    (tmp_path / "mine.yaml").write_text(task)
    about = {"title": "t", "question": "q?", "grid": {"zero_shot": [True, False], "variant": ["zero_shot"]}}
    experiment = {"retention": "pocket", "experiment": about | {"rows": ["zero_shot"]}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(experiment))
    given = ["-m", f"task={tmp_path}/mine.yaml", f"experiment={tmp_path}/study.yaml"]
    jobs = precheck.check(command_line.overrides(command_line.rewritten(given)), multirun=True)
    assert [s.eval_before_training for s in jobs] == [True, False]
    assert {s.task.type for s in jobs} == {"multiple_choice"} and jobs[0].forgetting_text == "pocket"
    assert jobs[0].variant["name"] == "zero_shot", "a value is no key"
    assert jobs[0].experiment["rows"] == ["eval_before_training"]
    assert set(jobs[0].experiment["grid"]) == {"eval_before_training", "variant"}


def test_a_renamed_key_changes_no_recorded_identity() -> None:
    archive = folder().parent / "experiments" / "lora_table7" / "results.jsonl.gz"
    with gzip.open(archive, "rt") as lines:
        record = json.loads(next(lines))
    assert record["config"]["task"]["kind"] == "generation"
    for config in (record["config"], aliases.modern(record["config"])):
        assert identified(config, VARIANTS["lora"])[1]["settings"] == record["made_of"]["settings"]


def test_a_recorded_configuration_in_old_names_is_the_same_run() -> None:
    (settings,) = precheck.check(command_line.rewritten(["task=pocket-nli"]), multirun=False)
    config = asdict(settings)
    old = aliases.original(config)
    assert old["task"]["kind"] == "choice" and old["task"]["path"] == "pocket-nli" and "retention" in old
    assert "type" not in old["task"] and "forgetting_text" not in old
    assert aliases.modern(old) == config == aliases.modern(config)
    assert identified(old, VARIANTS["lora"])[0] == identified(config, VARIANTS["lora"])[0]
    assert identified(old, VARIANTS["lora"])[1] == identified(config, VARIANTS["lora"])[1]
    changed = config | {"task": config["task"] | {"type": "causal_lm"}}
    assert identified(changed, VARIANTS["lora"])[0] != identified(config, VARIANTS["lora"])[0]


def test_what_the_front_has_checked_is_not_resolved_again(tmp_path, monkeypatch) -> None:
    from lora_zoo import run

    found, resolved = [], precheck.resolved
    monkeypatch.setattr(precheck, "resolved", lambda config: found.append(config) or resolved(config))
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run.main(["-m", "rank=1,2", "seed=0,1", "dry_run=true"])
    assert end.value.code == 0
    assert len(found) == 4, "four jobs, of which the front has seen two"


def test_a_sweep_is_checked_value_by_value() -> None:
    with pytest.raises(precheck.Mistake, match="dorra"):
        precheck.check(["variant=lora,dora,dorra", "rank=1,2"], multirun=True)
    jobs = precheck.check(["variant=lora,dora,vera", "target_modules=[q],[q,v]"], multirun=True)
    assert {s.variant["name"] for s in jobs} == {"lora", "dora", "vera"}
    assert [s.target_modules for s in jobs] == [["q"], ["q", "v"], ["q"]]


@pytest.mark.parametrize(
    "words",
    [
        "lr=${mul:2,${task.lr}} task.lr=1e-3,2e-3",
        "variant=lora,full task.lr=1e-3,2e-3",
        "recipe=lora_roberta_glue,lora_gpt2_nlg task.lr=1e-3,2e-3",
        "lr=1e-3 task.lr=2e-3 rank=2,4",
        "epochs=null task.steps=10,20",
    ],
)
def test_a_default_of_the_task_may_be_swept_where_a_run_takes_it(words: str) -> None:
    assert precheck.check(command_line.rewritten(["-m", *words.split()])[1:], multirun=True)


def test_sweep_names_are_readable_and_tell_sweeps_apart() -> None:
    one = command_line.sweep_name(["-m", "variant=lora,dora", "rank=1,2"])
    other = command_line.sweep_name(["-m", "variant=lora,dora", "rank=1,4"])
    assert one.startswith("sweep-variant-rank-")
    assert one != other
    moved = command_line.sweep_name(["-m", "variant=lora,dora", "rank=1,2", "out=elsewhere"])
    assert one == moved


def test_help_text_shows_each_key() -> None:
    for key in ("rank", "alpha", "lora_dropout", "batch_size", "eval_splits"):
        assert f"  {key} " in help_text.text()


def _shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_zoo.run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_sweep_begins_when_each_choice_of_its_options_has_been_composed_once(tmp_path: Path) -> None:
    with initialize_config_dir(str(folder()), version_base="1.3"):
        sweeper = instantiate(compose("config", return_hydra_config=True).hydra.sweeper)
    composed: list[list[str]] = []
    loader = SimpleNamespace(
        load_sweep_config=lambda master_config, sweep_overrides: composed.append(sweep_overrides)
    )
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    sweeper.hydra_context = SimpleNamespace(config_loader=loader)
    asked = [
        ["variant=lora", "variant=dora"],
        ["+task=pocket-nli", "+task=pocket-sql"],
        [f"seed={n}" for n in range(9)],
    ]
    sweeper.validate_batch_is_legal([*itertools.product(*asked)])
    assert sorted(job[:2] for job in composed) == sorted(map(list, itertools.product(*asked[:2])))
    progress.note(tmp_path, 0, 0)
    assert progress.progress(tmp_path) == "1 of 36"
