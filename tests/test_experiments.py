"""Experiments: a YAML becomes a sweep, and what its runs record beside metrics."""

import copy
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from lora_zoo import inject, updates
from lora_zoo import runs as results
from lora_zoo.analysis.integrity import sound
from lora_zoo.config import auto, choices, command_line, compose, experiments
from lora_zoo.config.groups import options
from lora_zoo.config.schema import Model, Settings, register
from lora_zoo.core.init import Factors, init_names, initial_factors
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.preview import preview
from lora_zoo.models import activations
from lora_zoo.models.loading import load_model, load_tokenizer
from lora_zoo.pocket import HUB
from lora_zoo.tasks.forgetting import HeldOutLoss, held_out, is_measured
from lora_zoo.training.experiment import Experiment
from tests.processes import run as wrapper
from tests.test_training import collate, examples, model, trainer

register()

MINE = {
    "title": "Ranks",
    "question": "Which?",
    "grid": {
        "rank": [1, 2],
        "target_modules": ["[q]", ["q", "v"]],
        "eval_before_training": [True],
        "steps": [None],
    },
    "rows": ["rank"],
}


def written(folder: Path, about: object = MINE, **settings: object) -> str:
    (folder / "mine.yaml").write_text(yaml.safe_dump({"experiment": about, **settings}, sort_keys=False))
    return f"experiment={folder}/mine.yaml"


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_is_a_sweep_that_composes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most four of its jobs are composed here: what each variant is by itself, its own tests compose."""
    every = compose._representatives

    def some(*of: Any) -> list[list[str]]:
        jobs = list(every(*of))
        return jobs[:: math.ceil(len(jobs) / 4)]

    monkeypatch.setattr(compose, "_representatives", some)
    ready = command_line.rewritten(["-m", f"+experiment={name}", "dry_run=true"])  # no file is looked for
    arguments, _ = auto.taken(command_line.overrides(ready))
    jobs = compose.check(arguments, multirun=True)
    about = jobs[0].experiment
    assert about["name"] == name and about == experiments.read(name)["experiment"]
    assert len(about["grid"]["seed"]) >= 5
    grid = experiments.grid_values(about["grid"])
    several = {key for key, values in grid.items() if len(values) > 1 or "glob(" in str(values[0])}
    assert set(command_line.swept(ready)) == several
    axes = {*about["rows"], *about.get("columns", []), *about.get("tune", [])}
    assert several <= axes | {"seed"} <= grid.keys(), "an axis of the grid has no place in the table"
    assert command_line.sweep_name(ready).startswith(f"{name}-")


@pytest.mark.parametrize("name", options("experiment"))
def test_a_reference_names_cells_of_the_table_and_values_of_its_grid(name: str) -> None:
    about = experiments.read(name)["experiment"]
    for row in about.get("reference", []):
        for key in {*about["rows"], *about.get("columns", [])}:
            values = [str(value).strip("[]") for value in about["grid"][key]]
            assert (
                str(row[key]) in (values if key != "task" else [*values, *options("task")]) or key == "rank"
            ), row


def test_the_grid_is_swept_unless_the_command_line_says_otherwise(tmp_path: Path) -> None:
    ready = command_line.rewritten(["-m", f"+{written(tmp_path)}", "rank=4"])
    assert ready == [
        *("-m", "target_modules=[q],[q,v]", "eval_before_training=true", "steps=null"),
        *("experiment=mine", "rank=4"),
    ]
    jobs = compose.check(command_line.overrides(ready), multirun=True)
    assert [(s.rank, s.target_modules) for s in jobs] == [(4, ["q"]), (4, ["q", "v"])]
    assert jobs[0].experiment["title"] == "Ranks"
    assert choices.originals(["experiment=mine"]) == [written(tmp_path)]


def test_settings_of_an_experiment_stand_over_its_variant_and_below_the_command_line(tmp_path: Path) -> None:
    given = written(tmp_path, batch_size=4, alpha=3)
    (one, *_) = compose.check(
        command_line.overrides(command_line.rewritten(["-m", given, "alpha=5"])), multirun=True
    )
    assert (one.batch_size, one.alpha) == (4, 5)


def test_one_run_of_an_experiment_is_its_keys_with_one_value_each(tmp_path: Path) -> None:
    given = ["rank=2", "target_modules=[q]", written(tmp_path)]
    (settings,) = compose.check(command_line.overrides(command_line.rewritten(given)), multirun=False)
    assert settings.rank == 2
    with pytest.raises(ValueError, match=r"a sweep over rank, target_modules.*-m"):
        command_line.rewritten(given[2:])


WRONG = {
    "the file must give experiment.title": MINE | {"title": ""},
    "the file must give experiment.grid": {k: v for k, v in MINE.items() if k != "grid"},
    "Did you mean 'columns'": MINE | {"column": ["rank"]},
    "experiment.rows must be a list; got 'rank'": MINE | {"rows": "rank"},
    "experiment.grid must give each key a list": MINE | {"grid": {"rank": 3}},
    "needs a number as value; got": MINE | {"reference": [{"rank": 1}]},
    "Did you mean 'intruders'": MINE | {"deltas": ["intruder"]},
    "experiment.deltas must be a list; got 'spectra'": MINE | {"deltas": "spectra"},
    "experiment.adapters must be true or false; got 'yes please'": MINE | {"adapters": "yes please"},
    "the file must hold `experiment:`": [],
}


@pytest.mark.parametrize("said", WRONG)
def test_a_file_that_is_no_experiment_says_why(said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said.replace("?", ".").replace("(", ".")):
        command_line.rewritten(["-m", written(tmp_path, WRONG[said])])


def test_a_grid_may_name_another_key_of_the_job(tmp_path: Path) -> None:
    about = MINE | {"grid": {"rank": [1, 2], "alpha": [8, "$rank"]}}
    ready = command_line.rewritten(["-m", f"+{written(tmp_path, about)}"])
    jobs = compose.check(command_line.overrides(ready), multirun=True)
    assert [(s.rank, s.alpha) for s in jobs] == [(1, 8), (2, "1r")], (
        "each value once; a multiple of the rank waits"
    )
    assert {str(s.experiment["grid"]["alpha"]) for s in jobs} == {"[8, '$rank']"}


def test_the_cells_of_table_5_have_the_papers_ranks_at_one_budget(pocket: tuple) -> None:
    """LoRA, table 5: q, k, v or o alone at rank 8, two of them at 4, all four at 2, at equal parameters."""
    held = experiments.read("lora_table5")
    cells = [cell.strip("[]").split(",") for cell in held["experiment"]["grid"]["target_modules"]]
    seen = [preview(pocket[0], "lora", target_modules=cell, budget=held["budget"]) for cell in cells]
    assert [{row.rank for row in found.rows} for found in seen] == [{8}, {8}, {8}, {8}, {4}, {4}, {2}]
    assert {found.trainable for found in seen} == {held["budget"]}


def test_one_experiment_a_sweep() -> None:
    with pytest.raises(ValueError, match="a sweep is one experiment"):
        command_line.rewritten(["-m", "experiment=lora_table5,lora_table6"])


# --- controls: starts that papers warn of -------------------------------------------------------------------


def gradients(start: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs before and after adapting one layer, and the gradients of A and B at step 0."""
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Linear(6, 5)).double(), torch.randn(4, 6, dtype=torch.float64)
    before = net(x)
    injection = inject(net, "lora", target_modules=["0"], rank=2, init=start)
    (adapter,) = injection.adapters.values()
    after = net(x)
    after.square().sum().backward()
    return before, after, adapter.A_RI.grad, adapter.B_OR.grad


