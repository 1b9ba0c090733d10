"""Facts that a class states about itself, and scalars that adapters emit, honoured wherever they matter."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_zoo.config.spec import flat_hyperparameters
from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.dropout import ForwardCounter
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.host import LayerHost
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject
from lora_zoo.injection.plan import plan_injection
from lora_zoo.injection.preview import preview
from lora_zoo.launchers.packed.backbone import Backbone
from lora_zoo.launchers.packed.job import PackedJob
from lora_zoo.launchers.packed.resources import PackedResources, SharedBase
from lora_zoo.updates.summary import summary, update_of
from lora_zoo.variants.additive.lora import LoRA
from tests.test_packed import adapted, batch, model, pack, trained


class Balance(AdapterHooks):
    """Adds what the adapters emit to the loss."""

    packable = True

    def regularizer(self) -> Tensor | float:
        return self.emitted()


class Gated(LoRA):
    """LoRA with a gate for each token: no matrix does the same."""

    name, equation, pointwise = "gated", "W' x = W x + σ(g·x) s B A x", False
    count = "R * (O + I) + I"
    hooks = Balance

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.gate_I = nn.Parameter(context.full(context.shape[1:], 0.1))

    def output(self, x: Tensor, host: LayerHost) -> Tensor:
        return self(x, host)

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        gate = torch.sigmoid(x.to(self.gate_I.dtype) @ self.gate_I)[..., None]
        self.emit((gate - 0.5).square().sum())
        return host.base(x) + (gate * host.low_rank(x, *self.branch())).to(x.dtype)


class Even(LoRA):
    name = "even"

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Any) -> str | None:
        return None if hyper["rank"] % 2 == 0 else f"rank must be even; got {hyper['rank']}"


class Diagonal(Adapter):
    """A variant whose size is fixed by the matrix."""

    name, paper, equation, count, inits = "diagonal", "none", "W' = diag(1 + v) W", "O", ("kaiming",)

    def __init__(self, context: LayerContext, *, rank: int = 8) -> None:
        super().__init__(context)
        self.v_O = nn.Parameter(context.full(context.shape[:1]))
        self.dropout = context.dropout(0.0)

    def weight(self, W_OI: Tensor) -> Tensor:
        return (1 + self.v_O)[:, None] * W_OI


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gated` can be found by name, as a saved adapter wants it."""
    find = VARIANTS.find
    monkeypatch.setattr(VARIANTS, "find", lambda name: Gated if name == "gated" else find(name))


def gated(net: nn.Module, seed: int = 0, name: str = "default") -> Any:
    injection = inject(net, Gated, rank=2, target_modules=["q", "v"], seed=seed, name=name)
    with torch.no_grad():
        for n, p in enumerate(injection.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(n), dtype=p.dtype))
    return injection


REFUSED: dict[str, Callable[[Any, Path], Any]] = {
    "merged": lambda injection, _: injection.merge(),
    "read as a ΔW": lambda injection, _: list(injection),
    "read as a ΔW ": lambda injection, _: update_of(injection, next(iter(injection.adapters))),
    "written in PEFT's format": lambda injection, folder: save_peft(injection, folder / "out"),
    "read at model.layers.0.self_attn.q_proj": lambda i, _: i.model.model.layers[0].self_attn.q_proj.weight,
}


@pytest.mark.parametrize("action", REFUSED)
def test_without_an_effective_weight_nothing_pretends_that_there_is_one(action: str, tmp_path: Path) -> None:
    net = model()
    injection, tokens = gated(net), batch(2, 5, 0)
    before = net(**tokens).logits
    with pytest.raises(ValueError, match=f"gated has no effective weight.* cannot be {action.strip()}"):
        REFUSED[action](injection, tmp_path)
    assert torch.equal(net(**tokens).logits, before) and not list(tmp_path.iterdir())
    assert summary(injection) == []


def test_it_is_refused_on_a_parameter_that_its_module_reads() -> None:
    net = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match=r"gated has no effective weight.*put on 0\.in_proj_weight"):
        inject(net, Gated, rank=2, target_modules=[r"0\.in_proj_weight\.q"])


