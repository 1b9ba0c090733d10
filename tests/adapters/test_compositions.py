"""Merges of adapters against PEFT, against numbers by hand, and the identities that hold of each."""

from collections.abc import Callable
from itertools import count
from typing import Any

import peft.utils.merge_utils as theirs
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close

from lora_zoo.compositions import merges, task_vectors
from lora_zoo.compositions.merges import ternary_bits
from lora_zoo.compositions.svd import truncated
from lora_zoo.conformance.cases import fresh, inputs, lone, perturb, settings
from lora_zoo.core.composition import COMPOSITIONS, Composition, composition_of
from lora_zoo.core.hyperparameters import keywords
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.composition_data import AdapterData
from lora_zoo.injection.inject import inject

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
PEFTS = {
    "linear_of_factors": "linear",
    "ties_of_factors": "ties",
    "dare_linear_of_factors": "dare_linear",
    "dare_ties_of_factors": "dare_ties",
    "magnitude_prune_of_factors": "magnitude_prune",
    "cat": "cat",
    "svd": "svd",
    "weighted_sum": "svd",
    "ties": "ties_svd",
    "dare_linear": "dare_linear_svd",
    "dare_ties": "dare_ties_svd",
    "magnitude_prune": "magnitude_prune_svd",
}
"""Ours -> PEFT's `combination_type`."""
STATIC = [name for name, cls in COMPOSITIONS.items() if not (cls.examples or cls.routes)]
WHOLE = {"density": 1.0, "task": "a"}


def options_of(name: str, **options: Any) -> dict[str, Any]:
    """Those of `options` that the composition has."""
    return {key: value for key, value in options.items() if key in keywords(COMPOSITIONS[name])}


def alternating(mask_of: Callable[[int, torch.Size], Tensor]) -> Callable[..., Tensor]:
    """A random pruning that gives two adapters, asked in turn, a mask each."""
    turn = count()

    def pruned(tensor: Tensor, density: float, *_: object, **__: object) -> Tensor:
        return tensor * mask_of(next(turn) % 2, tensor.shape) / density

    return pruned


def mask_of(seed: int, shape: torch.Size) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6).double()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """One model with LoRAs "a" and "b" of one rank and two scales: ours in float64, and PEFT's."""
    folder, model = tmp_path_factory.mktemp("peft"), fresh("llama")[0].double()
    for seed, name in enumerate(("a", "b")):
        perturb(inject(model, "lora", rank=3, alpha=3 + seed, name=name), 0.3, seed)
        save_peft(adapters_of(model)[name], folder / name)
    wrapped = PeftModel.from_pretrained(fresh("llama")[0].double(), folder / "a", adapter_name="a")
    wrapped.load_adapter(folder / "b", adapter_name="b")
    return model, wrapped.double()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("weights", [[0.7, 1.6], [0.5, -1.2]])
@pytest.mark.parametrize("name", PEFTS)
def test_a_merge_is_peft_s(name: str, weights: list[float], pair: tuple[Any, Any], monkeypatch: Any) -> None:
    model, wrapped = pair
    monkeypatch.setattr(theirs, "random_pruning", alternating(mask_of))
    monkeypatch.setattr(merges, "dropped", alternating(mask_of))
    rank = 2 if name == "svd" else 64
    wrapped.add_weighted_adapter(
        ["a", "b"], weights, "both", PEFTS[name], density=0.6, svd_rank=rank, svd_full_matrices=False
    )
    adapters = adapters_of(model)
    options = options_of(name, weights=weights, density=0.6, rank=2)
    adapters.activate("a", "b", composition=name, **options)
    worst = 0.0
    for matrix in adapters["a"].matrices.values():
        layer = wrapped.base_model.model.get_submodule(matrix.name)
        mine = model.get_submodule(matrix.name).weight - matrix.host.matrix()
        expected = layer.get_delta_weight("both")
        worst = max(worst, float((mine - expected).detach().abs().max() / expected.abs().max()))
    wrapped.delete_adapter("both")
    assert worst < 1e-6


def two(composition: str, rank: int = 3) -> Any:
    """A linear layer with adapters "a" (lora) and "b", both away from their start."""
    model = lone("linear").requires_grad_(False)
    second = "lora" if COMPOSITIONS[composition].of_factors else "dora"
    for seed, (name, variant) in enumerate({"a": "lora", "b": second}.items()):
        own = inject(
            model, variant, target_modules=["layer"], name=name, seed=seed, **settings(variant, rank)
        )
        perturb(own, seed=seed + 1)
    return model


