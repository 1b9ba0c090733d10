"""ReLoRA in full, COLA, XGBLoRA, merge-then-continue, DropBP and Delta-LoRA: what they do to a training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM, get_scheduler

from lora_zoo import inject
from lora_zoo.conformance.cases import batch, fresh, lone, settings, train
from lora_zoo.core.hooks import Progress
from lora_zoo.core.program import PROGRAMS, ProgramContext, Pruning, Stage
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.models.merging import merge
from lora_zoo.programs.rounds import of_rank
from lora_zoo.training import runner
from lora_zoo.training.dropbp import BackwardDropper, allocated, branches
from lora_zoo.training.handover import follow_run, moments_of, pruned, quantile, take_over
from lora_zoo.training.resources import FreshResources
from lora_zoo.training.settling import accumulated_rank, settled
from lora_zoo.training.stages import StagedTraining
from lora_zoo.training.trainer import ZooTrainer
from tests.test_programs import QUICK, asked, described, folder_in, products, record

pytestmark = pytest.mark.xdist_group("processes of training")
FAST: tuple[str, ...] = (*QUICK, "task.sizes.validation=2")
FAST += ("task.max_new_tokens=1", "trainer.logging_steps=1", "rank=2", "target_modules=[q,v]")


def made(at: Path, *words: str) -> Path:
    assert runner.run(asked("+variant=lora", *FAST, *words, f"out={at}")) == 0
    return folder_in(at)


def stages_of(name: str, steps: int = 12, **hyper: Any) -> list[Stage]:
    known = {"rank": 8, "alpha": 16.0, "init": "kaiming", "lora_dropout": 0.0}
    context = ProgramContext(steps, "lora", known, 5, lambda: iter(()))
    return list(PROGRAMS.find(name)(context, **hyper))


# --- rates and moments over a cut --------------------------------------------------------------------------


def test_a_stage_follows_the_run_s_schedule_after_a_warm_up() -> None:
    """Linear decay over 10 steps, a cut after 4, two steps of warm-up: 0, half of f(6), f(6), f(7)."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=0.5)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=10)
    follow_run(schedule, before=4, rewarm=2)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 0.2, 0.4, 0.3, 0.2, 0.1])
    watches = get_scheduler("reduce_lr_on_plateau", optimizer)
    with pytest.raises(ValueError, match="gives no rate for each step of a run"):
        follow_run(watches, 4, 2)


def stepped(name: str = "lora", rank: int = 2) -> tuple[Any, torch.optim.Optimizer]:
    model, where = fresh("llama")
    injection = inject(model, name, **{**where, "modules_to_save": ["model.norm"]}, **settings(name, rank))
    optimizer = injection.optimizer(torch.optim.AdamW, lr=1e-2)
    for _ in range(2):
        model(**batch("llama")).loss.backward()
        optimizer.step()
    return injection, optimizer


def test_moments_go_on_pruned_and_those_of_what_trains_in_full_whole() -> None:
    injection, optimizer = stepped()
    before = moments_of(optimizer, injection)
    left = pruned(before, injection, Pruning("magnitude", 0.75), seed=0)
    name = next(name for name in before if name.endswith("A_RI"))
    for key in ("exp_avg", "exp_avg_sq"):
        full, kept = before[name][key], left[name][key]
        assert int(kept.count_nonzero()) == full.numel() // 4
        assert full.abs()[kept == 0].max() <= kept[kept != 0].abs().min()
        assert torch.equal(left["model.norm.weight"][key], before["model.norm.weight"][key])
    drawn = pruned(before, injection, Pruning("random", 0.75), seed=0)[name]["exp_avg"]
    assert 0 < int(drawn.count_nonzero()) < drawn.numel() // 2
    following, other = stepped()
    take_over(other, following, left)
    after = moments_of(other, following)
    assert all(torch.equal(after[n][k], left[n][k]) for n in left for k in left[n])
    assert float(after[name]["step"]) == 2
    wider, third = stepped(rank=3)
    unlike = moments_of(third, wider)
    take_over(third, wider, left)
    again = moments_of(third, wider)
    assert torch.equal(again[name]["exp_avg"], unlike[name]["exp_avg"]), "another shape keeps its own"
    assert torch.equal(again["model.norm.weight"]["exp_avg"], before["model.norm.weight"]["exp_avg"])