def test_it_trains_and_comes_back_from_disk(known: None, tmp_path: Path) -> None:
    net = model().train()
    injection = gated(net)
    assert injection.trainable() == sum(2 * 32 + 16 for _ in injection.adapters)
    save_adapter(injection, tmp_path)
    again = model().train()
    load_adapter(again, tmp_path)
    assert torch.equal(again(**batch(2, 5, 0)).logits, net(**batch(2, 5, 0)).logits)
    assert json.loads((tmp_path / "adapter.json").read_text())["variant"] == "gated"


def test_a_class_must_define_what_its_kind_needs() -> None:
    class NoWeight(Adapter):
        paper = equation = "none"

    class NoForward(NoWeight):
        pointwise = False

    for cls, missing in ((NoWeight, "weight"), (NoForward, "forward")):
        with pytest.raises(TypeError, match=f"must define `{missing}`"):
            VARIANTS.add("unfinished", cls)
    assert "unfinished" not in VARIANTS


def test_a_refusal_is_one_line_before_anything_changes() -> None:
    net = model()
    with pytest.raises(ValueError) as refusal:
        inject(net, Even, rank=3)
    expected = (
        "even cannot adapt model.layers.0.self_attn.q_proj, a linear (16 x 16): rank must be even; got 3"
    )
    assert str(refusal.value) == expected and not adapters_of(net)
    with pytest.raises(ValueError, match="rank must be even; got 5"):
        plan_injection(net, Even, rank=4, rank_pattern={"v": 5})
    assert len(inject(net, Even, rank=4)) == 4
    of_seven = Even.trainable_count([((16, 16), {"rank": 7}), ((8, 16), {"rank": 7})] * 2)
    assert plan_injection(model(), Even, budget=of_seven).hyperparameters["rank"] == 6, (
        "the next that it takes"
    )


def test_a_budget_is_refused_where_no_size_meets_it() -> None:
    with pytest.raises(ValueError, match=r"budget=5k: diagonal has 64 parameters here, whatever its rank"):
        inject(model(), Diagonal, budget="5k")


def test_a_budget_finds_the_hyperparameter_that_sizes_the_variant() -> None:
    class Basis(Diagonal):
        name, sized_by, count = "basis", "size", "2 * size"

        def __init__(self, context: LayerContext, *, size: int = 4) -> None:
            super().__init__(context)

        @classmethod
        def trainable_count(cls, matrices: Any) -> int:
            return 7 + super().trainable_count(matrices)  # shared by all, counted once

    assert plan_injection(model(), Basis, budget=7 + 4 * 2 * 30 + 5).hyperparameters == {"size": 30}
    with pytest.raises(ValueError, match="budget=9 sets the size; size=2 cannot be given as well"):
        plan_injection(model(), Basis, budget=9, size=2)
    of_run: Any = SimpleNamespace(budget="9", variant={"name": "basis", "size": 4})
    assert flat_hyperparameters(of_run, Basis) == {}, "a run's completed default is not a size that was given"


def test_hooks_see_the_adapted_model() -> None:
    net = model()
    injection = gated(net, seed=3)
    hooks = injection.hooks
    assert hooks.model is net and hooks.seed == 3 and hooks.counter is injection.counter
    assert hooks.matrices == injection.matrices
    assert not list(hooks.parameters()) and not hooks.state_dict(), "the model is not part of what is saved"


# --- scalars of the pass ---------------------------------------------------------------------------------


def test_emitted_scalars_are_those_of_the_last_training_pass() -> None:
    net, tokens = model().train(), batch(2, 5, 0)
    injection = gated(net)
    net(**tokens)
    first = float(injection.hooks.emitted())
    net(**tokens)
    assert float(injection.hooks.emitted()) == first > 0
    with torch.no_grad():
        net(**tokens)
    net.eval()(**tokens)
    assert injection.hooks.emitted() == 0
    net.train().gradient_checkpointing_enable({"use_reentrant": False})
    for call in (net, partial(checkpoint, net, use_reentrant=False)):
        (call(**tokens).logits.sum() + injection.hooks.emitted()).backward()
        assert float(injection.hooks.emitted()) == pytest.approx(first), "a recomputation emits nothing"


