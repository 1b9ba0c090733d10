"""The benchmark compares like with like and says what made its numbers; its guard bites what is slower."""

import dataclasses
import gc
import itertools
import json
import os
import types
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lora_zoo import bench
from lora_zoo.benchmark import (
    contenders,
    figures,
    files,
    goals,
    guard,
    memory,
    options,
    peft_side,
    scaling,
    starts,
    sweeps,
)
from lora_zoo.benchmark.contenders import Contender, adapts_matrices
from lora_zoo.benchmark.report import Report
from lora_zoo.benchmark.shapes import REFERENCE, SHAPES, Shape, llama
from lora_zoo.benchmark.timing import Spread, Stopwatch, ratio
from lora_zoo.core.adapter import Adapter
from lora_zoo.core.variants import VARIANTS
from lora_zoo.inject.injection import inject
from lora_zoo.runs.environment import environment
from lora_zoo.variants.additive.lora import LoRA
from lora_zoo.variants.low_rank import Additive

CPU = torch.device("cpu")
ADAPTERS = [name for name, cls in VARIANTS.items() if adapts_matrices(cls)]
TINY = llama(
    "tiny", "", hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2, sequences=2, length=8
)  # fmt: skip
SMALLEST = llama("smallest", "", hidden=16, intermediate=16, layers=1, heads=2, sequences=1, length=4)


def paths(shape: Shape, variant: str, **more: object) -> dict[tuple[str, float], Contender]:
    return contenders.contenders(shape, shape.model(), variant, device=CPU, **more)


def logits(contender: Contender, shape: Shape) -> torch.Tensor:
    with contender.around(), torch.no_grad():
        return contender.model(**shape.batch()).logits


def gradients(contender: Contender) -> float:
    with contender.around():
        contender.loss().backward()
    return float(sum(p.grad.square().sum() for p in contender.parameters)) ** 0.5