@pytest.mark.parametrize("name", STATIC)
def test_one_adapter_with_weight_1_and_density_1_stays_as_it_is(name: str) -> None:
    if name == "compeft":
        pytest.skip("ternary values are other values at any density")
    model, x = two(name), inputs("linear")
    adapters = adapters_of(model)
    adapters.activate("a")
    alone = model(x)
    adapters.activate("a", composition=name, **options_of(name, weights=[1], **WHOLE))
    assert torch.equal(model(x), alone)
    own = adapters.composition.combine(
        torch.zeros(3), {"a": torch.arange(3.0)}, "bias"
    )  # the equation itself, which the only adapter skips
    assert_close(own, torch.arange(3.0))


@pytest.mark.parametrize("name", STATIC)
def test_the_order_of_adapters_does_not_matter(name: str) -> None:
    """Nor of DARE's, whose draw belongs to the adapter's name."""
    model, x = two(name), inputs("linear")
    adapters, found = adapters_of(model), []
    for names, weights in ((("a", "b"), [0.4, -1.3]), (("b", "a"), [-1.3, 0.4])):
        adapters.activate(
            *names, composition=name, **options_of(name, weights=weights, density=0.5, task="b")
        )
        found.append(model(x))
    assert_close(*found, **CLOSE)


def merged(name: str, changes: dict[str, list[float]], **options: Any) -> list[float]:
    """What a composition makes of ΔW that are vectors, W = 1."""
    composition = composition_of(name, tuple(changes), options)
    base = torch.ones(len(next(iter(changes.values()))))
    changed = {key: base + torch.tensor(value) for key, value in changes.items()}
    return (composition.combine(base, changed, "b") - base).tolist()


def test_merges_by_hand() -> None:
    a, b = [4.0, -1.0, 2.0, 0.5], [-2.0, -3.0, 1.0, 0.25]
    of = {"a": a, "b": b}
    approx = pytest.approx
    assert merged("average", of) == approx([1, -2, 1.5, 0.375])
    assert merged("weighted_sum", of, weights=[1, -1]) == approx([6, 2, 1, 0.25]), "negation"
    # the two largest of each: a 4, 2; b -2, -3
    assert merged("magnitude_prune", of, density=0.5) == approx([2, -3, 2, 0])
    assert merged("ties", of, density=0.5) == approx([4, -3, 2, 0])
    assert merged("ties", of, density=0.5, weights=[0.5, 2]) == approx([2, -6, 1, 0])
    assert merged("ties", of, density=1.0) == approx([4, -2, 1.5, 0.375])
    three = {"a": [1.0], "b": [1.0], "c": [-5.0]}
    assert merged("ties", three, density=1.0) == approx([-5.0])
    assert merged("ties", three, density=1.0, elect="frequency") == approx([1.0])
    assert merged("ties", {"a": [2.0], "b": [-2.0]}, density=1.0) == approx([2.0]), "a tie is +"
    std = torch.tensor(a).std().item()
    assert merged("compeft", {"a": a}, density=0.5, scale=2.0) == approx([2 * std, 0, 2 * std, 0])
    # θ* = W + (a + b)/2; a lacks (3, 1, .5, .125), of which the two largest come back
    common = {"weights": [0.5, 0.5], "density": 0.5}
    assert merged("byom", of, **common) == approx([1, -2, 1.5, 0.375])
    assert merged("byom", of, **common, task="a") == approx([4, -1, 1.5, 0.375])
    assert merged("byom", of, weights=[0.5, 0.5], density=1.0, task="b") == approx(b)
    assert merged("byom_lora", of, task="b") == approx(b)


def test_ternary_tensors_have_three_values_and_the_size_of_their_entropy() -> None:
    dW_OI = torch.randn(20, 30)
    ternary = COMPOSITIONS["compeft"](("a",), density=0.05).ternary(dW_OI)  # type: ignore[attr-defined]
    assert ternary.unique().tolist() == pytest.approx([-dW_OI.std().item(), 0, dW_OI.std().item()])
    assert int(ternary.count_nonzero()) == 30
    bits, n = ternary_bits(dW_OI, 0.05)
    assert n == 600 and bits == pytest.approx(600 * (0.05 * 5.321928 + 0.95 * 0.0740006) + 16)
    whole = COMPOSITIONS["compeft"](("a",), density=1.0).ternary(dW_OI)  # type: ignore[attr-defined]
    assert_close(whole, dW_OI.std() * dW_OI.sign())


