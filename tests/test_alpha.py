"""Alpha follows the rank that is used, whoever finds it, and means the same in the library and in a run."""

import math
from collections.abc import Iterable

import pytest

from lora_zoo.claims.tiny import Tiny
from lora_zoo.config import command_line
from lora_zoo.config import compose as precheck
from lora_zoo.config.schema import register
from lora_zoo.core.hyperparameters import check_hyperparameters, hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.runs.identity import specify
from lora_zoo.training.experiment import target_arguments

register()


def count(name: str, rank: int) -> int:
    """The trainable parameters of a matrix (16, 16)."""
    cls = VARIANTS[name]
    return cls.trainable_count([((16, 16), cls.complete(check_hyperparameters(cls, {"rank": rank})))])


SCALED = [name for name, cls in VARIANTS.items() if "alpha" in hyperparameters(cls)]


def of_a_run(*overrides: str) -> Injection:
    """The adapter that a run with these overrides would put into Tiny."""
    (settings,) = precheck.check(command_line.rewritten(list(overrides)), multirun=False)
    spec = specify(settings)
    there = {"target_modules": ["q", "v"], "modules_to_save": []}
    arguments = target_arguments(spec.settings, []) | spec.hyperparameters | there
    return inject(Tiny(), spec.variant, **arguments, seed=0)


def used_ranks(injection: Injection) -> dict[str, int]:
    """The rank by which each matrix divides its alpha: AdaLoRA's is the one that it begins with."""
    every = {name: injection.hyper | {"rank": injection.hyper["rank"]} for name in injection.matrices}
    for key, own in injection.patterns.items():
        for name, value in own.items():
            every[name] = every[name] | {key: value}
    first = "init_r" in injection.hyper
    return {n: math.ceil(1.5 * h["rank"]) if first else h["rank"] for n, h in every.items()}


def first_of_each_rule(names: Iterable[str]) -> list[str]:
    """The first variant of each way to take a rank, to scale by it, and to count by it."""
    first: dict[object, str] = {}
    for name in names:
        rules = (getattr(VARIANTS[name], rule) for rule in ("alpha_of", "scaling", "used_rank", "complete"))
        first.setdefault(
            (VARIANTS[name].sized_by, *(getattr(rule, "__func__", rule) for rule in rules)), name
        )
    return list(first.values())


ALONE = [name for name in SCALED if "shared" not in vars(VARIANTS[name].hooks)]  # of a pair there is one rank
GROWING = [
    n for n in SCALED if count(n, 1) < min(count(n, 2), 1000)
]  # others refuse a budget, or so small a one
FOUND = [("budget=4k", first_of_each_rule(GROWING)), ("rank_pattern={q:2,v:5}", first_of_each_rule(ALONE))]


@pytest.mark.parametrize(("found_by", "name"), [(how, name) for how, names in FOUND for name in names])
def test_a_multiple_of_the_rank_is_one_of_the_rank_that_is_used(found_by: str, name: str) -> None:
    injection = of_a_run(f"variant={name}", "alpha=${mul:3,${rank}}", found_by)
    for matrix, rank in used_ranks(injection).items():
        expected = VARIANTS[name].scaling(3 * rank, rank)
        assert injection.adapters[matrix].scale == pytest.approx(expected), matrix
    assert injection.scales() == sorted({a.scale for a in injection.adapters.values()})


def test_the_papers_alpha_is_the_scale_of_a_fair_comparison() -> None:
    found = {name: inject(Tiny(), name, rank=6).scales()[0] for name in ("lora", "dora", "adalora", "pissa")}
    assert found == pytest.approx({"lora": 1.0, "dora": 2.0, "adalora": 1.0, "pissa": 1.0}, rel=1e-5)


@pytest.mark.parametrize("written", ["2r", "${mul:2,${rank}}", "${mul:${rank},2}"])
def test_a_multiple_can_be_written_in_several_ways(written: str) -> None:
    assert of_a_run(f"alpha={written}", "budget=2k").hyper["alpha"] == 14.0
    assert of_a_run(f"alpha={written}", "rank=4").hyper["alpha"] == 8.0


def test_a_matrix_may_have_a_multiple_of_its_own() -> None:
    injection = of_a_run("rank_pattern={q:2}", "alpha_pattern={q:3r}", "rank=4")
    assert {n: a.scale for n, a in injection.adapters.items()} == {"q_proj": 3.0, "v_proj": 1.0}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alpha=${mul:${rank},${rank}} budget=2k", "not in proportion"),
        ("alpha=${mul:${rank},${rank}} rank_pattern={q:2}", "not in proportion"),
        ("lr=${mul:0.001,${rank}} budget=2k", "lr is computed from rank, which budget= finds"),
        ("trainer.weight_decay=${mul:0.1,${rank}} budget=2k", "trainer.weight_decay is computed from rank"),
        ("variant=nola variant.num_basis=9 lr=${mul:0.1,${variant.num_basis}} budget=2k", "num_basis"),
        ("alpha=0r", "a multiple of the rank"),
        ("alpha=-2r", "a multiple of the rank"),
        ("alpha_pattern={q:2x}", "alpha_pattern.q must be"),
    ],
)
def test_what_cannot_follow_a_rank_is_refused(line: str, says: str) -> None:
    with pytest.raises((precheck.Mistake, ValueError), match=says.replace("(", r"\(")):
        precheck.check(command_line.rewritten(line.split()), multirun=False)


def test_a_key_that_does_not_look_at_the_rank_goes_with_a_budget() -> None:
    given = ["lr=${mul:0.1,${task.lr}}", "budget=2k", "alpha_pattern={q:4}"]
    (settings,) = precheck.check(command_line.rewritten(given), multirun=False)
    assert settings.lr == pytest.approx(0.1 * settings.task.lr)
    assert settings.alpha == "auto" and settings.alpha_pattern == {"q": 4}


@pytest.mark.parametrize("wrong", ["2", "rr", "2 r", "r2", "1e999r", "", "0.0r", "nanr"])
def test_a_text_that_is_no_multiple_is_refused_before_the_model_is_touched(wrong: str) -> None:
    model = Tiny()
    with pytest.raises(ValueError, match="alpha must be"):
        inject(model, "lora", alpha=wrong)
    assert all(p.requires_grad for p in model.parameters())
