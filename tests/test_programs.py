"""Stage programs: what they learn is the sum of their stages, and a kill costs nothing."""

import json
import signal
from collections.abc import Generator, Iterator
from fractions import Fraction
from itertools import combinations, cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_zoo import inject, runs, updates
from lora_zoo.config import command_line, schema
from lora_zoo.config import compose as composing
from lora_zoo.config.spec import RunSpec
from lora_zoo.conformance.cases import fitting
from lora_zoo.conformance.cases import settings as known_settings
from lora_zoo.core.program import PROGRAMS, ProgramContext, Stage
from lora_zoo.core.variants import VARIANTS
from lora_zoo.export import export
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.launchers.packed.grouping import groups
from lora_zoo.models.merging import merge
from lora_zoo.programs.lora_drop import importances, most_important
from lora_zoo.runs import sources
from lora_zoo.runs.identity import specify
from lora_zoo.training import runner, settling, trainer
from lora_zoo.training.calibration import examples
from lora_zoo.training.resources import FreshResources, TaskData
from lora_zoo.training.settling import settled
from lora_zoo.training.stages import StagedTraining
from tests.processes import start
from tests.test_packed import batch, model, stirred

pytestmark = pytest.mark.xdist_group("programs")  # one worker: they share what is trained
QUICK = ("task.sizes.test=4", "task.sizes.validation=4", "threads=1", "tracking=none")
QUICK += ("eval_before_training=false", "trainer.logging_steps=2", "trainer.save_steps=2")
QUICK += ("batch_size=4", "task.sizes.train=64", "task.max_new_tokens=2", "forgetting_text=null")
QUICK += ("eval_splits=[validation]",)
RELORA = ("+variant=lora", "program=relora", "program.rounds=3", "rank=2", "alpha=3", "steps=12")
RELORA += ("lora_dropout=0.1", "target_modules=[q,v,down]", *QUICK)

DROP = ("+variant=lora", "program=lora_drop", "program.probe=0.34", "program.threshold=0.95", "rank=2")
DROP += ("steps=12", "lora_dropout=0.1", "target_modules=[q,v,down]", "calibration_examples=6", *QUICK)


def run(*arguments: str, at: Path, **env: str) -> tuple[int, str]:
    running = start(*arguments, at=at, merged=True, **env)
    said = running.communicate(timeout=300)[0]
    return running.returncode or 0, said


def asked(*overrides: str) -> RunSpec:
    schema.register()
    ready = command_line.rewritten(list(overrides))
    return specify(composing.check(command_line.overrides(ready), multirun=False)[0])


def ran(*arguments: str, at: Path) -> Path:
    code, said = run(*arguments, at=at)
    assert code == 0, said
    return folder_in(at)