def test_a_penalty_on_the_pass_goes_through_the_cut_of_a_pack() -> None:
    net = model().train()
    alone = gated(net, seed=1)
    expected = [trained(_counted(net, alone), alone, {}, lambda: None)]
    net = model().train()
    lora = adapted(net, "lora", "linear", 0, "default")
    expected.append(trained(net, lora, {}, lambda: None))

    net, together = model().train(), pack()
    together.share(Backbone(net))

    def first(job: PackedJob) -> list[float]:
        adapters_of(net).show_all()
        job.injection = gated(net, seed=1, name=job.name)
        adapters_of(net).isolate(job.name)
        return trained(_counted(net, job.injection), job.injection, {}, together.backward)

    def second(job: PackedJob) -> list[float]:
        adapters_of(net).show_all()
        job.injection = adapted(net, "lora", "linear", 0, job.name)
        adapters_of(net).isolate(job.name)
        return trained(net, job.injection, {}, together.backward)

    jobs = together.run([first, second])
    assert [job.error for job in jobs] == [None, None]
    assert [job.most for job in jobs] == [2, 2]
    assert [job.outcome for job in jobs] == [pytest.approx(losses) for losses in expected]


def _counted(net: nn.Module, injection: Any) -> nn.Module:
    """`net`, whose backbone begins a pass as the model's own forward does."""
    net.base_model.register_forward_pre_hook(injection.counter.begin, with_kwargs=True)
    return net


class Patching(AdapterHooks):
    def forward_context(self, progress: Progress) -> Any:
        raise AssertionError("not called here")


class Careful(Patching):
    packable = True


class Careless(Careful):
    def regularizer(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("hooks", "method"),
    [(AdapterHooks, ""), (Patching, "forward_context"), (Careful, ""), (Careless, "regularizer")],
)
def test_hooks_within_a_step_run_by_themselves_unless_they_say_so(hooks: type, method: str) -> None:
    assert hooks.not_packable() == method
    variant = type("Hooked", (LoRA,), {"name": "hooked", "hooks": hooks})
    net, shared = model(), SharedBase()
    resources = PackedResources.__new__(PackedResources)
    resources.shared = shared
    arguments = {"target_modules": ["q"], "rank": 2}
    reason = resources._refusal(net, Backbone(net), variant, arguments, {})
    assert reason == (
        method and f"hooked's hooks override {method}, which could reach other jobs (see `packable`)"
    )


# --- shared tensors that train ---------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self, shapes: Any, like: Tensor, seed: int, rank: int) -> None:
        super().__init__()
        O, I = next(iter(shapes.values()))
        source = torch.Generator().manual_seed(seed)
        self.A_RI = nn.Parameter(torch.randn(rank, I, generator=source).to(like))
        self.B_OR = nn.Parameter(like.new_zeros(O, rank))


class PairHooks(AdapterHooks):
    @classmethod
    def shared(cls, shapes: Any, like: Tensor, *, seed: int, **hyper: Any) -> Pair:
        return Pair(shapes, like, seed, hyper["rank"])


class Tied(Adapter):
    """One product for all matrices of one shape, scaled by a vector of each."""

    name, paper, count, hooks = "tied", "none", "R", PairHooks
    equation, inits = "W' = W + B diag(u) A", ("kaiming",)

    def __init__(self, context: LayerContext, *, rank: int = 8) -> None:
        super().__init__(context)
        self.pair = context.shared
        self.u_R = nn.Parameter(context.full((rank,), 1.0))
        self.dropout = context.dropout(0.0)

    @classmethod
    def trainable_count(cls, matrices: Any) -> int:
        (O, I), hyper = matrices[0]
        return super().trainable_count(matrices) + hyper["rank"] * (O + I)

    def weight(self, W_OI: Tensor) -> Tensor:
        return W_OI + (self.pair.B_OR * self.u_R) @ self.pair.A_RI