def test_both_zero_has_no_gradient_at_all_and_both_random_changes_the_model() -> None:
    before, after, dA_RI, dB_OR = gradients("both_zero")
    assert torch.equal(before, after) and not dA_RI.any() and not dB_OR.any()
    before, after, dA_RI, dB_OR = gradients("both_random")
    assert not torch.allclose(before, after) and dA_RI.any() and dB_OR.any()
    before, after, dA_RI, dB_OR = gradients("kaiming")
    assert torch.equal(before, after) and not dA_RI.any() and dB_OR.any()


def test_a_control_is_drawn_as_the_starts_that_it_is_made_of() -> None:
    def begun(name: str) -> Factors:
        return initial_factors(name, torch.ones(5, 6), rank=2, scale=1.0, seed=1, matrix="x")[0]

    both = begun("both_random")
    assert torch.equal(both.A_RI, begun("kaiming").A_RI) and torch.equal(both.B_OR, begun("zero_a").B_OR)
    assert init_names(lambda init: init.control) == ["both_random", "both_zero"]
    assert not init_names(lambda init: init.control and VARIANTS["lora_fa"].accepts_init(init))


# --- bytes kept for the backward pass -----------------------------------------------------------------


def test_saved_bytes_are_those_of_the_graph_and_leave_no_trace(tmp_path: Path) -> None:
    injection = inject(model(), "lora", target_modules=["q", "v"], rank=2, lora_dropout=0.5)
    run = trainer(tmp_path, injection)
    counts, state = injection.counter.counts, torch.get_rng_state()
    found = run.saved_bytes()
    assert found is not None
    assert injection.counter.counts == counts and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in injection.parameters())
    batch = collate(examples()[:4])
    injection.model.eval()
    with activations.embedded_inputs_learn(injection.model):
        expected = activations.saved_bytes(injection.model, lambda: injection.model(**batch).loss)
        with injection.disabled():
            frozen = activations.saved_bytes(injection.model, lambda: injection.model(**batch).loss)
    assert found == {"saved": expected, "saved_frozen": frozen}
    # 2 layers x 2 matrices share an x of 16 features, which the frozen layer has no use for; 36 tokens each
    assert 0 < found["saved"] - found["saved_frozen"] <= 2 * 2 * 36 * (16 + 2) * 4