def folder_in(at: Path) -> Path:
    (result,) = at.rglob("result.json")
    return result.parent


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def killing(folder: Path, step: int, number: signal.Signals) -> str:
    """A folder for PYTHONPATH: a process that receives the signal in the run's step of this number."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from lora_zoo.training import trainer\n"
        "plain, steps = trainer.ZooTrainer.training_step, []\n"
        "def training_step(self, *given, **more):\n"
        "    steps.append(self)\n"
        f"    if len(steps) == {step}:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    return plain(self, *given, **more)\n"
        "trainer.ZooTrainer.training_step = training_step\n"
    )
    return str(folder / "site")


def same_run(one: Path, other: Path) -> None:
    names = [p.relative_to(one) for p in sorted(one.rglob("adapter/adapter.safetensors"))]
    assert len(names) == 1 + len(record(one)["stages"])
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    a, b = record(one), record(other)
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
    plain = [[{k: v for k, v in e.items() if k not in timed} for e in r["history"]] for r in (a, b)]
    assert plain[0] == plain[1]
    assert all(a[key] == b[key] for key in ("metrics", "updates", "ranks"))
    assert b["timings"]["steps"] == a["timings"]["steps"] and b["state"] == "done"


# --- what is chosen ----------------------------------------------------------------------------------------


def test_without_a_program_a_run_is_what_it_was() -> None:
    """The hash of the settings is that of the last version that knew no programs."""
    spec = asked("+variant=lora", "rank=8")
    assert spec.made_of["settings"] == "af9a0f435a2aa699" and not spec.settings.program
    assert spec.identity == asked("+variant=lora", "rank=8", "program=none").identity


def test_a_program_is_part_of_what_a_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, four = asked("+variant=lora"), asked("+variant=lora", "program=relora")
    assert four.name == plain.name.replace("lora-", "lora-relora-", 1)
    chosen = {key: four.settings.program[key] for key in ("name", "rounds", "schedule", "reset")}
    assert chosen == {"name": "relora", "rounds": 4, "schedule": "own", "reset": "new"}
    assert four.identity == asked("program=relora", "program.rounds=4").identity
    assert len({s.identity for s in (plain, four, asked("program=relora", "program.rounds=3"))}) == 3
    assert groups([plain, four])[1] == ([1], "it has a program of stages")
    before = [asked(f"program={name}").identity for name in ("relora", "none")]
    syntax = sources._syntax
    monkeypatch.setattr(sources, "_OF_OURS", {})
    monkeypatch.setattr(
        sources, "_syntax", lambda file, at: "another" if file.stem == "relora" else syntax(file, at)
    )
    assert asked("program=relora").identity != before[0], "its source counts"
    assert asked("program=none").identity == before[1]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["program=relra"], "unknown program 'relra'. Did you mean 'relora'?"),
        (["program=relora", "program.round=2"], "unknown hyperparameter 'round'. Did you mean 'rounds'?"),
        (["program=relora", "program.rounds=x"], "relora: rounds must be an integer; got 'x'"),
        (["program.rounds=2"], "program.rounds is a key of no program; choose one with program="),
        (["program.name=relora"], "a program is chosen as a whole; write program=relora"),
    ],
)
def test_a_wrong_choice_is_told_in_one_line(overrides: list[str], says: str) -> None:
    with pytest.raises(ValueError) as error:
        asked(*overrides)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "says", "dry"),
    [
        (["+variant=dora", "program=relora"], "the ΔW of dora is no product", "true"),
        (["+variant=dora", "program=relora"], "the ΔW of dora is no product", "false"),
        (["+variant=full", "program=relora"], "full adapts no matrix", "true"),
        (["+variant=lora", "program=relora", "program.rounds=9"], "between 1 and the 4 steps; got 9", "true"),
        (
            ["+variant=lora", "program=relora", "program.rounds=0"],
            "between 1 and the 4 steps; got 0",
            "false",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_step(
    overrides: list[str], says: str, dry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = asked(*overrides, "steps=4", f"out={tmp_path}", f"dry_run={dry}", *QUICK)
    assert runner.run(spec) == 2
    assert says in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_names_the_program_and_shows_its_first_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.run(asked("program=relora", "rank=2", "dry_run=true")) == 0
    said = capsys.readouterr().out
    assert "program relora: the first of its stages is shown" in said and "4,096" in said


# --- settling ----------------------------------------------------------------------------------------------

SETTLE = [name for name, cls in VARIANTS.items() if settling._factored(cls)]
TARGETS = (("q", "v"), ("all-linear",), ("embed", "down"))


@pytest.mark.parametrize(  # each variant on one, by turns, and LoRA on all: layers are the wrappers' own
    ("name", "targets"), sorted({*zip(SETTLE, cycle(TARGETS), strict=False), *product(["lora"], TARGETS)})
)
def test_settling_keeps_the_function_and_never_writes_to_the_base(
    name: str, targets: tuple[str, ...]
) -> None:
    network, inputs = model(), batch(3, 7, seed=1)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    parts: list[Any] = []
    after = torch.empty(0)
    for number, asked_for in enumerate([fitting(name, network, list(targets)), ["q", "k"]]):
        if number:
            frozen = settled(network, parts, "settled", 0)
            assert torch.allclose(network(**inputs).logits, after, rtol=0, atol=1e-12)
            parts = [frozen]
        own = known_settings(name, 3)
        stage = stirred(inject(network, name, target_modules=asked_for, seed=number, **own))
        adapters_of(network).activate(*adapters_of(network))
        parts, after = [*parts, stage], network(**inputs).logits
    dW = {}
    for part in parts:
        for matrix, _, dW_OI in part:
            dW[matrix] = dW.get(matrix, 0) + dW_OI
    whole = settled(network, parts, "default", 0)
    assert list(adapters_of(network)) == ["default"] and whole.variant.name == "lora"
    assert torch.allclose(network(**inputs).logits, after, rtol=0, atol=1e-12)
    assert {n for n, _, _ in whole} == dW.keys()
    for matrix, _, dW_OI in whole:
        assert torch.allclose(dW_OI, dW[matrix], rtol=0, atol=1e-12), matrix
        assert len(whole.adapters[matrix].A_RI) <= min(dW_OI.shape)
    whole.remove()
    now = network.state_dict()
    assert now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)


# --- ReLoRA ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing befell."""
    return ran(*RELORA, at=tmp_path_factory.mktemp("relora"))


