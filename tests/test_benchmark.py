"""The benchmark compares like with like and says what made its numbers; its guard bites what is slower."""

import dataclasses
import gc
import itertools
import json
import os
import subprocess
import sys
import time
import types
import weakref
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig

from lora_zoo.bench import (
    floor,
    init_time,
    io,
    memory,
    options,
    paths,
    peft,
    regression,
    report,
    scaling,
    sweeps,
    switching,
    targets,
)
from lora_zoo.bench.__main__ import main
from lora_zoo.bench.paths import StepPath, adapts_matrices
from lora_zoo.bench.report import Measurement
from lora_zoo.bench.shapes import SHAPES, Shape
from lora_zoo.bench.timing import Stopwatch, Timed, quartiles, summary
from lora_zoo.core import init
from lora_zoo.core.adapter import Adapter
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import inject
from lora_zoo.kernels.additive import AdditiveKernel
from lora_zoo.pocket import HUB
from lora_zoo.runs.environment import environment
from lora_zoo.variants.additive.lora import LoRA

CPU = torch.device("cpu")
ADAPTERS = [name for name in VARIANTS if adapts_matrices(name)]


def pointwise(variant: str) -> bool:
    return VARIANTS[variant].pointwise


TINY = Shape("tiny", 64, 96, 2, 4, 2, 8, kv_heads=2)
SMALLEST = Shape("smallest", 16, 16, 1, 2, 1, 4)


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    """Every measurement collects garbage: what a model's libraries hold is looked at no more."""
    TINY.model()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)  # a measurement's would bring all of it back
        yield


def paths_of(shape: Shape, variant: str, **more: object) -> dict[tuple[str, float], StepPath]:
    return paths.paths(shape, shape.model(), variant, device=CPU, **more)


def logits(path: StepPath, shape: Shape) -> torch.Tensor:
    with path.context(), torch.no_grad():
        return path.model(**shape.batch()).logits


def gradients(path: StepPath) -> float:
    with path.context():
        path.loss().backward()
    return float(sum(p.grad.square().sum() for p in path.parameters)) ** 0.5


def chosen(*more: str) -> options.Options:
    return options.parse(["--rounds", "1", "--quick", *more], "")


# --- like with like ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ADAPTERS)
def test_every_path_of_a_variant_is_the_same_function_with_the_same_gradients(variant: str) -> None:
    """They share a base, to which no step writes."""
    base = TINY.model()
    before = {name: p.clone() for name, p in base.named_parameters()}
    found = paths.paths(TINY, base, variant, device=CPU)
    of_base = {id(p) for p in base.parameters()}
    in_peft = peft.has(paths.adapted(TINY.model(), variant))
    others = [path for path, there in (("plain", pointwise(variant)), ("peft", in_peft)) if there]
    assert set(found) == {(path, 0.0) for path in ("frozen", "fused", *others)}
    for key, path in found.items():
        assert key[0] == "peft" or of_base <= {id(p) for p in path.model.parameters()}
    frozen = logits(found.pop(("frozen", 0.0)), TINY)
    fused = found["fused", 0.0]
    expected = logits(fused, TINY)
    assert (expected - frozen).abs().max() > 1e-3, "the adapter does nothing: this comparison shows nothing"
    norm, trained = gradients(fused), sum(p.numel() for p in fused.parameters)
    for key in ((path, 0.0) for path in others):
        assert_close(logits(found[key], TINY), expected, rtol=0, atol=1e-4)
        assert gradients(found[key]) == pytest.approx(norm, rel=1e-4)
        assert sum(p.numel() for p in found[key].parameters) == trained
        assert float(found[key].loss().detach()) == pytest.approx(float(fused.loss().detach()), abs=1e-4)
    for path in found.values():
        path.step()
        assert all(p.grad is None for p in path.parameters)
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert not parameter.requires_grad


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_every_shape_is_adapted_alike_by_every_path(shape: Shape) -> None:
    found = paths_of(shape, "lora")
    expected = logits(found["fused", 0.0], shape)
    for path in ("plain", "peft"):
        assert_close(logits(found[path, 0.0], shape), expected, rtol=0, atol=1e-4)
    assert (logits(found["frozen", 0.0], shape) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    "variant, multiplications, numbers",
    [
        # O = 6, I = 4, R = 1, N = 10: the layer's own are 2 * 10 * 24 products and 2 * 24 + 2 * 10 * (6 + 4)
        ("lora", 2 * 10 * (6 + 4) + 24, 3 * 10 + 10 * 4),
        ("dora", 2 * 10 * (6 + 4) + 24, 3 * 16 + 10 * 4),
        ("lora_fa", 10 * (6 + 4) + 24, 3 * 6 + 2 * 10),
        ("vera", 10 * (6 + 4) + 24, 3 * 7 + 2 * 10),
        ("ia3", 10 * 6, 3 * 6 + 10 * 4),
        ("full", None, None),
        ("molora", None, None),
    ],
)
def test_the_floor_is_what_no_order_of_operations_avoids(variant, multiplications, numbers) -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    known = {"rank": 1} if "rank" in hyperparameters(VARIANTS[variant]) else {}
    where = {"target_modules": ["0"]} if adapts_matrices(variant) else {}
    injection = inject(model, variant, **where, **known)
    if adapts_matrices(variant):
        paths.perturb(injection)
    expected = {} if numbers is None else {"floor_multiplications": 1 + multiplications / 480}
    expected |= {} if numbers is None else {"floor_bytes": 1 + numbers / 248}
    assert floor.floor(injection, 10) == pytest.approx(expected)


