"""Runs above prior adapters: what counts of them, what is kept, and what is refused."""

import json
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_zoo import runs
from lora_zoo.config.schema import Model
from lora_zoo.conformance.cases import fresh, perturb
from lora_zoo.export import export
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject
from lora_zoo.launchers.packed.grouping import groups
from lora_zoo.models.base import base_of
from lora_zoo.models.compare import logits
from lora_zoo.models.loading import load_model
from lora_zoo.spectra import main as spectra
from lora_zoo.training import runner
from lora_zoo.training.calibration import start_from
from lora_zoo.training.replay import with_replay
from lora_zoo.training.resources import TaskData
from tests.processes import run
from tests.test_programs import asked, killing

WORDS = (
    "+variant=dora", "rank=2", "steps=4", "batch_size=4", "lr=1e-2", "threads=1", "tracking=none",
    "task.sizes={train: 24, validation: 4, test: 4}", "target_modules=[q,v]", "task.max_new_tokens=4",
    "eval_splits=[test]", "eval_before_training=false", "trainer.save_steps=2", "lora_dropout=0.1",
    "forgetting_text=null",
)  # fmt: skip


def pocket() -> Any:
    return load_model(
        Model(**asked("+variant=lora").settings.model.__dict__), "AutoModelForCausalLM", {}, None, 0
    ).model


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of the pocket model: `mine` in our format, with dropout, and `theirs` in PEFT's."""
    at = tmp_path_factory.mktemp("priors")
    for seed, name in enumerate(("mine", "theirs")):
        model = pocket()
        injection = inject(model, "lora", rank=2, lora_dropout=0.5 * (1 - seed), target_modules=["q", "down"])
        perturb(injection, 0.05, seed)
        (save_adapter if name == "mine" else save_peft)(injection, at / name)
    return at


def words(priors: Path, out: str) -> tuple[str, ...]:
    return (*WORDS, f"prior=[{priors}/mine,{priors}/theirs]", f"out={out}")


def ended(at: Path) -> tuple[Path, dict[str, Any]]:
    (file,) = at.glob("*/result.json")
    return file.parent, json.loads(file.read_text())