@pytest.fixture(scope="module")
def lora_drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing befell."""
    return ran(*DROP, at=tmp_path_factory.mktemp("lora_drop"))


def products(folder: Path, scale: float) -> dict[str, torch.Tensor]:
    """ΔW = s B A of each matrix, from the file alone."""
    state = {k: t.double() for k, t in load_file(folder / "adapter" / "adapter.safetensors").items()}
    names = sorted(key.removesuffix(".A_RI") for key in state if key.endswith(".A_RI"))
    return {name: scale * state[f"{name}.B_OR"] @ state[f"{name}.A_RI"] for name in names}


def test_the_adapter_is_the_sum_of_its_rounds_and_its_rank_grows(relora: Path) -> None:
    """C-34: rank(ΔW) <= rounds r; C-35: it exceeds r, as each round draws factors of its own."""
    rounds = [products(relora / "stages" / str(number), 3 / 2) for number in (1, 2, 3)]
    whole, about = products(relora, 1.0), described(relora)
    assert about["variant"] == "lora" and about["hyperparameters"]["rank"] == 6
    assert len(whole) == 12 and all(part.keys() == whole.keys() for part in rounds)
    for name, dW_OI in whole.items():
        expected = sum(part[name] for part in rounds)
        assert torch.allclose(dW_OI, expected, rtol=0, atol=1e-6 * float(expected.abs().max())), name
        assert [int(torch.linalg.matrix_rank(part[name], rtol=1e-5)) for part in rounds] == [2, 2, 2]
        assert 2 < int(torch.linalg.matrix_rank(dW_OI, rtol=1e-5)) <= 6
    assert record(relora)["ranks"] == {name: [[0, 2], [4, 4], [8, 6]] for name in whole}
    told = runs.ranks(runs.load(relora))
    assert len(told) == 36 and set(told["role"]) == {"q", "v", "down"} and set(told["layer"]) == {0, 1, 2, 3}


def test_rounds_have_schedules_of_their_own_and_steps_go_on(relora: Path) -> None:
    content = record(relora)
    logged = [(e["step"], e["learning_rate"]) for e in content["history"] if "learning_rate" in e]
    assert [step for step, _ in logged] == [2, 4, 6, 8, 10, 12]
    rates = [rate for _, rate in logged]
    assert rates[0:2] == rates[2:4] == rates[4:6] and rates[0] > rates[1]
    epochs = [e["epoch"] for e in content["history"]]
    assert epochs == sorted(epochs) and epochs[-1] == pytest.approx(3 * epochs[1])
    stages = content["stages"]
    assert [stage["then"] for stage in stages] == ["settle", "settle", "keep"]
    assert len({stage["seed"] for stage in stages}) == 3 and stages[0]["seed"] == 0
    assert content["timings"]["steps"] == 12 and content["parameters"]["adapted"] == 12
    assert "from step 4 to 12" in (relora / "run.log").read_text()


@pytest.mark.endurance
@pytest.mark.parametrize(  # each value once
    ("program", "step", "number"), [("relora", 5, signal.SIGKILL), ("lora_drop", 7, signal.SIGTERM)]
)
def test_killed_in_its_second_stage_a_run_goes_on_to_the_bit(
    program: str, step: int, number: signal.Signals, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """At the first step of the stage, before any checkpoint of its own, and after one."""
    whole, words = request.getfixturevalue(program), {"relora": RELORA, "lora_drop": DROP}[program]
    code, said = run(*words, at=tmp_path, PYTHONPATH=killing(tmp_path, step, number))
    assert code in (-9, 143), said
    first = record(folder_in(tmp_path))["stages"][0]
    code, said = run(*words, "resume=true", at=tmp_path)
    reached = (4 if step == 5 else 6) + (number == signal.SIGTERM)
    assert code == 0 and f"resuming from step {reached}" in said, said
    same_run(whole, folder_in(tmp_path))
    content = record(folder_in(tmp_path))
    assert [entry["step"] for entry in content["resumed"]] == [reached]
    assert content["stages"][0] == first, "a stage that is finished is not trained again"


def test_one_round_is_plain_lora_to_the_bit(tmp_path: Path) -> None:
    words = ("+variant=lora", "rank=2", "steps=4", "lora_dropout=0.1", *QUICK)
    for name, more in (("one", ("program=relora", "program.rounds=1")), ("plain", ())):
        (tmp_path / name).mkdir()
        ran(*words, *more, at=tmp_path / name)
    one, plain = (
        (folder_in(tmp_path / name) / "adapter" / "adapter.safetensors").read_bytes()
        for name in ("one", "plain")
    )
    assert one == plain


def test_what_reads_a_run_reads_a_program_s(relora: Path, tmp_path: Path) -> None:
    merged = merge(relora, tmp_path / "merged")
    assert merged.explained
    exported = export(relora, tmp_path / "peft")
    assert exported.difference < 1e-4 and exported.written.config["r"] == 6
    read = updates.read(relora)
    dW = products(relora, 1.0)
    assert read.rank == 6 and set(read) == set(dW)
    for name, dW_OI in dW.items():
        largest = torch.linalg.matrix_norm(dW_OI, 2)
        assert float(read[name].singular_values[0]) == pytest.approx(float(largest), rel=1e-4)
    (row,) = runs.load(relora).to_dict("records")
    assert (row["variant"], row["program"], row["rank"]) == ("lora", "relora", 2)
    assert not row["stale"] and not row["contradiction"]


def test_the_function_is_equal_at_each_cut_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained in full beside the adapters, a norm goes on where the round before has left it."""
    seen: list[torch.Tensor] = []

    def look(self: StagedTraining) -> None:
        tokens = torch.arange(5, 25)[None]
        with torch.no_grad():
            seen.append(self.model.eval()(input_ids=tokens).logits)

    plain_settle, plain_begin = StagedTraining._settle, StagedTraining._begin

    def settle(self: StagedTraining) -> None:
        look(self), plain_settle(self), look(self)

    def begin(self: StagedTraining) -> None:
        plain_begin(self), look(self)

    monkeypatch.setattr(StagedTraining, "_settle", settle)
    monkeypatch.setattr(StagedTraining, "_begin", begin)
    spec = asked(*RELORA, f"out={tmp_path}", "modules_to_save=[model.norm]", "lr=0.02")
    assert runner.run(spec) == 0
    first, end_1, _, cut_1, end_2, _, cut_2 = seen
    for end, cut in ((end_1, cut_1), (end_2, cut_2)):
        assert torch.allclose(end, cut, rtol=0, atol=2e-5 * float(end.abs().max()))
    assert float((end_1 - first).abs().max()) > 0.05 < float((end_2 - end_1).abs().max())
    state = load_file(folder_in(tmp_path) / "adapter" / "adapter.safetensors")
    last = load_file(folder_in(tmp_path) / "stages" / "3" / "adapter" / "adapter.safetensors")
    assert torch.equal(state["model.norm.weight"], last["model.norm.weight"])
    assert record(folder_in(tmp_path))["parameters"]["in_full"] == ["model.norm.weight"]