def test_a_frozen_a_keeps_less(tmp_path: Path) -> None:
    kept = {}
    for name in ("lora", "lora_fa"):
        run = trainer(tmp_path, inject(model(), name, target_modules=["q", "v"], rank=2))
        found = run.saved_bytes()
        assert found is not None
        kept[name] = found["saved"] - found["saved_frozen"]
    # of each of 4 adapted matrices A x, two numbers for each of 36 tokens, and one number by which a second
    # derivative finds its way
    assert kept["lora_fa"] == 4 * (36 * 2 + 1) * 4
    assert kept["lora"] > 3 * kept["lora_fa"]


# --- retention ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pocket() -> tuple[torch.nn.Module, object]:
    settings = Model(name="pocket", path="pocket")
    tokenizer = load_tokenizer(settings)
    return load_model(settings, "AutoModelForCausalLM", {}, tokenizer, 0).model, tokenizer


def test_the_pocket_remembers_what_it_was_pretrained_on(pocket: tuple) -> None:
    """The recipe's own held-out loss is 0.86 to 0.95 nats a token; uniform guessing would be log 751."""
    net, tokenizer = pocket
    retention = HeldOutLoss("pocket", tokenizer)
    assert 0.8 < retention.loss(net) < 1.0
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.model.embed_tokens.weight.zero_()
    assert retention.loss(other) == pytest.approx(math.log(len(tokenizer)), rel=1e-3)


def test_retention_is_the_models_own_loss_on_the_same_blocks(pocket: tuple, tmp_path: Path) -> None:
    net, tokenizer = pocket
    (tmp_path / "text.txt").write_text("karin keller works in toronto .\nthe wolf chased the fox .\n" * 40)
    retention = HeldOutLoss(str(tmp_path / "text.txt"), tokenizer)
    ids_NL = retention.ids_NL
    with torch.no_grad():
        each = [cross_entropy(net(row[None]).logits[0, :-1], row[1:], reduction="none") for row in ids_NL]
    assert retention.loss(net) == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)
    assert retention.tokens == sum(len(row) for row in each)