def test_zeros_and_repeated_rows_of_a_factor_are_not_multiplied() -> None:
    assert floor.distinct(torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 3.0], [1.0, 0.0]])) == 4


@pytest.mark.parametrize("name, hidden, tokens", [("llama-192", 192, 1536), ("llama-768", 768, 512)])
def test_the_reference_settings_are_those_that_were_set(name: str, hidden: int, tokens: int) -> None:
    shape = SHAPES[name]
    assert shape.batch()["input_ids"].numel() == shape.tokens == tokens
    injection = paths.adapted(shape.model(), "lora")
    roles = {place.rpartition(".")[2] for place in injection.adapters}
    assert roles == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert injection.adapters["model.layers.0.self_attn.q_proj"].A_RI.shape == (8, hidden)
    assert paths.adapted(shape.model(), "vera").hyper["rank"] == 256


def test_the_pocket_shape_is_the_shipped_model_s() -> None:
    ours, shipped = (c.to_dict() for c in (SHAPES["pocket"].config(), AutoConfig.from_pretrained(str(HUB))))
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "vocab_size")
    assert [ours[key] for key in keys] == [shipped[key] for key in keys]


def test_dropout_and_rank_reach_peft_s_side_too() -> None:
    found = paths_of(TINY, "dora", dropouts=(0.05,), rank=3)
    (layer,) = (m for n, m in found["peft", 0.05].model.named_modules() if n.endswith("layers.1.mlp.up_proj"))
    assert layer.lora_dropout["default"].p == 0.05
    assert layer.lora_A["default"].weight.shape == (3, 64)
    assert ("plain", 0.05) not in found  # a definition knows no dropout
    differ = [logits(found["fused", 0.05], TINY) for _ in range(2)]
    assert not torch.equal(*differ)


@pytest.mark.parametrize("variant", ["pissa", "milora"])
def test_a_residual_start_is_measured_without_dropout(variant: str) -> None:
    assert {dropout for _, dropout in paths_of(TINY, variant, dropouts=(0.0, 0.05))} == {0.0}


def test_the_frozen_baseline_trains_nothing_and_carries_the_gradient_to_the_embedding() -> None:
    path = paths_of(TINY, "lora")["frozen", 0.0]
    seen: list[torch.Tensor] = []

    def watch(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.register_hook(seen.append)

    path.model.get_input_embeddings().register_forward_hook(watch)
    path.step()
    assert not path.parameters and not any(p.requires_grad for p in path.model.parameters())
    assert seen and seen[0].abs().max() > 0


def test_the_plain_path_goes_through_weight_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Adapter] = []
    weight = LoRA.weight
    monkeypatch.setattr(LoRA, "weight", lambda self, W: calls.append(self) or weight(self, W))
    injection = paths.adapted(TINY.model(), "lora")
    with paths.reference_forward(injection), torch.no_grad():
        injection.model(**TINY.batch())
    assert calls == list(injection.adapters.values())
    assert not any("forward" in vars(adapter) for adapter in injection.adapters.values())