# --- LoRA-drop ---------------------------------------------------------------------------------------------


def shares_of(folder: Path, spec: RunSpec) -> dict[str, float]:
    """E‖ΔW x‖² by plain layers: the first stage's ΔW added to W, x as hooks on the layers see it."""
    data = TaskData(spec.settings)
    network = FreshResources().base(spec.settings, data, 0).model
    dW = products(folder / "stages" / "1", 1.0)
    energy = dict.fromkeys(dW, 0.0)
    with torch.no_grad():
        for name, dW_OI in dW.items():
            layer = network.get_submodule(name)
            layer.weight += dW_OI.float()

            def see(_: Any, given: Any, __: Any, name: str = name, dW_OI: torch.Tensor = dW_OI) -> None:
                energy[name] += float((given[0].double() @ dW_OI.T).norm() ** 2)

            layer.register_forward_hook(see)
        for example in examples(spec, network, data):
            network.eval()(**example)
    return {name: value / sum(energy.values()) for name, value in energy.items()}


def described(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "adapter" / "adapter.json").read_text())
    return content


def test_the_matrices_that_matter_keep_their_lora_and_the_others_share_one(lora_drop: Path) -> None:
    shares, about = shares_of(lora_drop, asked(*DROP)), described(lora_drop)
    ranked = sorted(shares.values(), reverse=True)
    least = next(n for n in range(1, 13) if sum(ranked[:n]) >= 0.95)
    assert 1 < least < 10, "the case must tell something"
    kept = {name for name in shares if shares[name] >= ranked[least - 1]}
    assert about["variant"] == "shared_lora" and set(about["hyperparameters"]["kept"]) == kept
    assert set(about["target_modules"]) == set(shares)
    state = load_file(lora_drop / "adapter" / "adapter.safetensors")
    own = {key.removesuffix(".own.A") for key in state if key.endswith(".own.A")}
    assert own == kept
    assert {key for key in state if key.startswith("shared.A.")} == {"shared.A.128x128", "shared.A.128x384"}
    counts = record(lora_drop)
    sizes = {name: sum(products(lora_drop / "stages" / "1", 1.0)[name].shape) for name in shares}
    shapes = {tuple(products(lora_drop / "stages" / "1", 1.0)[n].shape) for n in shares.keys() - kept}
    expected = 2 * (sum(sizes[name] for name in kept) + sum(map(sum, shapes)))
    assert counts["parameters"]["trainable"] == expected < counts["stages"][0]["trainable"]