def test_dare_keeps_the_mean_and_its_share() -> None:
    """C-45: E[dare(ΔW)] = ΔW; the draw is the seed's, the adapter's and the matrix's."""
    dW_OI = torch.randn(10, 10)
    drawn = torch.stack([task_vectors.dropped(dW_OI, 0.3, seed) for seed in range(2000)])
    assert float((drawn.mean(0) - dW_OI).abs().max()) < 5 * (0.7 / 0.3 / 2000) ** 0.5 * float(
        dW_OI.abs().max()
    )
    assert float((drawn != 0).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert_close(drawn[0][drawn[0] != 0], (dW_OI / 0.3)[drawn[0] != 0])
    of = (*[(1, "a", "m"), (1, "b", "m"), (1, "a", "n")], (2, "a", "m"))
    assert len({tuple((task_vectors.dropped(dW_OI, 0.3, *key) != 0).flatten().tolist()) for key in of}) == 4


def test_factors_that_are_merged_one_by_one_have_cross_terms() -> None:
    """C-41: `cat` and `svd` are Σ w_i ΔW_i, LoRAHub's sum and PEFT's `linear` are not."""
    model = two("cat")
    adapters, weights = adapters_of(model), [0.4, 0.7]
    W_OI, found = model.layer.weight, {}
    for name in ("weighted_sum", "cat", "svd", "sum_of_factors", "linear_of_factors"):
        adapters.activate("a", "b", composition=name, weights=weights)
        found[name] = model.layer.weight
    adapters.activate()
    W_OI = model.layer.weight
    assert_close(found["cat"], found["weighted_sum"], **CLOSE)
    assert_close(found["svd"], found["weighted_sum"], **CLOSE)
    (s, A, B), (t, C, D) = (
        (own.scale, own.A_RI, own.B_OR) for own in (adapters[n].adapters["layer"] for n in ("a", "b"))
    )
    hub = (weights[0] * s * B + weights[1] * t * D) @ (weights[0] * A + weights[1] * C)
    assert_close(found["sum_of_factors"], W_OI + hub, **CLOSE)
    for name in ("sum_of_factors", "linear_of_factors"):
        assert float((found[name] - found["weighted_sum"]).detach().abs().max()) > 1e-2
    adapters.activate("a", "b", composition="sum_of_factors", weights=[0, 1])
    of_b = model.layer.weight
    adapters.activate("b")
    assert_close(of_b, model.layer.weight, **CLOSE)


def test_a_chosen_rank_is_the_best_and_its_error_is_told() -> None:
    model = two("cat")
    adapters = adapters_of(model)
    adapters.activate("a", "b", composition="svd", weights=[1, 2], rank=4)
    cut, composition = model.layer.weight, adapters.composition
    adapters.activate("a", "b", weights=[1, 2])
    exact = model.layer.weight
    W_OI = adapters["a"].base_weight("layer")
    values = torch.linalg.svdvals(exact - W_OI)
    assert torch.linalg.matrix_rank(cut - W_OI, atol=1e-9) == 4 and int((values > 1e-9).sum()) == 6
    expected = float(values[4:].norm() / values.norm())
    assert float((cut - exact).detach().norm() / (exact - W_OI).norm()) == pytest.approx(expected)
    assert composition.errors == {"layer": pytest.approx(expected)}
    assert composition.notes() == [f"largest relative error of a matrix at rank 4: {expected:.2g} (layer)"]
    adapters.activate("a", "b", composition="byom_lora", task="b", rank=2)
    of_b, error = truncated(adapters["b"].update("layer").dW_OI, 2)
    assert_close(model.layer.weight, W_OI + of_b, **CLOSE)
    assert adapters.composition.errors == {"layer": pytest.approx(error)} and error > 0.01


def test_a_share_is_that_of_an_adapted_part() -> None:
    """On q of a fused layer as on a layer of its own: rows that no adapter touches do not count."""
    model, _ = fresh("gpt2")
    own = inject(model, "lora", target_modules=["q"], rank=4, name="a")
    perturb(own)
    adapters_of(model).activate("a", composition="magnitude_prune", density=0.25)
    matrix = next(iter(own.matrices.values()))
    change = matrix.host.read(model.get_submodule(matrix.tensor).weight) - matrix.host.matrix()
    assert int((change.abs() > 1e-7).sum()) == pytest.approx(change.numel() / 4, abs=2)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("ties", {"density": 0.0}, "above 0 and at most 1; got 0.0"),
        ("svd", {"rank": 0}, "rank must be at least 1; got 0"),
        ("byom", {"task": "c"}, "unknown task 'c'"),
        ("average", {"weights": [1, 2]}, "average: unknown hyperparameter 'weights'"),
        ("ties", {"weights": [1.0]}, "weights: one for each of a, b is needed; got 1"),
        ("ties", {"elect": "most"}, "elect must be 'total' or 'frequency'; got 'most'"),
        ("linear_of_factors", {}, r"needs ΔW = B A, and 'b' \(dora\) has no factors at layer"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], says: str) -> None:
    model = two("ties")
    with pytest.raises(ValueError, match=says):
        adapters_of(model).activate("a", "b", composition=name, **options)
        adapters_of(model).merge()
    assert not adapters_of(model).merged