def test_the_text_of_the_pocket_is_known_and_no_others(pocket: tuple) -> None:
    decoder = SimpleNamespace(auto_class="AutoModelForCausalLM")
    assert held_out("auto", str(HUB), decoder, pocket[1]).source == "pocket"
    assert held_out("auto", str(HUB), decoder, pocket[1]).tokens == 32 * 128
    with pytest.raises(
        ValueError, match="no text that a-model was pretrained on is known; give forgetting_te"
    ):
        held_out("auto", "someone/a-model", decoder, pocket[1])
    other = SimpleNamespace(auto_class="AutoModelForMaskedLM", task=SimpleNamespace(name="mine", type="x"))
    with pytest.raises(ValueError, match="another kind of model"):
        held_out("auto", str(HUB), other, pocket[1])


def test_forgetting_is_measured_unless_it_cannot_be_or_must_not() -> None:
    """By default of a run's settings: measured, refused without an error and with a reason, or left out."""
    decoder = SimpleNamespace(auto_class="AutoModelForCausalLM")
    tokenizer = load_tokenizer(Model(name="pocket", path="pocket"))
    data = SimpleNamespace(kind=decoder, tokenizer=tokenizer)

    def told(text: str | None, path: str, data: SimpleNamespace = data) -> tuple[bool, dict]:
        record = SimpleNamespace(content={})
        record.update = record.content.update
        settings = SimpleNamespace(forgetting_text=text, model=Model(name="m", path=path))
        mine = SimpleNamespace(settings=settings, record=record)
        return Experiment._held_out(mine, data) is not None, record.content

    assert told(Settings().forgetting_text, "pocket") == (True, {})
    measured, record = told("auto", "someone/a-model")
    assert not measured and record["retention"]["of"] is None and "give forgetting_text" in str(record)
    assert not is_measured(record) and is_measured({"retention": {"before": 1.0, "after": 2.0}})
    assert told(None, "pocket") == (False, {})
    encoder = SimpleNamespace(auto_class="AutoModelForSequenceClassification")
    assert told("auto", "pocket", SimpleNamespace(kind=encoder)) == (False, {})
    with pytest.raises(ValueError, match="No such file"):
        told("no-such.txt", "someone/a-model")


@pytest.mark.parametrize(
    ("text", "said"), [(None, "No such file"), (b"\xff\xfe\xfa", "no UTF-8"), (b"the", "at least two")]
)
def test_a_text_that_cannot_be_read_is_named(
    text: bytes | None, said: str, pocket: tuple, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ValueError, match=said):
        HeldOutLoss(str(path), pocket[1])


# --- the end of a sweep -------------------------------------------------------------------------------------


def sweep(at: Path, *more: str) -> str:
    """What the sweep of an experiment of one's own says: ranks 1 and 2, two seeds, two steps."""
    about = MINE | {
        "grid": {"rank": [1, 2], "seed": [0, 1]},
        "reference": [{"rank": 1, "value": 68.8, "of": "WikiSQL"}],
        "paper": "arXiv:2106.09685, table 6",
        "deltas": ["amplification"],
        "adapters": True,
    }
    quick = ["steps=2", "task.sizes={train: 64, validation: 4, test: 6}", "threads=1", "tracking=none"]
    quick += ["task.max_new_tokens=4", "batch_size=8", "eval_splits=[test]", "forgetting_text=null"]
    ended = wrapper("-m", f"+{written(at, about, eval_before_training=False)}", *quick, *more, at=at)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that has ended, and what it said."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "said").write_text(sweep(folder))
    return folder