def test_what_reads_a_run_reads_one_whose_matrices_share(lora_drop: Path, tmp_path: Path) -> None:
    assert merge(lora_drop, tmp_path / "merged").explained
    assert export(lora_drop, tmp_path / "peft").difference < 1e-4
    read, whole = updates.read(lora_drop), updates.read(lora_drop, base=True)
    assert set(read) == set(whole) and len(read) == 12
    for name in read:
        assert torch.allclose(read[name].singular_values[:2], whole[name].singular_values[:2], rtol=1e-4)
    (row,) = runs.load(lora_drop).to_dict("records")
    assert row["program"] == "lora_drop" and not row["stale"] and not row["contradiction"]


def test_the_threshold_is_between_one_lora_a_shape_and_plain_lora(tmp_path: Path) -> None:
    """T -> 0: all share. T = 1: each has its own, to the bit those of plain LoRA."""
    found = {}
    for share, threshold in (("true", "1.0"), ("false", "1.0"), ("true", "0.0"), ("false", "0.5")):
        at = tmp_path / f"{share}-{threshold}"
        words = (*DROP, "steps=6", f"program.threshold={threshold}", f"program.share={share}", f"out={at}")
        assert runner.run(asked(*words)) == 0
        found[share, threshold] = load_file(folder_in(at) / "adapter" / "adapter.safetensors")
    plain, all_own = found["false", "1.0"], found["true", "1.0"]
    assert {k.replace(".own.A", ".A_RI").replace(".own.B", ".B_OR") for k in all_own} == set(plain)
    for key, tensor in all_own.items():
        assert torch.equal(tensor, plain[key.replace(".own.A", ".A_RI").replace(".own.B", ".B_OR")])
    assert all(key.startswith("shared.") for key in found["true", "0.0"]) and len(found["true", "0.0"]) == 4
    fewer = found["false", "0.5"]
    assert set(fewer) < set(plain) and described(folder_in(tmp_path / "false-0.5"))["variant"] == "lora"


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=7), st.integers(0, 20))
def test_the_kept_set_is_the_smallest_that_reaches_the_threshold(sizes: list[int], percent: int) -> None:
    shares = {f"m{number}": Fraction(size, sum(sizes) or 1) for number, size in enumerate(sizes)}
    threshold = Fraction(percent, 20) if sum(sizes) else Fraction(0)
    kept = most_important(shares, threshold)  # type: ignore[arg-type]
    every = [c for n in range(len(shares) + 1) for c in combinations(shares, n)]
    enough = [c for c in every if sum(shares[name] for name in c) >= threshold]
    if threshold < 1:
        assert len(kept) == min(map(len, enough)) and sum(shares[name] for name in kept) >= threshold
    else:
        assert set(kept) == set(shares)