def test_factors_of_several_ranks_and_parts_of_a_whole_are_refused() -> None:
    model = lone("linear").requires_grad_(False)
    for rank, name in enumerate("ab", start=2):
        perturb(inject(model, "lora", target_modules=["layer"], rank=rank, name=name))
    adapters_of(model).activate("a", "b", composition="ties_of_factors")
    with pytest.raises(ValueError, match=r"adds factors of one rank; those of layer are 2 of 'a', 3 of 'b'"):
        model(inputs("linear"))
    fused, _ = fresh("gpt2")
    inject(fused, "lora", target_modules=["q"], rank=2, name="a")
    inject(fused, "lora", target_modules=["c_attn"], rank=2, name="b")
    adapters_of(fused).activate("a", "b")
    with pytest.raises(ValueError, match=r"ties composes matrix by matrix, and 'b' adapts .*c_attn"):
        adapters_of(fused).activate("a", "b", composition="ties")


def test_a_prior_stays_whole_beside_what_is_merged() -> None:
    model = lone("linear").requires_grad_(False)
    for name, below in (("below", []), ("a", ["below"]), ("b", ["below"])):
        perturb(
            inject(model, "lora", target_modules=["layer"], rank=2, name=name, prior=below), seed=len(name)
        )
    adapters = adapters_of(model)
    change = {name: adapters[name].update("layer").dW_OI for name in adapters}
    adapters.activate("a", "b", composition="average")
    expected = adapters["a"].base_weight("layer") + change["below"] + (change["a"] + change["b"]) / 2
    assert_close(model.layer.weight, expected, **CLOSE)
    assert isinstance(adapters.composition, Composition)


def fitted(name: str, **options: Any) -> tuple[Any, Any, Composition, list[Tensor]]:
    """A prepared composition of "a" and "b", each on four examples of its own, and their token ids."""
    model, _ = fresh("llama")
    for seed, (own, variant) in enumerate({"a": "lora", "b": "dora"}.items()):
        perturb(
            inject(model.double(), variant, rank=2, target_modules=["q", "o"], name=own, seed=seed), 0.3, seed
        )
    source = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, model.config.vocab_size, (4, 1, 7), generator=source) for _ in "ab"]
    batches = {own: [{"input_ids": i, "labels": i} for i in of] for own, of in zip("ab", ids, strict=True)}
    composition = composition_of(name, ("a", "b"), options)
    data = AdapterData(model, ["a", "b"], own=batches, target=batches["a"])
    composition.prepare(data)
    return model, adapters_of(model), composition, ids