@pytest.mark.xdist_group("swept")
def test_a_sweep_ends_with_its_report_and_comes_back_to_it(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    said = (tmp_path / "said").read_text()
    (folder,) = (tmp_path / "runs").glob("mine-*")
    assert "[HYDRA] GSUB" not in said, "fontTools tells of its work"
    assert "**Ranks**" in said and "68.8" in said and "made by `python -m lora_zoo.run -m +experiment" in said
    page = (folder / "report" / "report.html").read_text()
    assert "Ranks" in page and "WikiSQL" in page
    assert len(list((folder / "report" / "figures").glob("*.svg"))) > 3
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    again = sweep(tmp_path)
    assert again.count("done already") == 4 and "**Ranks**" in again
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")} == made

    kept = [f"{folder}", "--save-experiment", "experiments/mine", "--format", "md"]
    for text in ("", "What people wrote stays.\n"):
        readme = tmp_path / "experiments" / "mine" / "README.md"
        if text:
            readme.write_text(text + readme.read_text())
        ended = wrapper(*kept, at=tmp_path, module="lora_zoo.report")
        assert ended.returncode == 0, ended.stderr
        assert readme.read_text().startswith(
            text or "# Ranks\n\nWhich?\n\narXiv:2106.09685, table 6\n\n<!-- measured"
        )
        assert readme.read_text().count("\n| 1 | ") == 1 and "4 runs; " in readme.read_text()
    frame = results.load(tmp_path / "experiments" / "mine" / "results.jsonl.gz")
    assert sorted(frame["rank"]) == [1, 1, 2, 2] and set(frame["experiment"]) == {"mine"}
    recorded = results.deltas(frame, "amplification").merge(frame, on="run")
    assert len(recorded) == 4 * 8 and (recorded["directions"] == recorded["rank"]).all()
    for _, run in frame.iterrows():
        delta = next(iter(updates.read(run["adapter"]).values()))
        assert delta.rank == run["rank"]
        assert str(tmp_path) not in (Path(run["adapter"]) / "adapter.json").read_text()


@pytest.mark.xdist_group("swept")
def test_planted_mistakes_are_named_and_not_counted(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept / "runs", tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("mine-*")
    runs = {
        (r["config"]["rank"], r["seed"]): p
        for p in folder.glob("*/result.json")
        for r in [json.loads(p.read_text())]
    }

    def change(path: Path, **changes: object) -> None:
        record = json.loads(path.read_text())
        for key, value in changes.items():
            record[key] = value
        path.write_text(json.dumps(record))

    copied = shutil.copytree(runs[1, 0].parent, folder / "a-copy")
    record = json.loads((copied / "result.json").read_text())
    change(copied / "result.json", seed=3, config=record["config"] | {"seed": 3})  # a seed that was never run
    record = json.loads(runs[2, 0].read_text())
    change(runs[2, 0], variant=record["variant"] | {"name": "dora"})  # a label that is another's
    record = json.loads(runs[2, 1].read_text())
    change(runs[2, 1], made_of=record["made_of"] | {"source": "0" * 16})  # of a source that has changed since
    said = wrapper(str(folder), "--format", "md", at=tmp_path, module="lora_zoo.report").stdout
    for kind in ("label", "stale"):
        assert f"left out ({kind})" in said, kind
    assert said.count("left out (label)") == 2, "the copy's name is not of its seed"
    found = results.load(folder)
    assert len(found) == 5 and len(sound(found)) == 2


def test_keep_takes_one_experiment(tmp_path: Path) -> None:
    ended = wrapper(
        "+variant=lora",
        "steps=2",
        "task.sizes={train: 8, validation: 2, test: 2}",
        "batch_size=4",
        "task.max_new_tokens=2",
        "tracking=none",
        at=tmp_path,
    )
    assert ended.returncode == 0
    ended = wrapper(
        "runs", "--save-experiment", "kept", "--format", "md", at=tmp_path, module="lora_zoo.report"
    )
    assert ended.returncode == 2 and ended.stderr == (
        "lora_zoo: --save-experiment takes the runs of one experiment; these are of no experiment\n"
    )
    assert not (tmp_path / "kept").exists()