def test_adalora_s_step_has_its_regulariser_and_its_allocation_on_both_sides() -> None:
    base = TINY.model()
    ours = paths.adapted(base, "adalora")
    mine = paths.fused(ours, TINY.batch())
    theirs = paths.in_peft(ours, paths.shared_copy(base), TINY.batch())
    reported = ours.model(**TINY.batch()).loss
    assert float((mine.loss() - reported).detach()) > 1e-3  # the regulariser
    entries = [p for n, p in theirs.model.named_parameters() if ".lora_E." in n]
    mine.step(), theirs.step()
    kept = sum(int(a.E_R.count_nonzero()) for a in ours.adapters.values())
    assert kept == sum(int(e.count_nonzero()) for e in entries) < sum(e.numel() for e in entries)


def test_only_the_asked_layers_are_adapted_on_both_sides() -> None:
    found = paths_of(TINY, "lora", layers="1-")
    assert len(found["fused", 0.0].parameters) == len(found["peft", 0.0].parameters) == 14


def test_lora_plus_has_its_groups_and_lora_fa_its_frozen_factor_at_peft_too() -> None:
    plus, fa = paths_of(TINY, "lora_plus"), paths_of(TINY, "lora_fa")
    optimizers = [plus[path, 0.0].optimizer(torch.optim.AdamW) for path in ("fused", "peft")]
    sizes = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]
    assert sizes == [[14, 14], [14, 14]]
    assert len(fa["peft", 0.0].parameters) == 14


def test_baselines_are_measured_as_they_are() -> None:
    found = paths_of(TINY, "full")
    assert set(found) == {("frozen", 0.0), ("fused", 0.0)}
    full, base = found["fused", 0.0], TINY.model()
    full.step()
    assert sum(p.numel() for p in full.parameters) == sum(p.numel() for p in base.parameters())


def test_every_axis_of_the_scaling_has_room_for_its_values() -> None:
    for point in scaling.points(quick=False):
        config = point.shape.config()
        assert config.hidden_size % config.num_attention_heads == 0
        assert point.wanted.get("rank", 0) <= min(config.hidden_size, config.intermediate_size)
        assert point.shape.batch()["input_ids"].numel() == point.shape.tokens
    values = {
        axis: [p.value for p in points]
        for axis, points in itertools.groupby(scaling.points(quick=False), lambda p: p.axis)
    }
    assert values.keys() == {"rank", "width", "tokens", "layers"}
    assert values["rank"][0] == 1 and values["rank"][-1] == 512


def test_the_axis_of_layers_adapts_as_many() -> None:
    for point in (p for p in scaling.points(quick=True) if p.axis == "layers"):
        injection = paths.inject_linear(point.shape.model(), "lora", **point.wanted)
        assert len(injection) == 7 * point.value


# --- the stopwatch -----------------------------------------------------------------------------------------


class Ticks:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, ticks: float) -> None:
        self.now += ticks