def test_statistics_are_those_of_each_adapter_s_effective_weights() -> None:
    """Against a merged copy: the squared gradients of W', one example at a time, and the moments of x."""
    model, adapters, fisher, ids = fitted("fisher")
    regmean = composition_of("regmean", ("a", "b"), {})
    own = [{"input_ids": i, "labels": i} for i in ids[1]]
    regmean.prepare(AdapterData(model, ["a", "b"], own={"a": own[:1], "b": own}))
    place, seen = "model.layers.1.self_attn.o_proj", []
    adapters.activate("b")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    adapters.merge()
    layer = model.get_submodule(place)
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().flatten(0, 1)))
    layer.weight.requires_grad_()
    squares = []
    for batch in own:
        (gradient,) = torch.autograd.grad(model(**batch).loss, [layer.weight])
        squares.append(gradient.square())
    x_NI = torch.cat(seen)
    adapters.unmerge()
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    assert_close(fisher.statistics["b"][place]["squared_gradient"], torch.stack(squares).mean(0), **CLOSE)
    assert_close(regmean.statistics["b"][place]["input_moment"], x_NI.T @ x_NI / len(x_NI), **CLOSE)


class Given:
    """Statistics that are given for one matrix: adapter -> F."""

    def __init__(self, place: str, **of: Tensor) -> None:
        self.place, self.of = place, of

    def statistics(self, name: str, needs: Any) -> Any:
        return {self.place: {"squared_gradient": self.of[name]}}


def test_fisher_weighs_each_entry_by_its_squared_gradients() -> None:
    """C-43: equal Fishers give the mean; an entry that one model alone minds is that model's."""
    _, adapters, composition, _ = fitted("fisher", normalize=False, floor=1e-15)
    place = "model.layers.0.self_attn.q_proj"
    F = {name: composition.statistics[name][place]["squared_gradient"] for name in "ab"}
    change = {name: adapters[name].update(place).dW_OI for name in "ab"}
    adapters.activate("a", "b", composition=composition)
    found = adapters.model.get_submodule(place).weight - adapters["a"].base_weight(place)
    assert_close(found, (F["a"] * change["a"] + F["b"] * change["b"]) / (F["a"] + F["b"]), **CLOSE)
    mean = (change["a"] + change["b"]) / 2
    for given, normalize, expected in (
        ({"a": F["a"], "b": F["a"]}, False, mean),
        ({"a": F["a"], "b": 100 * F["a"]}, True, mean),
        ({"a": F["a"], "b": 1e-30 * F["a"]}, False, change["a"]),
    ):
        fisher = composition_of("fisher", ("a", "b"), {"normalize": normalize})
        fisher.prepare(Given(place, **given))
        assert_close(fisher.merged(change, place), expected, rtol=1e-9, atol=1e-9)
        assert_close(fisher.merged({"a": torch.ones(2)}, "bias"), torch.full((2,), 0.5))
    weighted = composition_of("fisher", ("a", "b"), {"weights": [3, 1]})
    weighted.prepare(Given(place, a=F["a"], b=F["a"]))
    assert_close(weighted.merged(change, place), (3 * change["a"] + change["b"]) / 4, **CLOSE)
    alone = composition_of("fisher", ("a",), {})
    alone.prepare(Given(place, a=F["a"]))
    adapters.activate("a", composition=alone)
    assert torch.equal(
        adapters.model.get_submodule(place).weight, adapters["a"].base_weight(place) + change["a"]
    )
    with pytest.raises(ValueError, match="the loss of 'b' has no gradient at what is composed"):
        weighted.prepare(Given(place, a=F["a"], b=0 * F["a"]))


def test_regmean_is_the_regression_on_every_adapter_s_own_outputs() -> None:
    """C-42: without shrinking it is the least squares over both data; with it the gradient vanishes."""
    _, adapters, composition, _ = fitted("regmean", alpha=1.0)
    place = "model.layers.0.self_attn.q_proj"
    G = {name: composition.statistics[name][place]["input_moment"] for name in "ab"}
    roots = {name: torch.linalg.eigh(own) for name, own in G.items()}
    X = {
        name: (own.eigenvalues.clamp_min(0).sqrt()[:, None] * own.eigenvectors.T)
        for name, own in roots.items()
    }
    change = {name: adapters[name].update(place).dW_OI for name in "ab"}
    stacked, outputs = torch.cat([X[n] for n in "ab"]), torch.cat([X[n] @ change[n].T for n in "ab"])
    found = composition.merged(change, place)
    assert_close(stacked @ found.T, stacked @ torch.linalg.lstsq(stacked, outputs, driver="gelsd").solution)
    adapters.activate("a", "b", composition=composition)
    assert_close(
        adapters.model.get_submodule(place).weight, adapters["a"].base_weight(place) + found, **CLOSE
    )
    composition.alpha = 0.9
    found = composition.merged(change, place)
    shrunk = {n: 0.9 * G[n] + 0.1 * G[n].diagonal().diag() for n in "ab"}
    gradient = sum((found - change[n]) @ shrunk[n] for n in "ab")
    assert float(gradient.abs().max()) < 1e-9 * float(shrunk["a"].abs().max())
    composition.alpha = 0.0
    diagonal = sum(change[n] * G[n].diagonal() for n in "ab") / sum(G[n].diagonal() for n in "ab")
    assert_close(composition.merged(change, place), diagonal, rtol=1e-7, atol=1e-9)
    assert_close(composition.merged({"b": torch.ones(2)}, "bias"), torch.full((2,), 0.5))