def test_importances_are_of_inputs_in_any_order_and_of_any_layer_that_is_called() -> None:
    network = model()
    stage = stirred(inject(network, "dora", rank=2, target_modules=["embed", "q", "down"]))
    inputs = [batch(1, length, seed=length) for length in (3, 5, 8)]
    shares = importances(stage, inputs)
    assert shares.keys() == stage.adapters.keys() and sum(shares.values()) == pytest.approx(1)
    assert importances(stage, inputs[::-1]) == pytest.approx(shares, rel=1e-10)
    embed = next(name for name in shares if "embed" in name)
    dW_OI = stage.update(embed).dW_OI
    tokens = torch.cat([given["input_ids"].flatten() for given in inputs])
    q = "model.layers.0.self_attn.q_proj"
    norm = network.model.layers[0].input_layernorm
    x = torch.cat([norm(network.model.embed_tokens(given["input_ids"])).flatten(0, 1) for given in inputs])
    ratio = dW_OI[:, tokens].square().sum() / (x @ stage.update(q).dW_OI.T).square().sum()
    assert shares[embed] / shares[q] == pytest.approx(ratio.item(), rel=1e-8)
    fresh = model()
    with pytest.raises(ValueError, match="the first stage changed no output; give it other steps"):
        importances(inject(fresh, "lora", rank=2), inputs)
    with pytest.raises(ValueError, match="no pass over the examples calls"):
        importances(stage, [])


# --- AutoLoRA and ALoRA ------------------------------------------------------------------------------------

SEARCH = ["+variant=lora", "rank=2", "alpha=3", "lora_dropout=0.1", "lr=0.02", *QUICK]