def test_paths_take_turns_in_orders_of_their_own_and_preparing_is_off_the_clock() -> None:
    clock, log = Ticks(), []

    def path(name: str, ticks: float):
        def prepare():
            clock.work(1000)
            return lambda: (log.append(name), clock.work(ticks))

        return prepare

    watch = Stopwatch(rounds=8, warmup=1, least=0.0, clock=clock)
    times = watch.interleave({name: path(name, ticks) for name, ticks in (("a", 1), ("b", 2), ("c", 4))})
    assert times == {"a": [1.0] * 8, "b": [2.0] * 8, "c": [4.0] * 8}
    rounds = [tuple(log[3 + 3 * n : 6 + 3 * n]) for n in range(8)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 2


def test_what_takes_less_than_a_sample_is_repeated_and_its_mean_taken() -> None:
    clock, calls = Ticks(), []
    watch = Stopwatch(rounds=2, warmup=1, least=10.0, clock=clock)
    times = watch.interleave({"short": lambda: lambda: (calls.append(0), clock.work(3))})
    assert times == {"short": [3.0, 3.0]}
    assert len(calls) == 1 + 2 * 4


def test_ratios_are_taken_within_a_round() -> None:
    slow_machine = [1.0, 10.0, 1.0, 10.0]
    times = {"mine": [2 * t for t in slow_machine], "other": slow_machine}
    over = Timed("mine / other", "over", "mine", "other")
    assert summary([over], times) == {"over": 2.0, "over_low": 2.0, "over_high": 2.0}
    assert over.text.format_map(summary([over], times)) == "2.00 (2.00-2.00)"
    assert summary([over], {"mine": [1.0]}) == {}
    assert quartiles([1.0, 2.0, 3.0, 4.0, 100.0]) == (2.0, 3.0, 4.0)
    assert summary([Timed("ms", "ms", "mine", unit=1e3)], times)["ms"] == 11_000


# --- memory ------------------------------------------------------------------------------------------------


def test_saved_bytes_count_each_storage_once_and_no_parameter() -> None:
    layer, x, made = nn.Linear(6, 6, bias=False), torch.ones(5, 6), []

    def loss() -> torch.Tensor:
        h = layer(x).exp()  # exp keeps h, the products below the same storage; layer keeps x and its weight
        made.append(weakref.ref(h))
        return (h * h[:, :]).sum()

    assert memory.saved_by(StepPath(layer, loss)) == 4 * (5 * 6 + 5 * 6)
    layer.requires_grad_(False)
    assert memory.saved_by(StepPath(layer, loss)) == 0
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


# --- initialisation, files, sweeps ------------------------------------------------------------------------


def test_every_init_is_timed_on_weights_that_nothing_has_seen() -> None:
    base = TINY.model()
    one, other = init_time.fresh(base), init_time.fresh(base)
    for name, parameter in base.named_parameters():
        assert not torch.equal(one.get_parameter(name), other.get_parameter(name))
        assert_close(one.get_parameter(name), parameter, rtol=0, atol=0.01)


def test_inits_leave_a_user_s_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def measure_one(*case: object) -> dict[str, object]:
        folders.append(Path(os.environ["LORA_ZOO_CACHE"]))
        assert folders[-1].is_dir() and not list(folders[-1].iterdir())
        return {}

    monkeypatch.setattr(init_time, "measure_one", measure_one)
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    for before in ("/somewhere", None):
        monkeypatch.delenv("LORA_ZOO_CACHE", raising=False)
        if before:
            monkeypatch.setenv("LORA_ZOO_CACHE", before)
        init_time.measure(chosen("--variants", "dora", "--shapes", "tiny"))
        assert os.environ.get("LORA_ZOO_CACHE") == before and not folders[-1].exists()
    assert len(set(folders)) == 2


def test_the_second_time_is_on_the_model_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, inject = [], paths.inject_linear
    monkeypatch.setattr(
        init_time, "inject_linear", lambda model, *a, **k: seen.append(model) or inject(model, *a, **k)
    )
    runs = init_time.runs(TINY.model(), "milora", "milora")
    runs["again"]()()
    runs["first"]()()
    assert seen[0] is seen[1] is not seen[2]


def test_inits_are_those_of_the_registry_and_peft_s_where_it_has_them(monkeypatch) -> None:
    assert list(init_time.inits_of("pissa")) == ["pissa", "pissa_niter_16", "pissa_halko_16"]
    assert list(init_time.inits_of("adalora")) == ["gaussian"]
    timed = [init.find_init(name) for name in init_time.inits_of("lora")]  # a family by a member
    assert {"pissa_halko_4", "milora", "kaiming"} <= {own.name for own in timed}
    assert not any(own.needs for own in timed)
    assert not list(init_time.inits_of("full"))
    given, wrap = [], peft.wrap
    monkeypatch.setattr(peft, "wrap", lambda *a, **k: given.append(wrap(*a, **k)) or given[-1])
    row = init_time.measure_one(TINY, TINY.model(), "pissa", "pissa_niter_16", chosen())
    assert row["first_s"] > 0 and row["again_s"] > 0 and row["peft_s"] > 0
    assert {adapted.peft_config["default"].init_lora_weights for adapted in given} == {"pissa_niter_16"}
    assert "peft_s" not in init_time.measure_one(TINY, TINY.model(), "milora", "milora", chosen())


def test_files_and_merging_are_timed_and_leave_the_base_alone() -> None:
    base = TINY.model()
    before = {name: p.clone() for name, p in base.named_parameters()}
    row = io.measure_one(TINY, base, "dora", chosen())
    assert all(row[f"{name}{end}"] > 0 for name in io.OPERATIONS for end in ("_ms", "_peft_ms", "_over_peft"))
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("side", ["ours", "PEFT"])
def test_every_merge_that_is_timed_merges(side: str, tmp_path: Path, monkeypatch) -> None:
    """The second time as the first: what was merged is taken out off the clock."""
    models, wrap = [], peft.wrap
    monkeypatch.setattr(peft, "wrap", lambda *a, **k: models.append(wrap(*a, **k)) or models[-1])
    injection = paths.inject_linear(TINY.model(), "lora")
    operations = {"ours": io.ours, "PEFT": io.in_peft}[side](injection, TINY.model(), tmp_path)
    model = models[0] if models else injection.model

    def merged() -> bool:
        (layer,) = (m for n, m in model.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
        return getattr(layer, "merged", type(layer) is nn.Linear)

    for _ in range(2):
        merge = operations["merge"]()
        assert not merged()
        merge()
        assert merged()


@pytest.mark.parametrize(("variant", "peft_mixes"), [("lora", True), ("dora", False)])
def test_a_mixed_batch_a_pass_for_each_adapter_and_a_switch_are_timed(
    variant, peft_mixes, monkeypatch
) -> None:
    monkeypatch.setattr(switching, "LENGTHS", {"token": 1})
    calls: list[str] = []
    timed = {"mixed": switching.mixed, "alone": switching.alone, "merged": switching.merged}
    for name, call in timed.items():
        monkeypatch.setattr(switching, name, lambda *given, n=name, c=call: (calls.append(n), c(*given)))
    ((batch, row),) = switching.measure_one(SMALLEST.model(), variant, 3, chosen())
    assert batch == "token" and {*calls} == {*timed} and ("peft" in row) == peft_mixes
    assert all(row[name] > 0 for name in ("mixed_ms", "alone", "frozen", "switch_ms", "merge_ms"))


def test_a_sweep_is_timed_with_each_launcher_in_a_folder_of_its_own(monkeypatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(
        sweeps.subprocess,
        "run",
        lambda command, **_: commands.append(command) or types.SimpleNamespace(returncode=0),
    )
    assert "basic" in sweeps.installed()
    monkeypatch.setattr(sweeps, "installed", lambda: ("basic", "joblib"))
    done = sweeps.measure(chosen())
    assert [(row["launcher"], row["jobs"]) for row in done.rows] == [
        ("basic", 1), ("joblib", 1), ("basic", 2), ("joblib", 2),
    ]  # fmt: skip
    assert {row["over_basic"] for row in done.rows if row["launcher"] == "basic"} == {1.0}
    for row in done.rows:
        assert row["per_job"] * row["jobs"] == pytest.approx(row["seconds"])
    assert sum("hydra/launcher=joblib" in command for command in commands) == 2
    assert sum("seed=0,1" in command for command in commands) == 2
    folders = {word for command in commands for word in command if word.startswith("hydra.sweep.dir=")}
    assert len(folders) == len(commands) == 4


def test_a_sweep_that_fails_is_no_measurement(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(sweeps, "installed", lambda: ("basic",))
    monkeypatch.setattr(sweeps, "SMALL", ("task.sizes.test=-1",))
    code = exit_code(["--what", "sweep", "--quick", "--rounds", "1", "--out", str(tmp_path)])
    assert code == 1
    assert "ended with 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- the command -------------------------------------------------------------------------------------------


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--what", "stpe"], "unknown measurement 'stpe'. Did you mean 'step'?"),
        (["--shapes", "llama-191"], "unknown shape 'llama-191'. Did you mean 'llama-192'?"),
        (["--variants", "lora,dorra"], "unknown variant 'dorra'. Did you mean 'dora'?"),
        (["--dtype", "bfloat61"], "unknown dtype 'bfloat61'. Did you mean 'bfloat16'?"),
        (["--device", "cudaa"], "unknown device 'cudaa'. Did you mean 'cuda'?"),
        (["--device", "meta"], "unknown device 'meta'."),
        (["--device", "cuda:99"], "argument --device: cuda:99: this machine has"),
        (["--round=3"], "unrecognized arguments: --round=3"),
        (["--rounds", "0"], "argument --rounds: must be a whole number of at least 1; got 0"),
        (["--rounds", "few"], "argument --rounds: must be a whole number of at least 1; got few"),
        (["--threads", "0"], "argument --threads: must be a whole number of at least 1; got 0"),
        (["--write"], "--write belongs to --guard"),
    ],
)
def test_a_mistake_is_one_line_below_the_usage_and_exit_code_2(arguments, message, capsys) -> None:
    assert exit_code(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1] and err.startswith("usage: python -m lora_zoo.bench")
    assert not out


def test_options_have_their_defaults_and_what_is_given() -> None:
    usual = options.parse([], "")
    assert usual.what == options.WHAT and usual.variants == tuple(VARIANTS) and usual.rounds == 15
    assert options.parse(["--quick"], "").rounds == 3
    given = options.parse(
        ["--what", "io, step", "--variants", "dora", "--dtype", "bfloat16", "--threads", "2"], ""
    )
    assert given.what == ("io", "step") and given.variants == ("dora",)
    assert given.dtype == torch.bfloat16 and given.threads == 2
    assert given.stopwatch().clock is time.perf_counter
    assert usual.stopwatch().clock is time.process_time
    assert usual.stopwatch(at_most=5).rounds == 5


def test_a_table_has_its_command_commit_and_machine_and_the_json_and_figure_go_with_it(
    tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    arguments = ["--what", "step,memory", "--shapes", "tiny", "--variants", "lora,full", "--rounds", "2"]
    assert exit_code([*arguments, "--out", str(tmp_path)]) == 0
    printed, commit = capsys.readouterr().out, environment()["commit"]
    for name, unit in (("step", "step / frozen baseline"), ("memory", "bytes per token")):
        text, data, figure = ((tmp_path / f"{name}.{end}").read_text() for end in ("md", "json", "svg"))
        made = f"`python -m lora_zoo.bench {' '.join(arguments)}`; commit `{str(commit)[:10]}`"
        assert made in text and made in printed
        assert f"torch {torch.__version__}" in text and "threads: 1; rounds: 2, processor time" in text
        assert json.loads(data)["origin"]["commit"] == commit and json.loads(data)["origin"]["rounds"] == 2
        rows = [row["variant"] for row in json.loads(data)["rows"] if not row.get("dropout")]
        assert rows == ["lora", "full"]
        assert all(word in figure for word in ("tiny", "PEFT", "variant", unit))
        assert f"({name}.svg)" in text
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [row["dropout"] for row in rows] == [0.0, 0.05, 0.0]
    assert "plain" in rows[0] and "plain" not in rows[1]
    for row in rows[:2]:
        assert row["fused_low"] <= row["fused"] <= row["fused_high"]
        assert row["fused_over_peft"] == pytest.approx(row["fused"] / row["peft"], rel=0.5)
    assert rows[0]["floor_multiplications"] == rows[1]["floor_multiplications"] > 1 < rows[0]["floor_bytes"]
    assert "floor_bytes" not in rows[2] and "| floor | floor, bytes |" in printed
    assert f"| tiny | lora | 0.0 | {rows[0]['frozen_ms']:.2f} | {rows[0]['fused']:.2f} (" in printed


def test_a_table_leaves_out_empty_columns_and_marks_empty_cells() -> None:
    rows = [{"a": 1, "b": 0.5}, {"a": None, "b": True}]
    assert report.table({"A": "{a}", "B": "{b}", "C": "{c}"}, rows).splitlines() == [
        "| A | B |", "| --- | --- |", "| 1 | 0.5 |", "| - | yes |",
    ]  # fmt: skip


def test_without_peft_its_column_is_left_out_with_a_line(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(peft, "installed", lambda: False)
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    arguments = ["--what", "memory", "--shapes", "tiny", "--variants", "lora", "--out", str(tmp_path)]
    assert exit_code(arguments) == 0
    out = capsys.readouterr().out
    assert "peft is not installed, so its column is left out" in out
    (head,) = (line for line in out.splitlines() if line.startswith("| shape"))
    assert "PEFT" not in head and "fused" in head


QUARTILES = {"": 2.0, "_low": 1.8, "_high": 2.4}


def test_a_figure_shows_the_values_of_its_rows_with_their_quartiles(tmp_path: Path) -> None:
    rows = [
        {"axis": "rank", "value": value, "variant": "lora"}
        | {f"fused{end}": y for end, y in QUARTILES.items()}
        for value in (1, 8)
    ]
    keys, rows = (
        ("axis", "value", "variant"),
        [*rows, {"axis": "rank", "value": 9, "variant": "vera", "fused": 0}],
    )
    done = Measurement(
        "scaling", "A title", "", keys, {}, rows, "a unit", {"fused": "a label", "peft": "PEFT"}
    )
    assert [(p["panel"], p["x"], p["y"], p["low"], p["high"]) for p in done.points()] == [
        ("rank", f"{value}, lora", 2.0, 1.8, 2.4) for value in (1, 8)
    ]
    done.draw(tmp_path / "it.svg")
    drawn = (tmp_path / "it.svg").read_text()
    assert all(text in drawn for text in ("A title", "a unit", "a label", "8, lora", "value, variant"))


# --- the targets -------------------------------------------------------------------------------------------


def measurement(name: str, rows: list[dict[str, object]]) -> Measurement:
    return Measurement(name, "", "", (), {}, rows)


def test_each_target_stands_beside_what_was_measured() -> None:
    rows = [
        {"shape": "llama-768", "variant": "dora", "dropout": 0.0, "fused": 1.11, "fused_over_peft": 1.2},
        {"shape": "llama-768", "variant": "dora", "dropout": 0.05, "fused": 2.01},
    ]
    done = {name: measurement(name, []) for name in ("memory", "init")} | {"step": measurement("step", rows)}
    page = targets.measure(options.parse(["--what", "targets"], ""), done)
    assert len(page.rows) == 43
    text = page.markdown(defaultdict(str))
    assert "| dora, step / the frozen baseline | llama-768 | 1.12 | 1.11 | yes |" in text
    assert "| dora, step / PEFT's | llama-768 | 1.00 | 1.20 | no |" in text
    assert "| dora with dropout 0.05, step / the frozen baseline | llama-768 | 2.00 | 2.01 | no |" in text
    assert "| lora, step / the frozen baseline | llama-192 | 1.15 | - | - |" in text
    assert "| vera, step / the frozen baseline | llama-768 | 1.45 | - | - |" in text
    assert "Met: 1 of 3 measured" in text


def test_every_target_is_one_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that no measurement writes would be "-" for ever. What is missing is measured, and no more."""
    monkeypatch.setattr(targets, "REFERENCE", ("tiny", "smallest"))
    for shape in (TINY, SMALLEST):
        monkeypatch.setitem(SHAPES, shape.name, dataclasses.replace(TINY, name=shape.name))
    page = targets.measure(chosen("--variants", "lora,lora_fa,pissa,full"), {})
    for row in page.rows:
        known = row["figure"].startswith(("lora,", "lora with", "lora_fa", "pissa", "the same"))
        assert isinstance(row["measured"], float) == known, row
    assert {t.where["variant"] for t in targets.targets()} <= set(ADAPTERS)
    assert set(targets.VARIANTS) <= set(ADAPTERS)


# --- the regression test -----------------------------------------------------------------------------------


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    """A clock that the adapters move: a definition costs ten ticks, LoRA's kernel nine."""
    clock = Ticks()
    monkeypatch.setattr(Adapter, "forward", costing(Adapter.forward, clock, 10))
    monkeypatch.setattr(AdditiveKernel, "operands", of_adapters(Adapter, clock, 9))
    monkeypatch.setattr(options, "clock_for", lambda device, threads: (clock, "ticks"))
    monkeypatch.setattr(regression, "SHAPE", SMALLEST)
    monkeypatch.setattr(regression, "SESSIONS", 2)
    return clock


def costing(forward, clock: Ticks, ticks: float):
    def slower(self, x, host):
        clock.work(ticks)
        return forward(self, x, host)

    return slower


def of_adapters(cls, clock: Ticks, ticks: float):
    """The kernel's look at an adapter, at so many ticks for those of `cls`."""
    operands = AdditiveKernel.operands

    def slower(self, adapter):
        clock.work(ticks if isinstance(adapter, cls) else 0)
        return operands(self, adapter)

    return slower


def guarding(path: Path, *more: str) -> int:
    given = chosen("--guard", "--variants", "lora,rslora", *more)
    return regression.run(given, {"command": "a test"}, path)


def test_the_regression_test_lets_pass_what_is_as_it_was(ticking, tmp_path, capsys) -> None:
    assert guarding(tmp_path / "reference.json", "--write") == 0
    recorded = regression.read(tmp_path / "reference.json")
    assert recorded["lora"] == regression.RecordedRatio(0.9, regression.FLOOR)
    assert recorded.keys() == {f"{v}{d}" for v in ("lora", "rslora") for d in ("", ", dropout 0.05")}
    assert guarding(tmp_path / "reference.json") == 0
    assert "no variant of 2 is slower" in capsys.readouterr().out


def test_the_regression_test_names_the_variant_that_became_slower(
    ticking, tmp_path, capsys, monkeypatch
) -> None:
    guarding(tmp_path / "reference.json", "--write")
    monkeypatch.setattr(AdditiveKernel, "operands", of_adapters(LoRA, ticking, 3))
    assert guarding(tmp_path / "reference.json") == 1
    out = capsys.readouterr().out
    assert "slower: lora: fused / plain was 0.90 and may be 1.01; measured 1.20, 1.20, 1.20" in out
    assert "slower: lora, dropout 0.05:" in out
    assert "slower: rslora" not in out


def test_the_regression_test_allows_what_is_within_the_tolerance(ticking, tmp_path, monkeypatch) -> None:
    guarding(tmp_path / "reference.json", "--write")
    monkeypatch.setattr(AdditiveKernel, "operands", of_adapters(LoRA, ticking, 1))
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

    allowed = {"slow": regression.RecordedRatio(1.0, 0.12), "fine": regression.RecordedRatio(1.0, 0.12)}
    slower = regression.compare(allowed, ["slow", "fine"], measure)
    assert slower == ({"slow": found} if found else {})
    assert asked[0] == ["slow", "fine"] and all(names == ["slow"] for names in asked[1:])
    assert len(asked) <= regression.CONFIRMATIONS


def test_different_variants_that_are_slow_once_each_are_noise() -> None:
    answers = iter([{"a": 2.0, "b": 1.0}, {"a": 1.0, "a, dropout 0.05": 2.0}, {"b": 2.0}])
    allowed = {name: regression.RecordedRatio(1.0, 0.1) for name in ("a", "a, dropout 0.05", "b")}
    assert regression.compare(allowed, ["a", "b"], lambda names: next(answers)) == {}


def test_the_tolerance_grows_with_the_measured_spread(monkeypatch) -> None:
    monkeypatch.setattr(regression, "SESSIONS", 5)
    noisy = iter([{"lora": value} for value in (1.0, 1.1, 1.2, 1.3, 1.4)])
    allowed = regression.record(["lora"], lambda names: next(noisy))["lora"]
    assert allowed.ratio == 1.2 and allowed.tolerance == pytest.approx(2 * 0.2 / 1.2, abs=1e-4)
    steady = regression.record(["lora"], lambda names: {"lora": 1.2})["lora"]
    assert steady == regression.RecordedRatio(1.2, regression.FLOOR)


def test_writing_some_variants_keeps_the_others_and_a_new_one_is_pointed_out(
    ticking, tmp_path, capsys
) -> None:
    path = tmp_path / "reference.json"
    regression.write({"dora": regression.RecordedRatio(0.5, 0.2)}, {"command": "a test"}, path)
    assert guarding(path) == 0
    assert "no reference yet: python -m lora_zoo.bench --guard --write --variants lora" in (
        capsys.readouterr().out
    )
    guarding(path, "--write")
    assert regression.read(path)["dora"] == regression.RecordedRatio(0.5, 0.2)
    assert json.loads(path.read_text())["origin"] == {"command": "a test"}


def test_without_a_reference_the_guard_says_how_to_make_one(tmp_path) -> None:
    with pytest.raises(ValueError, match="--guard --write"):
        regression.read(tmp_path / "reference.json")


def test_the_committed_reference_is_of_every_kernel_and_ci_asks_the_guard() -> None:
    """A further variant on a kernel needs no record: it is one file."""
    recorded = regression.read()
    of = {name: VARIANTS[name].kernel for name in ADAPTERS}
    assert {of[what.partition(",")[0]] for what in recorded} >= set(of.values()) - {""}
    assert all(0 < allowed.tolerance < 1 and allowed.ratio > 0 for allowed in recorded.values())
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    assert "\npython -m lora_zoo.bench --guard\n" in script


def test_measuring_is_no_part_of_the_package_that_people_import() -> None:
    code = "import sys, lora_zoo.bench.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