class Valley:
    """A loss with its minimum at given weights."""

    def __init__(self, *best: float) -> None:
        self.best, self.asked = torch.tensor(best), list[list[float]]()

    def loss(self, composition: Any) -> float:
        self.asked.append([*composition.weights.values()])
        return float((torch.tensor(self.asked[-1]) - self.best).square().sum())


@pytest.mark.parametrize("optimizer", ["scipy", "nevergrad"])
def test_lorahub_finds_weights_within_its_bounds_and_budget(optimizer: str) -> None:
    if optimizer == "nevergrad":
        pytest.importorskip("nevergrad")
    valley = Valley(0.8, -3.0)
    composition = composition_of(
        "lorahub", ("a", "b"), {"optimizer": optimizer, "budget": 60, "penalty": 0.4}
    )
    composition.prepare(valley)
    assert len(valley.asked) <= 60 and max(abs(w) for own in valley.asked for w in own) <= 1.5
    # 2 (w - 0.8) + 0.4/2 = 0
    assert composition.weights == pytest.approx([0.7, -1.5], abs=0.1)
    penalty = 0.4 * sum(map(abs, composition.weights)) / 2
    assert composition.value == pytest.approx(valley.loss(composition.found) + penalty, abs=1e-4)
    assert "of a, " in composition.notes()[0]
    own = composition.combine(torch.ones(1), {"a": torch.tensor([2.0]), "b": torch.tensor([1.0])}, "")
    assert own.tolist() == pytest.approx([1 + composition.weights[0]])


def test_searches_at_their_ends() -> None:
    nothing = composition_of("lorahub", ("a", "b"), {"budget": 0})
    nothing.prepare(Valley(1.0, 1.0))
    assert nothing.combine(torch.zeros(1), {"a": torch.ones(1)}, "").tolist() == [0.0], "the base"
    grid, valley = composition_of("controlpe", ("a", "b"), {}), Valley(0.52, 0.52)
    grid.prepare(valley)
    assert grid.weights == pytest.approx((0.5, 0.5)) and len(valley.asked) == 16
    ternary: Any = composition_of("lorahub_of_compeft", ("a", "b"), {"optimizer": "scipy", "density": 0.5})
    ternary.prepare(Valley(1.0, 0.0))
    assert ternary.found.name == "compeft" and ternary.found.density == 0.5
    assert ternary.weights == pytest.approx((1 - 0.05 / 4, 0), abs=0.05)
    adapters, hub = fitted_hub()
    assert adapters.composition is hub and not hub.of_outputs
    for name in ("lorahub", "fisher"):
        with pytest.raises(ValueError, match=f"{name} looks at data: prepare it before it is used"):
            adapters.activate("a", "b", composition=name)
        adapters.activate("a")


def fitted_hub() -> tuple[Any, Any]:
    """LoRAHub as published on two LoRAs, to the data on which "a" is best."""
    model, _ = fresh("llama")
    for seed, name in enumerate("ab"):
        perturb(inject(model, "lora", rank=2, name=name, seed=seed), 0.3, seed)
    adapters = adapters_of(model)
    adapters.activate("a")
    ids = torch.randint(3, model.config.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    data = AdapterData(model, ["a", "b"], target=[batch])
    hub: Any = composition_of("lorahub_of_factors", ("a", "b"), {"optimizer": "scipy", "budget": 8})
    hub.prepare(data)
    adapters.activate("a", "b", composition=hub)
    expected = hub.value - 0.05 * sum(map(abs, hub.weights)) / 2
    assert float(model.eval()(**batch).loss.detach()) == pytest.approx(expected, rel=1e-5)
    return adapters, hub