def test_the_ranks_of_a_search_are_trained_anew_on_all_of_the_data(tmp_path: Path) -> None:
    spec = asked(*SEARCH, "program=autolora", "program.search=0.7", "steps=6", f"out={tmp_path}")
    assert runner.run(spec) == 0
    folder = folder_in(tmp_path)
    content, state = record(folder), load_file(folder / "adapter" / "adapter.safetensors")
    searched, kept = content["stages"]
    assert (searched["variant"], searched["steps"], searched["parts"]) == (
        "autolora_search",
        4,
        {"inner": 45, "outer": 19},
    )
    assert (kept["variant"], kept["steps"], "parts" in kept) == ("lora", 2, False)
    found = load_file(folder / "stages" / "1" / "adapter" / "adapter.safetensors")
    weights = {k.removesuffix(".g_R"): t.exp() / t.exp().sum() for k, t in found.items() if k.endswith("g_R")}
    ranks = {name: int((w_R >= 1 / 4).sum()) for name, w_R in weights.items()}
    assert {k.removesuffix(".A_RI"): len(t) for k, t in state.items() if k.endswith("A_RI")} == ranks
    assert len(set(ranks.values())) > 1 and content["parameters"]["trainable"] == kept["trainable"]
    about = content["variant"]
    assert about["name"] == "lora" and about["hyperparameters"]["rank"] == 2 and about["scales"] == []
    (row,) = runs.load(folder).to_dict("records")
    assert (row["program"], row["rank"]) == ("autolora", 2) and not row["stale"] and not row["contradiction"]
    last = load_file(folder / "stages" / "2" / "adapter" / "adapter.safetensors")
    assert all(torch.equal(last[key], tensor) for key, tensor in state.items())


