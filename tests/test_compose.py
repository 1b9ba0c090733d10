"""Several runs as one model or one adapter: what is written is what was composed, or nothing is."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lora_zoo import metrics
from lora_zoo.compose import compose, main
from lora_zoo.config.schema import Model
from lora_zoo.conformance.cases import perturb
from lora_zoo.formats.composed import load_composed
from lora_zoo.formats.description import read_description
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject
from lora_zoo.models.composing import named_runs
from lora_zoo.models.loading import load_model
from lora_zoo.runs import merges
from lora_zoo.training.resources import TaskData
from lora_zoo.training.run_data import examples_of_run
from tests.test_merge import adapter_folder, base_folder, loaded, logits
from tests.test_programs import asked

TASK = ("task=pocket-lists", "task.sizes={train: 24, validation: 6, test: 4}", "rank=2", "threads=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and adapters of it: lora, dora, a router, a prompt; one of a second base."""
    at = tmp_path_factory.mktemp("compose")
    for kind, base in (("tied", "base"), ("tied", "second")):
        base_folder(kind, at / base)
    for name in ("lora", "dora", "hydralora", "prompt_tuning"):
        adapter_folder(at / "base", "tied", at / name, name)
    adapter_folder(at / "second", "tied", at / "elsewhere", "lora")
    return at