def test_shared_tensors_train_and_are_counted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net, tokens = model().train(), batch(2, 5, 0)
    injection = inject(net, Tied, rank=2, target_modules=["q", "o"])
    names = list(injection.named_parameters())
    assert names[-2:] == ["shared.A_RI", "shared.B_OR"] and len(names) == 4 + 2
    assert (
        injection.trainable() == 4 * 2 + 2 * 32 == sum(p.numel() for p in net.parameters() if p.requires_grad)
    )
    shown = preview(model(), Tied, rank=2, target_modules=["q", "o"])
    assert (shown.trainable, shown.shared, shown.total) == (injection.trainable(), 64, injection.total())
    assert plan_injection(
        model(), Tied, target_modules=["q", "o"], budget=4 * 3 + 3 * 32 + 5
    ).hyperparameters == {"rank": 3}
    (group,) = injection.param_groups(lr=0.1)
    optimizer = torch.optim.SGD([group])
    for _ in range(2):
        optimizer.zero_grad()
        net(**tokens).logits.square().mean().backward()
        optimizer.step()
    save_adapter(injection, tmp_path)
    size = (tmp_path / "adapter.safetensors").stat().st_size
    assert size < 8 * injection.trainable() + 1500  # float64, and the file's header
    find = VARIANTS.find
    monkeypatch.setattr(VARIANTS, "find", lambda name: Tied if name == "tied" else find(name))
    again = model().train()
    load_adapter(again, tmp_path)
    assert torch.equal(again(**tokens).logits, net(**tokens).logits)
    expected = net(**tokens).logits
    injection.merge()
    torch.testing.assert_close(net(**tokens).logits, expected)


def test_gradients_of_shared_tensors_add_over_the_matrices() -> None:
    net, tokens = model().train(), batch(2, 5, 0)
    injection = inject(net, Tied, rank=2, target_modules=["q", "o"])
    with torch.no_grad():
        injection.shared.B_OR.add_(0.1)
    net(**tokens).logits.square().mean().backward()
    found = injection.shared.A_RI.grad.clone()
    for adapter in injection.adapters.values():  # each in turn reads a copy whose gradient is its own
        copy = Pair({"": (16, 16)}, injection.shared.A_RI, 0, 2)
        copy.load_state_dict(injection.shared.state_dict())
        adapter.pair = copy
    net.zero_grad()
    net(**tokens).logits.square().mean().backward()
    apart = [adapter.pair.A_RI.grad for adapter in injection.adapters.values()]
    torch.testing.assert_close(found, sum(apart))


def test_two_draws_for_one_purpose_are_refused_as_they_would_be_the_same_numbers() -> None:
    layer = inject(nn.Sequential(nn.Linear(6, 4)), "lora", rank=2, target_modules=["0"]).matrices["0"]
    context = LayerContext("0", layer.host, 0, ForwardCounter())
    first = context.normal("A", (2, 3, 4), 0.5)
    torch.testing.assert_close(context.uniform("B", (2, 6), 0.5).abs().le(0.5).all(), torch.tensor(True))
    with pytest.raises(ValueError, match="'A' is drawn twice"):
        context.normal("A", (2, 3, 4), 0.5)
    taller = LayerContext("0", layer.host, 0, ForwardCounter()).normal("A", (5, 3, 4), 0.5)
    assert torch.equal(taller[:2], first)


class Renamed(AdapterHooks):
    def __init__(self, adapters: Any, *, rank: int = 2) -> None:
        super().__init__(adapters)


class Narrow(LoRA):
    name = "narrow"

    def __init__(self, context: LayerContext, *, rank: int = 2, **hyper: Any) -> None:
        super().__init__(context, rank=rank, **hyper)


class TwoMeanings(LoRA):
    name, hooks = "two_meanings", Renamed


def test_one_name_of_a_hyperparameter_has_one_default() -> None:
    assert hyperparameters(Narrow)["rank"].default == 2, "the derived class's, which is the one that is built"
    assert inject(nn.Sequential(nn.Linear(6, 4)), Narrow, target_modules=["0"]).adapters["0"].rank == 2
    with pytest.raises(ValueError, match="two things by rank"):
        inject(nn.Sequential(nn.Linear(6, 4)), TwoMeanings, target_modules=["0"])