# --- like with like ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ADAPTERS)
def test_every_path_of_a_variant_is_the_same_function_with_the_same_gradients(variant: str) -> None:
    found = paths(TINY, variant)
    assert set(found) == {("limit", 0.0), ("fused", 0.0), ("plain", 0.0), ("peft", 0.0)}
    frozen = logits(found.pop(("limit", 0.0)), TINY)
    fused = found["fused", 0.0]
    expected = logits(fused, TINY)
    assert (expected - frozen).abs().max() > 1e-3, "the adapter does nothing: this comparison shows nothing"
    norm, trained = gradients(fused), sum(p.numel() for p in fused.parameters)
    for key in (("plain", 0.0), ("peft", 0.0)):
        assert_close(logits(found[key], TINY), expected, rtol=0, atol=1e-4)
        assert gradients(found[key]) == pytest.approx(norm, rel=1e-4)
        assert sum(p.numel() for p in found[key].parameters) == trained
        assert float(found[key].loss().detach()) == pytest.approx(float(fused.loss().detach()), abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_every_shape_is_adapted_alike_by_every_path(shape: Shape) -> None:
    found = paths(shape, "lora")
    expected = logits(found["fused", 0.0], shape)
    for path in ("plain", "peft"):
        assert_close(logits(found[path, 0.0], shape), expected, rtol=0, atol=1e-4)
    assert (logits(found["limit", 0.0], shape) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("name, hidden, tokens", [("llama-192", 192, 1536), ("llama-768", 768, 512)])
def test_the_reference_settings_are_those_that_were_set(name: str, hidden: int, tokens: int) -> None:
    shape = SHAPES[name]
    assert shape.batch()["input_ids"].numel() == shape.tokens == tokens
    injection = contenders.adapted(shape.model(), "lora")
    roles = {place.rpartition(".")[2] for place in injection.adapters}
    assert roles == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert injection.adapters["model.layers.0.self_attn.q_proj"].A_RI.shape == (8, hidden)
    assert contenders.adapted(shape.model(), "vera").hyper["rank"] == 256


def test_dropout_and_rank_reach_peft_s_side_too() -> None:
    found = paths(TINY, "dora", dropouts=(0.05,), rank=3)
    (layer,) = (m for n, m in found["peft", 0.05].model.named_modules() if n.endswith("layers.1.mlp.up_proj"))
    assert layer.lora_dropout["default"].p == 0.05
    assert layer.lora_A["default"].weight.shape == (3, 64)
    assert ("plain", 0.05) not in found  # a definition knows no dropout
    differ = [logits(found["fused", 0.05], TINY) for _ in range(2)]
    assert not torch.equal(*differ)


@pytest.mark.parametrize("variant", ["pissa", "milora"])
def test_a_residual_start_is_measured_without_dropout(variant: str) -> None:
    assert {dropout for _, dropout in paths(TINY, variant, dropouts=(0.0, 0.05))} == {0.0}


@pytest.mark.parametrize("variant", ADAPTERS)
def test_the_base_is_shared_and_no_step_writes_to_it(variant: str) -> None:
    base = TINY.model()
    before = {name: p.clone() for name, p in base.named_parameters()}
    found = contenders.contenders(TINY, base, variant, device=CPU)
    for contender in found.values():
        contender.step()
        assert all(p.grad is None for p in contender.parameters)
    own = {id(p) for p in base.parameters()}
    for path in ("limit", "fused", "plain"):
        assert own <= {id(p) for p in found[path, 0.0].model.parameters()}
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert not parameter.requires_grad


def test_the_frozen_limit_trains_nothing_and_carries_the_gradient_to_the_embedding() -> None:
    contender = paths(TINY, "lora")["limit", 0.0]
    seen: list[torch.Tensor] = []

    def watch(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.register_hook(seen.append)

    contender.model.get_input_embeddings().register_forward_hook(watch)
    contender.step()
    assert not contender.parameters and not any(p.requires_grad for p in contender.model.parameters())
    assert seen and seen[0].abs().max() > 0


def test_the_plain_path_goes_through_weight_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Adapter] = []
    weight = LoRA.weight
    monkeypatch.setattr(LoRA, "weight", lambda self, W: calls.append(self) or weight(self, W))
    injection = contenders.adapted(TINY.model(), "lora")
    with contenders.reference_forward(injection), torch.no_grad():
        injection.model(**TINY.batch())
    assert calls == list(injection.adapters.values())
    assert not any("forward" in vars(adapter) for adapter in injection.adapters.values())


def test_adalora_s_step_has_its_regulariser_and_its_allocation_on_both_sides() -> None:
    base = TINY.model()
    ours = contenders.adapted(base, "adalora")
    mine = contenders.as_it_is(ours, TINY.batch())
    theirs = peft_side.contender(ours, contenders.sharing(base), TINY.batch())
    reported = ours.model(**TINY.batch()).loss
    assert float((mine.loss() - reported).detach()) > 1e-3  # the regulariser
    entries = [p for n, p in theirs.model.named_parameters() if ".lora_E." in n]
    mine.step(), theirs.step()
    kept = sum(int(a.E_R.count_nonzero()) for a in ours.adapters.values())
    assert kept == sum(int(e.count_nonzero()) for e in entries) < sum(e.numel() for e in entries)


def test_only_the_asked_layers_are_adapted_on_both_sides() -> None:
    found = paths(TINY, "lora", layers="1-")
    assert len(found["fused", 0.0].parameters) == len(found["peft", 0.0].parameters) == 14


def test_lora_plus_has_its_groups_and_lora_fa_its_frozen_factor_at_peft_too() -> None:
    plus, fa = paths(TINY, "lora_plus"), paths(TINY, "lora_fa")
    sizes = [[len(g["params"]) for g in plus[p, 0.0].groups()] for p in ("fused", "peft")]
    assert sizes == [[14, 14], [14, 14]]
    assert len(fa["peft", 0.0].parameters) == 14


def test_baselines_are_measured_as_they_are() -> None:
    found = paths(TINY, "full")
    assert set(found) == {("limit", 0.0), ("fused", 0.0)}
    full, base = found["fused", 0.0], TINY.model()
    full.step()
    assert sum(p.numel() for p in full.parameters) == sum(p.numel() for p in base.parameters())


def test_every_axis_of_the_scaling_has_room_for_its_values() -> None:
    for point in scaling.points(quick=False):
        config = point.shape.config()
        assert config.hidden_size % config.num_attention_heads == 0
        assert point.more.get("rank", 0) <= min(config.hidden_size, config.intermediate_size)
        assert point.shape.batch()["input_ids"].numel() == point.shape.tokens
    values = {
        axis: [p.value for p in points]
        for axis, points in itertools.groupby(scaling.points(quick=False), lambda p: p.axis)
    }
    assert values.keys() == {"rank", "width", "tokens", "layers"}
    assert values["rank"][0] == 1 and values["rank"][-1] == 512


# --- the stopwatch -----------------------------------------------------------------------------------------


class Ticks:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, ticks: float) -> None:
        self.now += ticks


def test_contenders_take_turns_in_orders_of_their_own_and_preparing_is_off_the_clock() -> None:
    clock, log = Ticks(), []

    def contender(name: str, ticks: float):
        def prepare():
            clock.work(1000)
            return lambda: (log.append(name), clock.work(ticks))

        return prepare

    watch = Stopwatch(rounds=8, warmup=1, least=0.0, clock=clock)
    times = watch.alternate({name: contender(name, ticks) for name, ticks in (("a", 1), ("b", 2), ("c", 4))})
    assert times == {"a": [1.0] * 8, "b": [2.0] * 8, "c": [4.0] * 8}
    rounds = [tuple(log[3 + 3 * n : 6 + 3 * n]) for n in range(8)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 2
    assert ratio(times["c"], times["b"]) == Spread(2.0, 2.0, 2.0)


def test_what_takes_less_than_a_sample_is_repeated_and_its_mean_taken() -> None:
    clock, calls = Ticks(), []
    watch = Stopwatch(rounds=2, warmup=1, least=10.0, clock=clock)
    times = watch.alternate({"short": lambda: lambda: (calls.append(0), clock.work(3))})
    assert times == {"short": [3.0, 3.0]}
    assert len(calls) == 1 + 2 * 4


def test_ratios_are_taken_within_a_round() -> None:
    slow_machine = [1.0, 10.0, 1.0, 10.0]
    assert ratio([2 * t for t in slow_machine], slow_machine) == Spread(2.0, 2.0, 2.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(3.0, 2.0, 4.0)


# --- memory ------------------------------------------------------------------------------------------------


def test_saved_bytes_count_each_storage_once_and_no_parameter() -> None:
    layer, x, made = nn.Linear(6, 6, bias=False), torch.ones(5, 6), []

    def loss() -> torch.Tensor:
        h = layer(x).exp()  # exp keeps h, the products below the same storage; layer keeps x and its weight
        made.append(weakref.ref(h))
        return (h * h[:, :]).sum()

    assert memory.saved_by(Contender(layer, loss)) == 4 * (5 * 6 + 5 * 6)
    layer.requires_grad_(False)
    assert memory.saved_by(Contender(layer, loss)) == 0
    gc.collect()
    assert [h() for h in made] == [None, None]


def test_lora_keeps_its_inputs_and_lora_fa_only_what_a_made_of_them() -> None:
    shape = SHAPES["llama-768"]
    base = shape.model()
    own = {v: memory.measure_one(shape, base, v, CPU) for v in ("lora", "lora_fa", "zero_shot")}
    assert own["zero_shot"]["fused_own"] == 0
    # PEFT's LoRA-FA: r = 8 floats a token at each of 14 matrices, and nothing else.
    assert own["lora_fa"]["peft_own"] == 14 * 8 * 4
    assert own["lora_fa"]["fused_own"] <= 0.10 * own["lora"]["fused_own"]
    assert own["lora"]["plain_own"] > own["lora"]["fused_own"]  # an effective matrix for each layer


# --- starts and files --------------------------------------------------------------------------------------


def test_every_start_is_timed_on_weights_that_nothing_has_seen() -> None:
    base = TINY.model()
    one, other = starts.fresh(base), starts.fresh(base)
    for name, parameter in base.named_parameters():
        assert not torch.equal(one.get_parameter(name), other.get_parameter(name))
        assert_close(one.get_parameter(name), parameter, rtol=0, atol=0.01)


def test_starts_leave_a_user_s_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("/somewhere", None):
        monkeypatch.delenv(starts.CACHE, raising=False)
        if before:
            monkeypatch.setenv(starts.CACHE, before)
        with starts.own_cache():
            folder = Path(os.environ[starts.CACHE])
            assert folder.is_dir() and not list(folder.iterdir())
        assert os.environ.get(starts.CACHE) == before and not folder.exists()


def test_the_second_start_is_on_the_model_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(starts, "inject", lambda model, *a, **k: seen.append(model) or inject(model, *a, **k))
    starts._again(TINY.model(), "lora", {"rank": 2})()()
    starts._first(TINY.model(), "lora", {"rank": 2})()()
    assert seen[0] is seen[1] is not seen[2]


def test_starts_are_those_of_the_registry_and_peft_s_where_it_has_them() -> None:
    assert ("pissa", "pissa_niter_16") in starts.starts("pissa")
    assert dict(starts.starts("adalora")) == {"adalora": "gaussian"}
    assert not list(starts.starts("full"))
    chosen = options.parse(["--rounds", "1", "--quick"], "")
    row = starts.measure_one(TINY, TINY.model(), "pissa", "pissa_niter_16", chosen)
    assert row["first_s"] > 0 and row["again_s"] > 0 and row["peft_s"] > 0
    assert "peft_s" not in starts.measure_one(TINY, TINY.model(), "milora", "milora", chosen)


def test_files_and_merging_are_timed_and_leave_the_base_alone(tmp_path: Path) -> None:
    base = TINY.model()
    before = {name: p.clone() for name, p in base.named_parameters()}
    chosen = options.parse(["--rounds", "2", "--quick"], "")
    row = files.measure_one(TINY, base, "dora", chosen, tmp_path)
    assert all(row[f"{do}{end}"] > 0 for do in files.DOES for end in ("_ms", "_peft_ms", "_over_peft"))
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_sweep_that_fails_is_no_measurement(monkeypatch, tmp_path, capsys) -> None:
    assert "basic" in sweeps.installed()
    monkeypatch.setattr(sweeps, "installed", lambda: ("basic",))
    monkeypatch.setattr(sweeps, "SMALL", ("task.sizes.test=-1",))
    code = ended(["--what", "sweep", "--quick", "--rounds", "1", "--out", str(tmp_path)])
    assert code == 1
    assert "ended with 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- the command -------------------------------------------------------------------------------------------


def ended(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        bench.main(arguments)
    return left.value.code


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--what", "stpe"], "unknown measurement 'stpe'. Did you mean 'step'?"),
        (["--shapes", "llama-191"], "unknown shape 'llama-191'. Did you mean 'llama-192'?"),
        (["--variants", "lora,dorra"], "unknown variant 'dorra'. Did you mean 'dora'?"),
        (["--dtype", "bfloat61"], "unknown dtype 'bfloat61'. Did you mean 'bfloat16'?"),
        (["--device", "cudaa"], "unknown device 'cudaa'. Did you mean 'cuda'?"),
        (["--device", "meta"], "unknown device 'meta'."),
        (["--device", "cuda:99"], "--device cuda:99: this machine has"),
        (["--round=3"], "unknown option '--round'. Did you mean '--rounds'?"),
        (["--rounds", "0"], "--rounds must be at least 1; got 0"),
        (["--rounds", "few"], "invalid int value: 'few'"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--write"], "--write belongs to --guard"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name_and_exit_code_2(arguments, said, capsys) -> None:
    assert ended(arguments) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("lora_zoo: ") and err.count("\n") == 1
    assert not out


def test_a_table_says_its_command_commit_and_machine_and_the_json_and_figure_go_with_it(
    tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    arguments = ["--what", "step,memory", "--shapes", "tiny", "--variants", "lora,full", "--rounds", "2"]
    assert ended([*arguments, "--out", str(tmp_path)]) == 0
    printed, commit = capsys.readouterr().out, environment()["commit"]
    for name in ("step", "memory"):
        text, data = (
            (tmp_path / f"{name}.md").read_text(),
            json.loads((tmp_path / f"{name}.json").read_text()),
        )
        said = f"`python -m lora_zoo.bench {' '.join(arguments)}`; commit `{str(commit)[:10]}`"
        assert said in text and said in printed
        assert f"torch {torch.__version__}" in text and "threads: 1; rounds: 2, processor time" in text
        assert data["origin"]["commit"] == commit and data["origin"]["rounds"] == 2
        assert [row["variant"] for row in data["rows"] if not row.get("dropout")] == ["lora", "full"]
        figure = (tmp_path / f"{name}.svg").read_text()
        assert "tiny" in figure and "PEFT" in figure and "variant" in figure
    step = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [row["dropout"] for row in step] == [0.0, 0.05, 0.0]
    for row in step[:2]:
        assert row["fused_low"] <= row["fused"] <= row["fused_high"]
        assert row["fused_over_peft"] == pytest.approx(row["fused"] / row["peft"], rel=0.5)
    assert "step / frozen limit" in (tmp_path / "step.svg").read_text()
    assert "bytes per token" in (tmp_path / "memory.svg").read_text()


def test_without_peft_its_column_is_left_out_with_a_line(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(peft_side, "installed", lambda: False)
    arguments = ["--what", "memory", "--shapes", "pocket", "--variants", "lora", "--out", str(tmp_path)]
    assert ended(arguments) == 0
    out = capsys.readouterr().out
    assert "peft is not installed, so its column is left out" in out
    (head,) = (line for line in out.splitlines() if line.startswith("| shape"))
    assert "peft" not in head and "fused" in head


# --- the figures to reach ----------------------------------------------------------------------------------


def test_each_figure_to_reach_stands_beside_what_was_measured() -> None:
    rows = [
        {"shape": "llama-768", "variant": "dora", "dropout": 0.0, "fused_over_peft": 0.64},
        {"shape": "llama-768", "variant": "dora", "dropout": 0.05, "fused_over_peft": 0.51},
    ]
    known = {name: Report(name, "", "", {}, []) for name in ("memory", "init")}
    page = goals.measure(
        options.parse(["--what", "targets"], ""), known | {"step": Report("step", "", "", {}, rows)}
    )
    text = page.markdown({**dict.fromkeys(("command", "commit", "dirty", "torch"), ""), **ORIGIN})
    assert "| dora, step / PEFT's | llama-768 | 0.65 | 0.64 | yes |" in text
    assert "| dora with dropout 0.05, step / PEFT's | llama-768 | 0.50 | 0.51 | no |" in text
    assert "| lora, step / the frozen limit | llama-192 | 1.20 | - | not measured |" in text
    assert "| lora, step / the frozen limit | llama-768 | 1.12 | - | not measured |" in text
    assert "| lora with dropout 0.05, step / PEFT's | llama-192 | 0.70 | - | not measured |" in text
    assert "Met: 2 of 3 measured" in text  # dora's 0.64 is also at most 1.0


ORIGIN = dict.fromkeys(("transformers", "peft", "device", "dtype", "threads", "rounds", "clock"), "")


def test_every_figure_to_reach_is_one_that_is_measured() -> None:
    """A key that no measurement writes would be "not measured" for ever."""
    quick = dataclasses.replace(options.parse(["--quick", "--rounds", "1"], ""), shapes=(TINY,))
    as_tiny = {**TINY.__dict__}
    for goal in goals.goals():
        assert goal.where["shape"] in REFERENCE
        assert goal.where["variant"] in ADAPTERS
    reports = {
        "step": bench.measurements()["step"](dataclasses.replace(quick, variants=("lora",))),
        "memory": bench.measurements()["memory"](dataclasses.replace(quick, variants=("lora", "lora_fa"))),
        "init": starts.measure(dataclasses.replace(quick, variants=("pissa",)), only=(goals.FAST,)),
    }
    for goal in goals.goals():
        if goal.report != "step" or goal.where["variant"] == "lora":
            here = dataclasses.replace(goal, where=goal.where | {"shape": as_tiny["name"]})
            assert isinstance(here.measured(reports), float), goal


# --- the guard ---------------------------------------------------------------------------------------------


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    """A clock that the adapters move: a definition costs ten ticks, a LoRA's own forward nine."""
    clock = Ticks()
    for cls, ticks in ((Adapter, 10), (Additive, 9)):
        monkeypatch.setattr(cls, "forward", costing(cls.forward, clock, ticks))
    monkeypatch.setattr(options, "clock_for", lambda device, threads: (clock, "ticks"))
    monkeypatch.setattr(guard, "SHAPE", SMALLEST)
    monkeypatch.setattr(guard, "SESSIONS", 2)
    return clock


def costing(forward, clock: Ticks, ticks: float):
    def slower(self, x, host):
        clock.work(ticks)
        return forward(self, x, host)

    return slower


def guarding(path: Path, *more: str) -> int:
    chosen = options.parse(["--guard", "--variants", "lora,rslora", "--rounds", "1", *more], "")
    return guard.run(chosen, {"command": "a test"}, path)


def test_the_guard_lets_pass_what_is_as_it_was(ticking, tmp_path, capsys) -> None:
    assert guarding(tmp_path / "reference.json", "--write") == 0
    recorded = guard.read(tmp_path / "reference.json")
    assert recorded["lora"] == guard.Allowed(0.9, guard.FLOOR)
    assert recorded.keys() == {f"{v}{d}" for v in ("lora", "rslora") for d in ("", ", dropout 0.05")}
    assert guarding(tmp_path / "reference.json") == 0
    assert "no variant of 2 is slower" in capsys.readouterr().out


def test_the_guard_names_the_variant_that_became_slower(ticking, tmp_path, capsys, monkeypatch) -> None:
    guarding(tmp_path / "reference.json", "--write")
    monkeypatch.setattr(LoRA, "forward", costing(LoRA.forward, ticking, 3))
    assert guarding(tmp_path / "reference.json") == 1
    out = capsys.readouterr().out
    assert "slower: lora: fused / plain was 0.90 and may be 1.01; measured 1.20, 1.20, 1.20" in out
    assert "slower: lora, dropout 0.05:" in out
    assert "slower: rslora" not in out


def test_the_guard_allows_what_is_within_the_tolerance(ticking, tmp_path, monkeypatch) -> None:
    guarding(tmp_path / "reference.json", "--write")
    monkeypatch.setattr(LoRA, "forward", costing(LoRA.forward, ticking, 1))
    assert guarding(tmp_path / "reference.json") == 0


def test_a_slower_definition_is_no_slower_variant_and_a_faster_one_is(ticking, tmp_path, monkeypatch) -> None:
    guarding(tmp_path / "reference.json", "--write")
    monkeypatch.setattr(Adapter, "forward", costing(Adapter.forward, ticking, 5))
    assert guarding(tmp_path / "reference.json") == 0


@pytest.mark.parametrize(
    "sessions, found",
    [
        ([1.5], [1.5, 1.5, 1.5]),
        ([1.5, 1.0], []),
        ([1.5, 1.5, 1.0], []),
        ([1.0], []),
        ([1.12], []),
        ([1.13], [1.13, 1.13, 1.13]),
    ],
)
def test_only_what_is_slower_three_times_in_a_row_counts(sessions, found) -> None:
    """The last of `sessions` is what every further measurement gives."""
    asked = []

    def measure(names):
        value = sessions[min(len(asked), len(sessions) - 1)]
        asked.append(list(names))
        return {"slow": value, "fine": 1.0} if "fine" in names else {"slow": value}

    allowed = {"slow": guard.Allowed(1.0, 0.12), "fine": guard.Allowed(1.0, 0.12)}
    slower = guard.compare(allowed, ["slow", "fine"], measure)
    assert [list(one.measured) for one in slower] == ([found] if found else [])
    assert asked[0] == ["slow", "fine"] and all(names == ["slow"] for names in asked[1:])
    assert len(asked) <= guard.CONFIRMATIONS


def test_different_variants_that_are_slow_once_each_are_noise() -> None:
    answers = iter([{"a": 2.0, "b": 1.0}, {"a": 1.0, "a, dropout 0.05": 2.0}, {"b": 2.0}])
    allowed = {name: guard.Allowed(1.0, 0.1) for name in ("a", "a, dropout 0.05", "b")}
    assert guard.compare(allowed, ["a", "b"], lambda names: next(answers)) == []


def test_the_tolerance_grows_with_the_measured_spread(monkeypatch) -> None:
    monkeypatch.setattr(guard, "SESSIONS", 5)
    noisy = iter([{"lora": value} for value in (1.0, 1.1, 1.2, 1.3, 1.4)])
    allowed = guard.record(["lora"], lambda names: next(noisy))["lora"]
    assert allowed.ratio == 1.2 and allowed.tolerance == pytest.approx(2 * 0.2 / 1.2, abs=1e-4)
    steady = guard.record(["lora"], lambda names: {"lora": 1.2})["lora"]
    assert steady == guard.Allowed(1.2, guard.FLOOR)


def test_writing_some_variants_keeps_the_others_and_a_new_one_is_pointed_out(
    ticking, tmp_path, capsys
) -> None:
    path = tmp_path / "reference.json"
    guard.write({"dora": guard.Allowed(0.5, 0.2)}, {"command": "a test"}, path)
    assert guarding(path) == 0
    assert "lora has no reference yet: python -m lora_zoo.bench --guard --write --variants lora" in (
        capsys.readouterr().out
    )
    guarding(path, "--write")
    assert guard.read(path)["dora"] == guard.Allowed(0.5, 0.2)
    assert json.loads(path.read_text())["origin"] == {"command": "a test"}


def test_without_a_reference_the_guard_says_how_to_make_one(tmp_path) -> None:
    with pytest.raises(ValueError, match="--guard --write"):
        guard.read(tmp_path / "reference.json")


def test_the_committed_reference_is_of_every_variant_and_ci_asks_the_guard() -> None:
    recorded = guard.read()
    assert set(ADAPTERS) <= recorded.keys()
    assert all(0 < allowed.tolerance < 1 and allowed.ratio > 0 for allowed in recorded.values())
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    assert "\npython -m lora_zoo.bench --guard\n" in script


def test_measuring_is_no_part_of_the_package_that_people_import() -> None:
    assert isinstance(bench, types.ModuleType)
    assert not hasattr(bench, "torch")


def with_quartiles(**values: float) -> dict[str, float]:
    ends = {"": 1.0, "_low": 0.9, "_high": 1.2}
    return {f"{name}{end}": value * factor for name, value in values.items() for end, factor in ends.items()}


FIGURES = {
    "io": lambda: files.report(
        [
            {"shape": "tiny", "variant": "lora"}
            | with_quartiles(**{f"{do}{end}": 2.0 for do in files.DOES for end in ("_ms", "_peft_ms")})
            | with_quartiles(**{f"{do}_over_peft": 1.0 for do in files.DOES})
        ]
    ),
    "init": lambda: starts.report(
        [
            {"shape": "tiny", "variant": "lora", "init": "pissa"}
            | with_quartiles(**{f"{name}_s": 2.0 for name in starts.LABELS})
        ]
    ),
    "scaling": lambda: scaling.report(
        [
            {"axis": "rank", "value": rank, "variant": "lora"}
            | with_quartiles(limit_ms=3.0, fused=2.0, plain=5.0, peft=2.0, fused_over_peft=1.0)
            for rank in (1, 8)
        ]
    ),
    "sweep": lambda: sweeps.report(
        [
            {"launcher": "basic", "jobs": jobs}
            | with_quartiles(seconds=2.0 * jobs, per_job=2.0, over_basic=1.0)
            for jobs in (1, 4)
        ],
        20,
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_the_values_of_its_rows_with_their_quartiles(name: str, tmp_path: Path) -> None:
    report = FIGURES[name]()
    assert report.name == name and report.curve is not None and report.curve.rows
    for row in report.curve.rows:
        assert (row["y"], row["y_low"], row["y_high"]) == (2.0, 1.8, 2.4)
    assert figures.draw(report.curve, tmp_path / "it.svg")
    drawn = (tmp_path / "it.svg").read_text()
    assert all(str(row[report.curve.group]) in drawn for row in report.curve.rows)
    assert all(str(row["panel"]) in drawn for row in report.curve.rows)