def test_a_run_above_priors_can_be_killed_merged_and_read(priors: Path, tmp_path: Path) -> None:
    straight = run(*words(priors, "one"), "merge=true", at=tmp_path)
    assert straight.returncode == 0, straight.stdout + straight.stderr
    folder, record = ended(tmp_path / "one")
    assert [prior["name"] for prior in record["prior"]] == ["mine", "theirs"]
    assert len(record["updates"]) == record["parameters"]["adapted"], "ΔW is the run's own"

    stops = killing(tmp_path, 4, signal.SIGKILL)
    assert run(*words(priors, "two"), at=tmp_path, PYTHONPATH=stops).returncode != 0
    again = run(*words(priors, "two"), "resume=true", at=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    other, more = ended(tmp_path / "two")
    assert (
        more["resumed"]
        and (other / "adapter" / "adapter.safetensors").read_bytes()
        == (folder / "adapter" / "adapter.safetensors").read_bytes()
    )

    model, below = pocket(), pocket()
    injection = load_adapter(model, folder / "adapter")
    assert injection.prior == ("mine", "theirs")
    for name in injection.prior:
        load_adapter(below, priors / name, name=name)
    adapters_of(below).activate("mine", "theirs")
    with injection.disabled():
        assert torch.equal(logits(model), logits(below))
    merged = base_of(folder / "adapter", str(folder / "merged"))
    again_model = load_model(merged.model, merged.auto_class, merged.head, None, 0).model
    torch.testing.assert_close(logits(again_model), logits(model), rtol=1e-4, atol=1e-4)
    spectra([str(folder), "--what", "changes"])
    with pytest.raises(ValueError, match="trained on mine, theirs and means nothing alone"):
        export(folder, tmp_path / "peft")
    (frame,) = [runs.load(tmp_path / "one")]
    assert frame["stale"].tolist() == [""] and frame["contradiction"].tolist() == [""]


def test_a_merge_of_which_nothing_trains_says_that_it_writes_no_model(priors: Path, tmp_path: Path) -> None:
    own = [word for word in words(priors, "one") if not word.startswith(("+variant", "lora_dropout"))]
    made = run(*own, "+variant=composed", "variant.composition=ties", "merge=true", at=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    folder, record = ended(tmp_path / "one")
    assert "merge=true writes no model, as nothing has trained" in record["findings"]
    assert not (folder / "merged").exists()


def test_a_router_has_no_one_update_and_the_error_tells_where_updates_are(
    priors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [word for word in words(priors, "one") if not word.startswith(("+variant", "lora_dropout"))]
    made = run(*own, "+variant=composed", "variant.composition=xlora", at=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    adapter = ended(tmp_path / "one")[0] / "adapter"
    with pytest.raises(SystemExit) as end:
        spectra([str(adapter.parent)])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "xlora composes prior adapters and has no ΔW of its own" in line
    assert line.endswith(f"python -m lora_zoo.spectra {adapter}/prior/*")
    spectra([str(folder) for folder in sorted((adapter / "prior").iterdir())])
    assert "q_proj" in capsys.readouterr().out


def test_what_a_prior_holds_is_part_of_the_identity_and_its_place_is_not(
    priors: Path, tmp_path: Path
) -> None:
    plain, above = asked(*WORDS), asked(*WORDS, f"prior=[{priors}/mine]")
    shutil.copytree(priors / "mine", tmp_path / "moved")
    assert asked(*WORDS, f"prior=[{tmp_path}/moved]").identity == above.identity != plain.identity
    assert above.made_of["settings"] == plain.made_of["settings"]
    both = asked(*WORDS, f"prior=[{priors}/mine,{priors}/theirs]")
    assert len({plain.identity, above.identity, both.identity}) == 3
    assert groups([plain, above])[1] == ([1], "it has prior adapters in its model")
    file = tmp_path / "moved" / "adapter.json"
    file.write_text(file.read_text().replace('"alpha": 2', '"alpha": 3'))
    assert asked(*WORDS, f"prior=[{tmp_path}/moved]").identity != above.identity
    weights = tmp_path / "moved" / "adapter.safetensors"
    assert load_file(weights)
    weights.unlink()
    with pytest.raises(ValueError, match=r"moved holds no adapter, ours or PEFT's; give a run's folder"):
        asked(*WORDS, f"prior=[{tmp_path}/moved]")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["prior=[nowhere]"], "prior=nowhere: nowhere holds no adapter"),
        (["prior=[]"], "prior is empty; give at least one"),
        (["prior=[AT/mine,AT/mine]"], "are both called mine; rename one folder"),
        (["prior=[AT/mine]", "program=relora"], "program=relora has stages, which take no prior adapters"),
    ],
)
def test_priors_that_cannot_be_are_refused_in_one_line(overrides: list[str], says: str, priors: Path) -> None:
    with pytest.raises(ValueError, match=says):
        asked(*WORDS, *(word.replace("AT", str(priors)) for word in overrides))


# --- training an adapter on ---------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """An adapter of a tiny llama, in our format in `mine` and in PEFT's in `theirs`."""
    injection = inject(fresh("llama")[0], "lora", rank=2, alpha=4, target_modules=["q", "v"], seed=1)
    perturb(injection, 0.5)
    save_adapter(injection, tmp_path / "mine")
    save_peft(injection, tmp_path / "theirs")
    return tmp_path


@pytest.mark.parametrize("folder", ["mine", "theirs"])
def test_an_adapter_trains_on_from_where_another_ended(folder: str, tiny: Path) -> None:
    model, ended = fresh("llama")[0], load_adapter(fresh("llama")[0], tiny / folder)
    injection = inject(model, "lora", rank=2, alpha=4, target_modules=["q", "v"], lora_dropout=0.1)
    start_from(injection, str(tiny / folder))
    ids = {"input_ids": torch.arange(6).view(2, 3)}
    with torch.no_grad():
        assert torch.equal(model.eval()(**ids).logits, ended.model.eval()(**ids).logits)
    assert all(p.requires_grad for p in injection.parameters())


@pytest.mark.parametrize(
    ("variant", "more", "says"),
    [
        ("dora", {}, "start_from=AT/mine: variant is lora there and dora here"),
        ("lora", {"rank": 4}, "rank is 2 there and 4 here"),
        ("lora", {"alpha": 8}, "alpha is 4 there and 8 here"),
        ("lora", {"alpha_pattern": {"v": 8}}, "alpha is 4 there and 8 here"),
        (
            "lora",
            {"target_modules": ["q"]},
            r"target_modules is \[.*4 in all\] there and \[.*2 in all\] here",
        ),
        ("lora", {"init": "pissa"}, "start_from=AT/mine is another kind of adapter: .*missing"),
        ("lora", {"prior": ["below"]}, "the number of priors is 0 there and 1 here"),
    ],
)
def test_an_adapter_that_is_not_the_run_s_is_refused(
    variant: str, more: dict[str, Any], says: str, tiny: Path
) -> None:
    model = fresh("llama")[0]
    if "prior" in more:
        inject(model, "lora", name="below", rank=2)
    injection = inject(model, variant, **{"rank": 2, "alpha": 4, "target_modules": ["q", "v"], **more})
    before = injection.state_dict()
    with pytest.raises(ValueError, match=says.replace("AT", str(tiny))):
        start_from(injection, str(tiny / "mine"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in injection.state_dict().items())


def test_a_share_of_an_earlier_run_s_examples_is_seen_again(priors: Path, tmp_path: Path) -> None:
    """The epoch is as much longer, and the examples are those that the earlier run trained on."""
    old = asked(*WORDS, "task=pocket-lists", "task.sizes={train: 20, test: 4}").settings
    own = asked(
        *WORDS, "+variant=lora", "target_modules=[q,down]", f"prior=[{priors}/mine]", "replay=0.5"
    ).settings
    (tmp_path / "old").mkdir()
    shutil.copytree(priors / "mine", tmp_path / "old" / "adapter")
    (tmp_path / "old" / "result.json").write_text(json.dumps({"config": asdict(old)}))
    data, before = TaskData(own), TaskData(old).encoded
    start = replace(own, prior=None, start_from=str(tmp_path / "old"))
    found, numbers = with_replay(data, start, TaskData)
    assert numbers == {str(tmp_path / "old"): 10} and found.encoded[:24] == data.encoded
    assert len(data.encoded) == 24 and len({str(e) for e in found.encoded[24:]}) == 10
    assert all(example in before for example in found.encoded[24:])
    assert with_replay(data, replace(start, data_seed=1), TaskData)[0].encoded != found.encoded
    assert with_replay(data, replace(start, replay=0.0), TaskData) == (data, {})
    with pytest.raises(ValueError, match=r"mine has no result\.json: only a run's folder says"):
        with_replay(data, own, TaskData)
    (tmp_path / "old" / "result.json").write_text(
        json.dumps({"config": asdict(asked("task=pocket-nli").settings)})
    )
    with pytest.raises(
        ValueError, match=r"replay=0\.5: .*, pocket-nli are of another kind than those of pocket-sql"
    ):
        with_replay(data, start, TaskData)
    with pytest.raises(ValueError, match=r"replay=0\.5 has no effect without start_from=RUN or prior"):
        asked(*WORDS, "replay=0.5")


def test_a_run_that_replays_trains_on_what_it_replays(priors: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    shutil.copytree(priors / "mine", tmp_path / "old" / "adapter")
    old = asked(*WORDS, "task=pocket-lists", "task.sizes={train: 20, test: 4}").settings
    (tmp_path / "old" / "result.json").write_text(json.dumps({"config": asdict(old)}))
    words = ["+variant=lora", "target_modules=[q,down]", "steps=null", "epochs=1"]
    start = [f"start_from={tmp_path}/old", "replay=0.4", f"out={tmp_path}/out"]
    assert runner.run(asked(*WORDS, *words, "lora_dropout=0.5", *start)) == 0
    _, told = ended(tmp_path / "out")
    assert told["timings"]["steps"] == (24 + 8) / 4
    assert f"train has 8 examples of {tmp_path}/old as well (replay)" in told["findings"]


def test_the_data_that_are_seen_again_are_part_of_a_runs_identity(priors: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    shutil.copytree(priors / "mine", tmp_path / "old" / "adapter")
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na,0\nb,1\n")
    files = ["task=classification", "task.dataset=csv", f"task.data_files={{train: {rows}}}"]
    old = asked(*WORDS, *files, "task.labels=[a,b]").settings
    words = ["+variant=lora", "target_modules=[q,down]", f"start_from={tmp_path}/old"]

    def identity(*more: str, **task: Any) -> str:
        config = asdict(old) | {"task": asdict(old.task) | task}
        (tmp_path / "old" / "result.json").write_text(json.dumps({"config": config}))
        return asked(*WORDS, *words, *more).identity

    first = identity("replay=0.4")
    assert identity("replay=0.4") == first
    assert identity("replay=0.4", max_length=7) != first
    assert identity() == identity(max_length=7)
    rows.write_text("text,label\na,0\nb,0\n")
    assert identity("replay=0.4") != first


def test_what_a_run_starts_from_is_part_of_its_identity_and_its_place_is_not(
    priors: Path, tmp_path: Path
) -> None:
    shutil.copytree(priors / "mine", tmp_path / "moved")
    plain, here, there, above = (
        asked(*WORDS, *more).identity
        for more in (
            [],
            [f"start_from={priors}/mine"],
            [f"start_from={tmp_path}/moved"],
            [f"prior=[{priors}/mine]"],
        )
    )
    assert here == there and len({plain, here, above}) == 3
    with pytest.raises(
        ValueError, match=r"start_from=nowhere: nowhere holds no adapter.*give a run's folder"
    ):
        asked(*WORDS, "start_from=nowhere")
    with pytest.raises(ValueError, match="program=relora has stages, which begin anew"):
        asked(*WORDS, f"start_from={priors}/mine", "program=relora")