def test_a_quantile_is_torch_s() -> None:
    values = torch.rand(37, generator=torch.Generator().manual_seed(0))
    for share in (0.01, 0.5, 0.8, 0.9, 0.999):
        torch.testing.assert_close(quantile(values, share), torch.quantile(values, share))


# --- ReLoRA in full ----------------------------------------------------------------------------------------

RELORA: tuple[str, ...] = ("program=relora", "program.rounds=2", "program.warm_start=0.25", "steps=8")
RELORA += ("program.schedule=jagged", "program.rewarm_steps=2", "program.reset=magnitude", "lr=0.02")
RELORA += ("program.pruned=0.8", "lora_dropout=0.1", "dropbp=0.5")
CONTINUED: tuple[str, ...] = (
    "program=merge_continue",
    "program.replay=0.25",
    "steps=2",
    "trainer.warmup_steps=0",
)
CONTINUED += ("dropbp=0.999999", "dropbp_uniform=true")


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Runs(dict[tuple[str, ...], Path]):
    """The runs that nothing befell, and what the trainers of their stages were given."""

    given: dict[tuple[str, ...], list[dict[str, Any]]] = {}  # noqa: RUF012


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    found, plain = Runs(), ZooTrainer.__init__
    for words in (RELORA, CONTINUED):
        seen = found.given[words] = []

        def init(self: ZooTrainer, *given: Any, seen: list[Any] = seen, **named: Any) -> None:
            seen.append(named)
            plain(self, *given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ZooTrainer, "__init__", init)
            found[words] = made(tmp_path_factory.mktemp("whole"), *words)
    return found