def test_a_composed_model_is_what_the_adapters_make_together(runs: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--by", "ties", "--weights", "0.5", "-0.25", "--density", "0.4", "--elect", "frequency"]
    main([str(tmp_path / "out"), str(runs / "lora"), str(runs / "dora"), *words])
    said = capsys.readouterr().out
    assert f"composed model in {tmp_path / 'out'}: transformers' AutoModelForCausalLM" in said
    model = loaded(runs / "base", "tied")
    for name in ("lora", "dora"):
        load_adapter(model, runs / name, name=name)
    options = {"weights": [0.5, -0.25], "density": 0.4, "elect": "frequency"}
    adapters_of(model).activate("lora", "dora", composition="ties", **options)
    assert_close(logits(loaded(tmp_path / "out", "tied")), logits(model), rtol=1e-5, atol=1e-5)


def test_a_composed_adapter_has_the_exact_rank_or_the_chosen_one(runs: Path, tmp_path: Path) -> None:
    both = [runs / "lora", runs / "lora"]
    done = compose(
        tmp_path / "out", both, by="weighted_sum", options={"weights": [0.02, 0.01]}, form="adapter"
    )
    model = loaded(runs / "base", "tied")
    own = load_adapter(model, runs / "lora")
    adapters_of(model).activate(own.name, weights=[0.03])
    expected, rank = logits(model), own.hyper["rank"]
    adapters_of(model).remove()
    again = load_adapter(model, tmp_path / "out")
    assert set(done.ranks.values()) == {rank} and again.scales() == [1.0]
    assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert done.merged.difference < 1e-3
    about = read_description(tmp_path / "out")["about"]
    assert about["composed"] == {
        "by": "weighted_sum",
        "options": {"weights": [0.02, 0.01]},
        "runs": [str(run) for run in both],
    }
    assert about["model"]["path"] == str(runs / "base")

    adapters_of(model).remove()
    mixed = [runs / "lora", runs / "dora"]
    cut = compose(tmp_path / "cut", mixed, by="average", form="adapter", rank=2)
    assert {*cut.ranks.values()} == {2} and "largest relative error of a matrix as an" in cut.notes[0]
    place = next(iter(cut.ranks))
    found = load_adapter(model, tmp_path / "cut").update(place).dW_OI
    adapters_of(model).remove()
    change = sum(load_adapter(model, run, name=run.name).update(place).dW_OI for run in mixed)
    U, S, V = torch.linalg.svd(change / 2)
    assert_close(found, (U[:, :2] * S[:2]) @ V[:2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (("lora", "hydralora"), {}, "hydralora has no effective weight.*cannot be composed"),
        (("lora", "prompt_tuning"), {}, "prompt_tuning has no effective weight.*cannot be composed"),
        (("lora", "elsewhere"), {}, "lora and elsewhere cannot be composed: they have another base"),
        (("lora", "nothing"), {}, "nothing holds no adapter"),
        (("lora", "dora"), {"by": "ties", "form": "adapter"}, "by a matrix of full rank .*, which is no"),
        (("lora", "dora"), {"by": "linear_of_factors"}, r"needs ΔW = B A, and 'dora' \(dora\)"),
        (("lora", "dora"), {"rank": 3}, "--rank has no effect on a model by sum: use --by svd"),
        (("lora", "dora"), {"rank": 0, "form": "adapter"}, "rank must be at least 1; got 0"),
        (("lora", "dora"), {"dtype": "float16", "form": "adapter"}, "--dtype=float16 has no effect"),
        (("lora", "dora"), {"by": "lorahub"}, "lorahub is fitted to a task: give --data, a run on that task"),
        (("lora", "dora"), {"by": "ties", "data": "lora"}, "--data has no effect on ties"),
        (("lora", "dora"), {"by": "ties", "examples": 3}, "--examples=3: ties looks at no such number"),
        (("lora", "dora"), {"by": "arrow"}, "arrow weighs adapters by the input.*: give --as adapters"),
        (("lora", "dora"), {"by": "xlora", "form": "adapters"}, "xlora is fitted to a task: give --data"),
        (
            ("lora", "dora"),
            {"by": "xlora", "options": {"lr": 0.0}},
            "lr > 0 and batch_size >= 1; got 200, 0.0",
        ),
        (
            ("lora", "dora"),
            {"form": "adapters"},
            "--as adapters is for what weighs them by the input; sum has",
        ),
        (("lora", "dora"), {"by": "fisher"}, "lora has no result.json: only a run's folder says"),
        (("lora", "dora"), {"by": "ties", "options": {"weights": [1.0]}}, "one for each of lora, dora is"),
    ],
)
def test_what_cannot_be_composed_is_refused_and_nothing_is_written(
    names: tuple[str, ...], options: dict[str, Any], says: str, runs: Path, tmp_path: Path
) -> None:
    options = options | ({"data": runs / options["data"]} if "data" in options else {})
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        compose(tmp_path / "out", [runs / name for name in names], **options)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_a_mistake_is_one_line(runs: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    for words, says in (
        (["--by", "sum"], "is there already; give a folder that does not exist or is empty"),
        (["--by", "tise"], "unknown composition 'tise'. Did you mean 'ties'?"),
        (["--by", "ties", "--density", "many"], "ties: density must be a number; got 'many'"),
    ):
        out = tmp_path / ("out" if "already" in says else "new")
        with pytest.raises(SystemExit) as end:
            main([str(out), str(runs / "lora"), str(runs / "dora"), *words])
        told = capsys.readouterr().err
        assert end.value.code == 2 and says in told and len(told.splitlines()) == 1


def test_names_are_those_of_folders() -> None:
    found = named_runs([Path("/a/one two"), Path("/b/one two/adapter"), Path("/c/x.y")])
    assert [*found] == ["one-two", "one-two-2", "x-y"]


def test_heads_that_two_runs_trained_are_refused(tmp_path: Path) -> None:
    base = base_folder("labelled", tmp_path / "base")
    for name in ("one", "two"):
        adapter_folder(base, "labelled", tmp_path / name, "lora")
    with pytest.raises(ValueError, match=r"'one' and 'two' both train classifier\.\w+ in full"):
        compose(tmp_path / "out", [tmp_path / "one", tmp_path / "two"])
    done = compose(tmp_path / "out", [tmp_path / "one"], form="adapter")
    model = loaded(base, "labelled", num_labels=3)
    own = load_adapter(model, tmp_path / "one")
    expected = logits(model)
    adapters_of(model).remove()
    assert "classifier.weight" in load_adapter(model, tmp_path / "out").trained
    assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert set(done.ranks.values()) == {own.hyper["rank"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as runs on the pocket leave them: a record with settings, an adapter in ours or PEFT's form."""
    at, settings = tmp_path_factory.mktemp("trained"), asked("+variant=lora", *TASK).settings
    about = {"model": asdict(settings.model), "auto_class": "AutoModelForCausalLM"}
    for seed, name in enumerate(("one", "two")):
        model = load_model(Model(**about["model"]), about["auto_class"], {}, None, 0).model  # type: ignore[arg-type]
        own = inject(model, "lora", rank=2, name=name)
        perturb(own, 0.02, seed)
        (at / name).mkdir()
        if seed == 0:
            save_adapter(own, at / name / "adapter", **about)
        else:
            save_peft(own, at / name / "adapter", base="pocket", task_type="CAUSAL_LM")
        (at / name / "result.json").write_text(json.dumps({"config": asdict(settings)}))
    return {name: at / name for name in ("one", "two")}


@pytest.mark.parametrize(
    ("by", "options"),
    [
        ("fisher", {}),
        ("regmean", {}),
        ("lorahub", {"optimizer": "scipy", "budget": 4}),
        ("controlpe", {"points": 3}),
    ],
)
def test_a_composition_that_looks_at_data_reads_that_of_the_runs(
    by: str, options: dict[str, Any], trained: dict[str, Path], tmp_path: Path
) -> None:
    data = {} if by in ("fisher", "regmean") else {"data": trained["two"]}
    done = compose(tmp_path / "out", [*trained.values()], by=by, options=options, examples=3, **data)
    assert done.merged.difference < 1e-3 and (tmp_path / "out" / "model.safetensors").is_file()
    assert bool(done.notes) == bool(data)


def test_what_weighs_adapters_by_the_input_keeps_them_and_what_it_has_learned(
    trained: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    folders = [str(run) for run in trained.values()]
    words = [
        "--as",
        "adapters",
        "--by",
        "xlora",
        "--data",
        folders[1],
        "--examples",
        "4",
        "--layerwise",
        "true",
    ]
    main([str(tmp_path / "x"), *folders, *words, "--steps", "3", "--lr", "0.03", "--batch-size", "3"])
    said = capsys.readouterr().out
    before, after = map(float, re.search(r"3 steps: loss (\S+) before training, (\S+) after", said).groups())  # type: ignore[union-attr]
    assert after < before and f"2 adapters, composed by xlora, in {tmp_path / 'x'}" in said
    model = load_model(Model(name="pocket", path="pocket"), "AutoModelForCausalLM", {}, None, 0).model
    composition: Any = load_composed(model, tmp_path / "x")
    assert composition.names == ("one", "two") and composition.layerwise
    learned = logits(model)
    for name, run in trained.items():
        again = load_adapter(model, run / "adapter", name=f"{name}-again").state_dict()
        assert all(
            torch.equal(tensor, again[key]) for key, tensor in adapters_of(model)[name].state_dict().items()
        )
    adapters_of(model).activate("one", "two", composition="xlora", layerwise=True)
    assert not torch.allclose(logits(model), learned, atol=1e-4), "the classifier has learned"
    assert compose(tmp_path / "a", [*trained.values()], by="arrow", form="adapters").merged.difference < 1e-4
    (tmp_path / "a" / "composition.json").write_text('{"by": "arrow", "names": ["../one"], "options": {}}')
    with pytest.raises(ValueError, match="must hold by, names and options"):
        load_composed(model, tmp_path / "a")


def test_token_level_takes_each_centroid_from_its_runs_training_examples(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    """A second run on other texts, so that the means, taken here by hand, differ."""
    runs = {name: tmp_path / name for name in trained}
    for name, run in trained.items():
        shutil.copytree(run, runs[name])
    settings = asked("+variant=lora", "task=pocket-style", *TASK[1:]).settings
    (runs["two"] / "result.json").write_text(json.dumps({"config": asdict(settings)}))
    done = compose(tmp_path / "out", [*runs.values()], by="token_level", examples=5, form="adapters")
    assert done.merged.difference < 1e-5
    model = load_model(Model(name="pocket", path="pocket"), "AutoModelForCausalLM", {}, None, 0).model
    composition: Any = load_composed(model, tmp_path / "out")
    embed = model.get_input_embeddings()
    for name, run in runs.items():
        drawn = examples_of_run(run, model, split="train", number=5)
        mean = torch.stack([embed(batch["input_ids"])[0].mean(0) for batch in drawn]).mean(0)
        assert_close(composition.centroids_KD[composition.names.index(name)], mean)
    assert not torch.allclose(*composition.centroids_KD, atol=1e-3)
    with pytest.raises(ValueError, match="token_level has no centroids: give them, or prepare it"):
        adapters_of(model).activate("one", "two", composition="token_level")
        logits(model)


def test_examples_of_a_run_are_those_it_trained_on(trained: dict[str, Path]) -> None:
    model = load_model(Model(name="pocket", path="pocket"), "AutoModelForCausalLM", {}, None, 0).model
    drawn = [*examples_of_run(trained["one"], model, split="train", number=100)]
    assert len(drawn) == 24 and {len(batch["input_ids"]) for batch in drawn} == {1}
    again = [*examples_of_run(trained["two"], model, split="train", number=3)]
    for mine, theirs in zip(drawn, again, strict=False):
        assert torch.equal(mine["labels"], theirs["labels"])
    assert len([*examples_of_run(trained["one"], model, split="validation", number=100)]) == 6
    with pytest.raises(ValueError, match="has no dev split"):
        next(examples_of_run(trained["one"], model, split="dev", number=1))


def test_what_is_left_of_each_run_s_task_is_told(trained: dict[str, Path], tmp_path: Path) -> None:
    """Of one run alone all is left: its note has what the adapter itself reaches, judged here by hand."""
    run, settings = tmp_path / "one", asked("+variant=lora", *TASK, "task.metrics=[word_f1]").settings
    shutil.copytree(trained["one"], run)
    record = {"config": asdict(settings), "metric": "word_f1", "metrics": {"test": {"word_f1": 0.125}}}
    (run / "result.json").write_text(json.dumps(record))
    note = compose(tmp_path / "out", [run], evaluate="test").notes[-1]
    data, model = TaskData(settings), load_model(settings.model, "AutoModelForCausalLM", {}, None, 0).model
    load_adapter(model, run / "adapter")
    outcomes = data.kind.outcomes(model.eval(), data.splits["test"])
    texts = [(o["prediction"], o["reference"]) for o in outcomes]
    reached = metrics.load("word_f1").compute(
        predictions=[prediction for prediction, _ in texts], references=[reference for _, reference in texts]
    )
    assert reached["word_f1"] > 0
    assert note == f"pocket-lists (one): word_f1 0.125 alone, {reached['word_f1']:.4g} composed"
    table = merges(tmp_path)
    assert table[["by", "options", "split", "run", "task", "metric"]].to_numpy().tolist() == [
        ["sum", "", "test", "one", "pocket-lists", "word_f1"]
    ]
    assert table["alone"].tolist() == [0.125] and table["composed"].tolist() == [reached["word_f1"]]
    (tmp_path / "out" / "retained.json").write_text('{"by": "sum", "options": "", "split": 3, "tasks": [{}]}')
    with pytest.raises(ValueError, match="must hold by, options, split and tasks, as compose --evaluate"):
        merges(tmp_path)
    with pytest.raises(ValueError, match="was judged on test, not on validation"):
        compose(tmp_path / "other", [run], evaluate="validation")
    assert not (tmp_path / "other").exists()