def test_rounds_go_on_from_what_is_kept_and_a_kill_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round begins with what was kept of the stage before; so does the norm that trains in full."""
    begun, begin, plain, steps = [], StagedTraining._begin, trainer.ZooTrainer.training_step, []

    def watched(self: StagedTraining) -> None:
        begin(self)
        begun.append({key: tensor.clone() for key, tensor in self.injection.state_dict().items()})

    def killed(self: Any, *given: Any, **more: Any) -> Any:
        steps.append(self)
        if len(steps) == 6:
            raise OSError("the disk is away")
        return plain(self, *given, **more)

    words = [*SEARCH, "program=alora", "program.rounds=2", "program.examples=2", "steps=8"]
    words += ["program.moved=0.25", "modules_to_save=[model.norm]", "target_modules=[q]"]
    with monkeypatch.context() as patch:
        patch.setattr(StagedTraining, "_begin", watched)
        assert runner.run(asked(*words, f"out={tmp_path / 'whole'}")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(trainer.ZooTrainer, "training_step", killed)
        assert runner.run(asked(*words, f"out={tmp_path / 'killed'}")) == 1
    assert runner.run(asked(*words, f"out={tmp_path / 'killed'}", "resume=true")) == 0
    whole = folder_in(tmp_path / "whole")
    same_run(whole, folder_in(tmp_path / "killed"))
    stages = record(whole)["stages"]
    assert [s["steps"] for s in stages] == [3, 2, 3] and [s["then"] for s in stages][-1] == "keep"
    assert {s["trainable"] for s in stages} == {stages[0]["trainable"]}
    assert len({s["seed"] for s in stages}) == 3
    for number, first in enumerate(begun[1:], start=1):
        before = load_file(whole / "stages" / str(number) / "adapter" / "adapter.safetensors")
        about = json.loads((whole / "stages" / str(number + 1) / "adapter" / "adapter.json").read_text())
        ranks, moved = about["patterns"]["rank"], 0
        for key, B_OR in first.items():
            name = key.removesuffix(".B_OR")
            if name == key:
                continue
            old = {tuple(column.tolist()) for column in before[key].T}
            new = [tuple(column.tolist()) in old for column in B_OR.T]
            assert new == sorted(new, reverse=True) and not B_OR[:, sum(new) :].any()
            assert ranks.get(name, 2) == len(new)
            assert about["patterns"]["alpha"][name] == pytest.approx(1.5 * len(new))
            moved += len(new) - sum(new)
        assert moved == 2, "a quarter of 8"
        assert torch.equal(first["model.norm.weight"], before["model.norm.weight"])


# --- programs of one's own ---------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for held in ("_members", "_origins"):
        monkeypatch.setattr(PROGRAMS, held, dict(getattr(PROGRAMS, held)))
    yield lambda program: PROGRAMS.add(program.__name__, program)


def too_long(context: ProgramContext) -> Generator[Stage, Any, None]:
    yield Stage(context.steps + 1, then="keep")


def too_short(context: ProgramContext) -> Generator[Stage, Any, None]:
    yield Stage(context.steps - 1, then="keep")


def nothing_kept(context: ProgramContext) -> Generator[Stage, Any, None]:
    yield Stage(context.steps)


def goes_on(context: ProgramContext) -> Generator[Stage, Any, None]:
    yield Stage(2, then="discard")
    yield Stage(context.steps - 2, then="keep")
    yield Stage(1)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (too_long, "stage 1 takes 5 steps, where 4 of 4 are left"),
        (too_short, "stage 1 takes 3 steps, where 4 of 4 are left"),
        (nothing_kept, "the last stage, and no other one, must be kept"),
        (goes_on, "the last stage, and no other one, must be kept"),
    ],
)
def test_stages_add_up_to_the_run(
    program: Any, says: str, registered: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered(program)
    spec = asked("+variant=lora", f"program={program.__name__}", "steps=4", f"out={tmp_path}", *QUICK)
    assert runner.run(spec) in (1, 2)
    assert says in " ".join(capsys.readouterr().out.split())


def two_variants(context: ProgramContext) -> Generator[Stage, Any, None]:
    """What a stage has learned is seen by the program; a discarded one leaves nothing behind."""
    learned = yield Stage(2, variant="dora", inject={"target_modules": ["q"]}, then="discard")
    assert learned.variant.name == "dora" and all(float(dW.norm()) > 0 for _, _, dW in learned)
    names = [name for name, _, _ in learned][:2]
    yield Stage(1, inject={"target_modules": names, "rank": 1})
    yield Stage(context.steps - 3, variant="rslora", then="keep")


def test_stages_may_differ_in_variant_rank_and_targets(registered: Any, tmp_path: Path) -> None:
    registered(two_variants)
    spec = asked("+variant=lora", "program=two_variants", "rank=2", "steps=6", f"out={tmp_path}", *QUICK)
    assert runner.run(spec) == 0
    folder = folder_in(tmp_path)
    assert [s["variant"] for s in record(folder)["stages"]] == ["dora", "lora", "rslora"]
    about = described(folder)
    assert about["hyperparameters"]["rank"] == 2 and len(about["target_modules"]) == 8
    assert sorted(about["patterns"]["rank"].values()) == [3, 3]
    (row,) = runs.load(folder).to_dict("records")
    assert not row["stale"], "what was registered is still there"
    del PROGRAMS._members["two_variants"], PROGRAMS._origins["two_variants"]
    (row,) = runs.load(folder).to_dict("records")
    assert row["stale"] == "there is no program 'two_variants' any more" and not row["contradiction"]


def test_epochs_are_steps_that_stages_share(tmp_path: Path) -> None:
    spec = asked(
        *("+variant=lora", "program=relora", "program.rounds=2", "epochs=1.5"),
        *(f"out={tmp_path}", *QUICK, "task.sizes.train=18"),
    )
    assert runner.run(spec) == 0
    assert [stage["steps"] for stage in record(folder_in(tmp_path))["stages"]] == [4, 4]  # ⌈1.5 · 5⌉