def test_killed_in_its_cycles_a_run_goes_on_to_the_bit(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step after a cut, whose moments no checkpoint holds yet, then after a checkpoint."""
    plain, whole = ZooTrainer.training_step, runs[RELORA]

    class Killed(BaseException):
        pass

    for step, more in ((6, ()), (3, ("resume=true",))):
        steps: list[Any] = []

        def training_step(
            self: ZooTrainer, *given: Any, at: int = step, made: Any = steps, **named: Any
        ) -> Any:
            made.append(self)
            if len(made) == at:
                raise Killed
            return plain(self, *given, **named)

        monkeypatch.setattr(ZooTrainer, "training_step", training_step)
        with pytest.raises(Killed):
            runner.run(asked("+variant=lora", *FAST, *RELORA, *more, f"out={tmp_path}"))
    monkeypatch.undo()
    folder = made(tmp_path, *RELORA, "resume=true")
    assert [entry["step"] for entry in record(folder)["resumed"]] == [5, 7]
    adapters = [p.relative_to(whole) for p in sorted(whole.rglob("adapter/adapter.safetensors"))]
    assert len(adapters) == 1 + len(record(whole)["stages"])
    assert all((whole / name).read_bytes() == (folder / name).read_bytes() for name in adapters)
    rates = [[e["learning_rate"] for e in record(f)["history"] if "loss" in e] for f in (whole, folder)]
    assert rates[0] == rates[1]
    assert not [*folder.rglob("moments.safetensors")]


def test_the_rate_is_0_after_a_cut_and_joins_the_run_s(runs: Runs) -> None:
    """One step of warm-up (6 % of 8), decay f(n) = (8 - n) / 7, joined by rises of two; half at first."""
    logged = [e["learning_rate"] / 0.02 for e in record(runs[RELORA])["history"] if "loss" in e]
    f = [(8 - n) / 7 for n in range(9)]
    assert logged == pytest.approx([0, f[1] / 2, 0, f[4] / 2, f[4], 0, f[7] / 2, f[7]])
    accumulated = [stage.get("accumulated") for stage in record(runs[RELORA])["stages"]]
    assert accumulated == [None, {"bound": 2, "rank": 2}, {"bound": 4, "rank": 4}]


def test_moments_go_on_over_a_cut_of_a_run(runs: Runs) -> None:
    """After 3 steps, 0.8 of each factor's moments are gone; what follows full fine-tuning begins anew."""
    _, second, third = runs.given[RELORA]
    assert not second["handover"].moments and 0 < len(third["handover"].moments) <= 16
    for own in third["handover"].moments.values():
        assert own["exp_avg"].count_nonzero() <= own["exp_avg"].numel() // 5 and float(own["step"]) <= 3


def test_after_a_full_start_the_adapter_is_every_parameter(runs: Runs, tmp_path: Path) -> None:
    """W' = W + ΔW of full fine-tuning + s Σ B A of the rounds, from the stages' own files."""
    folder = runs[RELORA]
    assert described(folder)["variant"] == "full"
    assert [s["variant"] for s in record(folder)["stages"]] == ["full", "lora", "lora"]
    first = load_file(folder / "stages" / "1" / "adapter" / "adapter.safetensors")
    state = load_file(folder / "adapter" / "adapter.safetensors")
    rounds = [products(folder / "stages" / number, 1.0) for number in "23"]  # alpha is r
    assert state.keys() == first.keys() and rounds[0]
    for name, tensor in state.items():
        dW_OI = sum(own.get(name.removesuffix(".weight"), 0) for own in rounds)
        assert torch.allclose(tensor.double(), first[name].double() + dW_OI, rtol=0, atol=1e-6), name
    assert merge(folder, tmp_path / "merged").explained


def full_between(context: ProgramContext) -> Iterator[Stage]:
    yield Stage(1)
    yield Stage(1, {"budget": None}, "full")
    yield Stage(context.steps - 2, then="keep")


def test_the_function_is_equal_at_each_cut_and_the_base_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA, then every parameter, then LoRA."""
    for held in ("_members", "_origins"):
        monkeypatch.setattr(PROGRAMS, held, dict(getattr(PROGRAMS, held)))
    PROGRAMS.add("full_between", full_between)
    plain_settle, plain_base, plain_whole = StagedTraining._settle, FreshResources.base, StagedTraining._whole
    seen: list[Tensor] = []
    before: dict[str, Tensor] = {}

    def look(self: StagedTraining) -> None:
        with torch.no_grad():
            seen.append(self.model.eval()(input_ids=torch.arange(5, 25)[None]).logits)

    def settle(self: StagedTraining) -> None:
        look(self)
        plain_settle(self)
        look(self)

    def base(self: FreshResources, *given: Any) -> Any:
        loaded = plain_base(self, *given)
        before.update(values_of(loaded.model))
        return loaded

    def whole(self: StagedTraining) -> Any:
        look(self)
        found = plain_whole(self)
        look(self)
        with found.disabled():
            now = values_of(self.model)
        assert now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in now)
        return found

    for cls, name, mine in (
        (StagedTraining, "_settle", settle),
        (FreshResources, "base", base),
        (StagedTraining, "_whole", whole),
    ):
        monkeypatch.setattr(cls, name, mine)
    made(tmp_path, "program=full_between", "steps=4", "lr=0.02", "trainer.warmup_steps=0")
    assert len(seen) == 6
    for end, cut in zip(seen[::2], seen[1::2], strict=True):
        assert torch.allclose(end, cut, rtol=0, atol=2e-5 * float(end.abs().max()))
    assert all(float((b - a).abs().max()) > 0.01 for a, b in zip(seen[::2], seen[2::2], strict=False))


@pytest.mark.parametrize(
    ("name", "hyper", "says"),
    [
        ("relora", {"schedule": "jagged", "rewarm_steps": 3}, "rewarm_steps must lie between 0 and 2; got 3"),
        ("relora", {"pruned": 1.0}, "0 < pruned < 1 and warm_start_rate > 0; got 0.0, 1.0 and 0.5"),
        ("relora", {"warm_start": 0.9}, "rounds must lie between 1 and the 1 steps; got 4"),
        ("cola", {"knots": 13}, "knots must lie between 1 and the 12 steps; got 13"),
        ("cola", {"knots": 3, "ranks": [8, 2]}, r"one rank for each of 3 knots; got \[8, 2\]"),
        ("xgblora", {"rank": 0}, "layers >= 0 and rank >= 1 are needed; got 0 and 0"),
        (
            "merge_continue",
            {"replay": 1.5},
            "needs 0 < split < 1, 0 < first < 1, 0 <= replay <= 1, start_rate > 0",
        ),
    ],
)
def test_what_a_program_cannot_do_is_told_in_one_line(name: str, hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        stages_of(name, **hyper)
    assert "\n" not in str(error.value)


# --- COLA and XGBLoRA --------------------------------------------------------------------------------------


def test_a_chain_of_one_is_the_plain_run_and_ranks_step_down_at_one_scale() -> None:
    (one,) = stages_of("cola", knots=1)
    assert one == Stage(12, {"seed": 5}, then="keep")
    knots = stages_of("cola", knots=3, ranks=[8, 4, 2])
    assert [(s.steps, s.inject["rank"], s.inject["alpha"]) for s in knots] == [
        (4, 8, 16),
        (4, 4, 8),
        (4, 2, 4),
    ]
    assert len({s.inject["seed"] for s in knots}) == 3 and [s.rewarm for s in knots] == [None] * 3
    context = ProgramContext(4, "lora", {"alpha": "2r"}, 0, lambda: iter(()))
    assert "alpha" not in of_rank("cola", context, 2), "a multiple of the rank follows it by itself"


def test_a_boosted_matrix_has_at_most_the_rank_of_the_rounds_that_drew_it(tmp_path: Path) -> None:
    """C-34, and the sum of all learners; 2 of 4 layers a round."""
    words = (
        "program=xgblora",
        "program.rounds=3",
        "program.layers=2",
        "steps=6",
        "alpha=4",
        "lr=0.05",
        "seed=3",
    )
    folder = made(tmp_path, *words)
    rounds = [products(folder / "stages" / str(n), 2.0) for n in range(1, 4)]  # alpha / r, as the run
    assert [len(own) for own in rounds] == [4] * 3
    assert all(s["trainable"] == 2 * (256 + 256) for s in record(folder)["stages"])
    times = {name: sum(name in own for own in rounds) for own in rounds for name in own}
    assert len(set(times.values())) > 1, "the case must tell something"
    for name, dW_OI in products(folder, 1.0).items():
        expected = torch.stack([own[name] for own in rounds if name in own]).sum(0)
        assert torch.allclose(dW_OI, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
        assert int(torch.linalg.matrix_rank(dW_OI, rtol=1e-5)) == times[name]
    assert record(folder)["stages"][-1]["accumulated"]["rank"] == max(times.values())


def test_rank_grows_with_factors_drawn_anew_and_not_with_the_same_a() -> None:
    """C-34: two draws of rank 2 add up to 4. C-35: B₁A + B₂A has rank 2."""
    for seeds, rank in (((1, 2), 4), ((1, 1), 2)):
        model, where = fresh("llama")
        parts = []
        for number, seed in enumerate(seeds):
            own = inject(model, "lora", **where, seed=seed, name=f"n{number}", **settings("lora", 2))
            for adapter in own.adapters.values():
                source = torch.Generator().manual_seed(number)
                adapter.B_OR.data.copy_(torch.randn(adapter.B_OR.shape, generator=source))
            parts.append(own)
        assert accumulated_rank(parts) == {"bound": 4, "rank": rank}
        whole = settled(model, parts, "default", 0)
        assert accumulated_rank([whole]) == {"bound": 4, "rank": rank} and list(adapters_of(model)) == [
            "default"
        ]


@pytest.mark.parametrize("name", ["dora", "hydralora", "full"])
def test_what_is_no_product_has_no_accumulated_rank(name: str) -> None:
    assert accumulated_rank([inject(fresh("llama")[0], name)]) == {}


# --- merge, then continue ----------------------------------------------------------------------------------


def test_replay_adds_a_share_of_the_first_data_to_the_second() -> None:
    first, second = stages_of("merge_continue", by="task", replay=0.5, first=0.25)
    rows = [{"task": name} for name in "abaabbab"]
    assert first.steps == 3 and second.steps == 9 and first.examples and second.examples
    assert list(first.examples(rows)) == [0, 2, 3, 6]
    numbers = list(second.examples(rows))
    assert numbers[:4] == [1, 4, 5, 7] and len(numbers) == 6 and set(numbers[4:]) < {0, 2, 3, 6}
    half, rest = stages_of("merge_continue", split=0.25, replay=0.0)
    assert half.examples and rest.examples
    assert list(half.examples(rows)) == [0, 1] and list(rest.examples(rows)) == [2, 3, 4, 5, 6, 7]
    assert stages_of("merge_continue", start="full", start_rate=0.1)[0].variant == "full"
    with pytest.raises(ValueError, match="of 8 examples, 8 are D₁: none may be empty"):
        first.examples([{"task": "a"}] * 8)
    with pytest.raises(ValueError, match="by=kind is no column of the data: task"):
        stages_of("merge_continue", by="kind")[0].examples(rows)  # type: ignore[misc]


def test_each_stage_sees_the_examples_of_its_own(runs: Runs) -> None:
    first, second = (given["train_dataset"] for given in runs.given[CONTINUED])
    counts = [stage["examples"] for stage in record(runs[CONTINUED])["stages"]]
    assert [len(first), len(second)] == [32, 40] == counts
    assert sum(any(one is other for other in first) for one in second) == 8


# --- DropBP ------------------------------------------------------------------------------------------------


def llama(**more: Any) -> tuple[LlamaForCausalLM, Any]:
    model = fresh("llama")[0]
    injection = inject(model, "lora", rank=2, target_modules=["q", "o", "down"], **more)
    for p in injection.parameters():
        p.data.normal_(generator=torch.Generator().manual_seed(p.numel()))
    return model.train(), injection


def gradients(model: nn.Module, injection: Any, dropped: Mapping[str, float]) -> tuple[Tensor, set[str]]:
    """The loss, and the parameters that get a gradient where these sub-layers are dropped."""
    dropper = BackwardDropper(model, 0.5, warmup=0.0, uniform=True, seed=0)
    dropper.rates = {name: dropped.get(name, 0.0) for name in dropper.rates}
    with dropper.dropping(Progress(1, 1)):
        loss = model(**batch("llama")).loss
        found = torch.autograd.grad(loss, injection.parameters(), allow_unused=True)
    return loss, {n for n, g in zip(injection.named_parameters(), found, strict=True) if g is not None}


def test_a_dropped_branch_learns_nothing_and_the_value_is_the_same() -> None:
    """C-36: of the last attention dropped, its own adapters alone get no gradient."""
    model, injection = llama(modules_to_save=["model.norm"])
    whole, every = gradients(model, injection, {})
    assert every == set(injection.named_parameters())
    attention = "model.layers.1.self_attn"
    loss, reached = gradients(model, injection, {f"{attention}.o_proj": 1.0})
    assert torch.equal(loss, whole) and every - reached == {n for n in every if n.startswith(attention)}
    loss, reached = gradients(model, injection, dict.fromkeys(branches(model), 1.0))
    assert torch.equal(loss, whole) and reached == {"model.norm.weight"}


def test_branches_are_known_by_their_last_layers_in_each_architecture() -> None:
    """Weights of hidden 16: attention 16² (q, o) and 16·8 (k, v of 2 of 4 heads); MLP 3 · 16 · 24."""
    of = {kind: branches(fresh(kind)[0]) for kind in ("llama", "bert", "gpt2")}
    assert [(b.weights, b.attention) for b in of["llama"].values()] == [(768, 16), (1152, 0)] * 2
    assert [(b.weights, b.attention) for b in of["bert"].values()] == [(1024, 16), (768, 0)] * 2
    assert [(b.weights, b.attention) for b in of["gpt2"].values()] == [(1024, 16), (2048, 0)] * 2
    assert of["llama"]["model.layers.0.self_attn.o_proj"].cost(10) == 768 + 2 * 10 * 16
    with pytest.raises(ValueError, match="no layer of the model is known as the last of a residual"):
        branches(nn.Sequential(nn.Linear(2, 2)))


def test_rates_go_where_they_cost_least_until_the_mean_is_reached() -> None:
    """By hand: strides of 0.1 at n times the sensitivity, 1 : 4 : 1000, equal costs, mean 1/3."""
    assert allocated([1.0, 4.0, 1000.0], [1, 1, 1], 1 / 3) == [0.8, 0.2, 0.0]
    assert allocated([1.0, 4.0, 1000.0], [1, 1, 1], 0.6) == [0.9, 0.9, 0.0]
    assert allocated([5.0, 5.0], [3, 1], 0.5) == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"dropbp=0.95 is above 0.9"):
        BackwardDropper(fresh("llama")[0], 0.95, warmup=0.0, uniform=False, seed=0)


def test_sensitivity_is_the_change_of_the_gradients_norms_and_sets_the_rates() -> None:
    model, injection = llama()
    dropper = BackwardDropper(model, 0.5, warmup=0.0, uniform=False, seed=0)
    assert not dropper.is_due(Progress(1, 20)) and dropper.is_due(Progress(3, 20))

    def all_gradients() -> tuple[Tensor | None, ...]:
        loss = model(**batch("llama")).loss
        return torch.autograd.grad(loss, injection.parameters(), allow_unused=True)

    dropper.allocate(all_gradients, 6)
    costs = [branch.cost(6) for branch in dropper.branches.values()]
    mean = sum(c * p for c, p in zip(costs, dropper.rates.values(), strict=True)) / sum(costs)
    assert 0.5 <= mean < 0.56 and len(set(dropper.rates.values())) > 1
    assert not dropper.is_due(Progress(3, 20))
    other = BackwardDropper(model, 0.5, warmup=0.0, uniform=False, seed=0)
    other.load_state(dropper.state())
    assert other.rates == dropper.rates and not other.is_due(Progress(3, 20))


def test_draws_are_of_step_and_pass_alone_and_warm_up_drops_nothing() -> None:
    model, _ = llama()

    def drawn(steps: list[int], warmup: float = 0.0) -> list[tuple[bool, ...]]:
        dropper, found = BackwardDropper(model, 0.5, warmup=warmup, uniform=True, seed=3), []
        for step in steps:
            with dropper.dropping(Progress(step, 10)):
                modules = (model.get_submodule(f"model.layers.{n}.self_attn.o_proj") for n in range(2))
                found.append(tuple(bool(m.layer._forward_hooks) for m in modules))
        return found

    assert drawn([1, 1, 2, 3])[2:] == drawn([2, 3]) and len(set(drawn([*range(1, 9)]))) > 1
    assert drawn([1, 2, 3], warmup=0.3) == [(False, False)] * 3
    share = sum(map(sum, drawn([*range(1, 201)]))) / 400
    assert share == pytest.approx(0.5, abs=4 * (0.25 / 400) ** 0.5)


def test_a_pass_of_which_all_is_dropped_changes_nothing(runs: Runs) -> None:
    assert all(not dW_OI.any() for dW_OI in products(runs[CONTINUED], 1.0).values())
    (rates, _) = (stage["dropbp"] for stage in record(runs[CONTINUED])["stages"])
    assert len(rates) == 8 and set(rates.values()) == {0.999999}
    found = [set(stage["dropbp"].values()) for stage in record(runs[RELORA])["stages"]]
    assert all(len(rates) > 1 for rates in found), "each stage allocates its own"


# --- Delta-LoRA --------------------------------------------------------------------------------------------


def delta(update_ratio: float, start: float, name: str = "delta_lora") -> tuple[Any, Tensor]:
    """One layer after 6 steps, and the layer's W."""
    model = lone("linear", 5, 7)
    own = {"update_ratio": update_ratio, "start": start} if name == "delta_lora" else {}
    injection = inject(model, name, target_modules=["layer"], rank=2, alpha=3, **own)
    W_OI = model.layer.layer.weight.detach().clone()
    x = torch.randn(8, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    train(injection, lambda: model(x).square().mean(), steps=6, lr=0.05)
    return injection, W_OI


def test_delta_lora_is_algorithm_1_on_a_copy_of_w() -> None:
    """LoRA with a W that moves after each step from K = 2 on (closed form: C-33), to rounding."""
    injection, W_OI = delta(2.0, 2)
    model = lone("linear", 5, 7)
    plain = inject(model, "lora", target_modules=["layer"], rank=2, alpha=3)
    (adapter,), W = plain.adapters.values(), model.layer.layer.weight
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, weight_decay=0.0)
    x = torch.randn(8, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at_start = torch.zeros(())
    for step in range(1, 7):
        model(x).square().mean().backward()
        before = (adapter.B_OR @ adapter.A_RI).detach()
        optimizer.step()
        optimizer.zero_grad()
        if step > 2:
            W.data += 2.0 * adapter.scale * ((adapter.B_OR @ adapter.A_RI).detach() - before)
        at_start = (adapter.B_OR @ adapter.A_RI).detach() if step == 2 else at_start
    (mine,) = injection.adapters.values()
    torch.testing.assert_close(mine.A_RI, adapter.A_RI, rtol=0, atol=1e-12)
    expected_OI = W + adapter.update()
    torch.testing.assert_close(mine.weight(W_OI), expected_OI, rtol=0, atol=1e-12)
    telescoped = W_OI + adapter.scale * (3 * adapter.B_OR @ adapter.A_RI - 2 * at_start)
    torch.testing.assert_close(expected_OI, telescoped, rtol=0, atol=1e-12)
    assert float((expected_OI - W_OI - adapter.update()).detach().abs().max()) > 0.01
    B_OR, A_RI = mine.factors()
    assert B_OR.shape == (5, 4) and A_RI.shape == (4, 7)


def test_with_a_ratio_of_0_or_before_its_start_delta_lora_is_lora() -> None:
    plain, W_OI = delta(0, 0, "lora")
    for ratio, start in ((0.0, 2), (2.0, 5.0)):
        found, _ = delta(ratio, start)
        (mine,), (other,) = found.adapters.values(), plain.adapters.values()
        torch.testing.assert_close(mine.A_RI, other.A_RI, rtol=0, atol=1e-12 if not ratio else 1.0)
        if not ratio:
            torch.testing.assert_close(mine.weight(W_OI), other.weight(W_OI), rtol=0, atol=1e-12)
    at_once, W_OI = delta(2.0, 0.0)
    (mine,) = at_once.adapters.values()
    torch.testing.assert_close(mine.weight(W_OI), W_OI + 3 * mine.scale * mine.B_OR @ mine.A_RI)
    with pytest.raises(ValueError, match=r"start=6 leaves none of the 6 steps"):
        delta(2.0, 6)
