"""Random command lines: whatever is typed ends well, or in one line with exit code 2.

LORA_ZOO_FUZZ=5000 tries that many random command lines, and as many whole runs of two steps, instead of the
few that are always the same.
"""

import contextlib
import functools
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lora_zoo.config import auto, command_line, compose
from lora_zoo.config.groups import GROUPS, options
from lora_zoo.config.schema import Model, Settings, Task, Tracking, register
from lora_zoo.sweeps.auto import planned

register()
LONG = int(os.environ.get("LORA_ZOO_FUZZ", "0"))


def tries(number: int, share: float = 1.0) -> Callable[[Any], Any]:
    quick = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    many = max(int(LONG * share), 1) if LONG else number
    return settings(
        max_examples=many, derandomize=not LONG, deadline=None, database=None, suppress_health_check=quick
    )


INNER = [f"task.{f.name}" for f in fields(Task)] + [f"model.{f.name}" for f in fields(Model)]
INNER += [f"tracking.{f.name}" for f in fields(Tracking)] + ["variant.name", "variant.d_initial", "variant.x"]
INNER += [
    "trainer.optim",
    "trainer.eval_steps",
    "trainer.bf16",
    "trainer.foo",
    "task.sizes.train",
    "task.x.y",
]
INNER += [f"seeds.{f.name}" for f in fields(auto.Seeds)] + [f"rates.{f.name}" for f in fields(auto.Rates)]
INNER += ["task.columns.prompt", "rank_pattern.q", "alpha_pattern.v", "hydra.job.name", "hydra.verbose"]
INNER += [
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra/launcher",
    "hydra.nope",
    "rank/x",
    "a@b",
    "",
    ".",
    "rank.",
]
HOSTILE = """
nan inf -inf 0 -0 -1 1 2 1.5 1e400 1e-400 -1e30 99999999999999999999999 0x10 1_000 true false null none
yes [] {} [[]] [null] [''] [nan] {a:1} {a:{b:[1]}} {1:2} [q,v] [q,q] '' "" ' " [ ] { } ( ) , ,, a, ,a a,b
1,2 \\ \\\\ $ ${rank} ${lr} ${nope} ${task} ${task.lr} ${mul:2,${rank}} ${mul:a} ${mul:} ${oc.env:NOPE}
${oc.env:HOME} ${ ${} $${x} range(1,3) range(3,1) range(0,5,0) range(nan,3) interval(1,2) choice(1,2)
choice() glob(*) glob(x) sort(3,1) shuffle(1,2) tag(a,1) str(1) int(a) float(x) bool(2) json_str({})
extend_list(1) cast(1) ??? .* .*q_proj [( (.*) *a ?:x (?P<n) a=b = == : :: ; | & ~ ~x @ # % ^ ` / // ./
../x ~/x ~nobody/x /dev/null /dev/null/x lora dora pocket pocket-sql sick csv {prompt} {prompt.__class__}
{prompt[0]} {0} {} {{}} {prompt!r} {prompt:>999999} {target} 0-2 -1 8- 9-1 all-linear train validation
test auto float16 offline kaiming pissa_niter_4 pissa_niter_99999999 300k 1.5M adamw_torch é 日本 \u202e
\ufeff \x00 \t a\tb \ud800 🦙 ﷽
""".replace("\n", " ").split(" ")

keys = st.one_of(
    st.sampled_from(sorted(f.name for f in fields(Settings))),
    st.sampled_from(INNER),
    st.text(max_size=6),
)
names = st.sampled_from([name for group in GROUPS for name in options(group)])
nested = st.recursive(
    st.sampled_from([w for w in HOSTILE if w.isalnum()] + ["-1", "1.5"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.dictionaries(st.sampled_from(["q", "train", "prompt", "x", "1"]), inner, max_size=2).map(
            lambda d: "{" + ",".join(f"{k}:{v}" for k, v in d.items()) + "}"
        ),
        st.lists(inner, min_size=1, max_size=3).map(",".join),
    ),
    max_leaves=5,
)
values = st.one_of(
    st.sampled_from(HOSTILE),
    names,
    nested,
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=12),
    st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=3).map("".join),
)
marks = st.sampled_from(["", "", "", "", "+", "++", "~", "-", "+++"])
override = st.builds(lambda mark, key, value: f"{mark}{key}={value}", marks, keys, values)
flags = st.sampled_from(["--cfg", "job", "--resolve", "--multirunn", "--info", "-c", "--", "-", "-x=1"])
word = st.one_of(override, override, override, override, override, st.text(max_size=8), flags, keys)
lines = st.lists(word, min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def checked(words: list[str], *, multirun: bool) -> list[Settings] | str:
    """What the front door does before anything runs: the settings, or the one line."""
    try:
        ready, plans = auto.taken(command_line.rewritten(words))
    except ValueError as error:
        line = str(compose.Mistake(str(error)))
    else:
        try:
            overrides = command_line.overrides(ready)
            found = compose.check(overrides, multirun=multirun)
            if plans.asked:
                planned(plans, overrides, found, multirun=multirun)
            return found
        except ValueError as mistake:
            line = str(compose.Mistake(str(mistake)))
    assert line.strip()
    assert len(line.splitlines()) == 1
    assert "Traceback" not in line
    line.encode()
    return line


@tries(400)
@example(words=["rank=1", "~rank"], multirun=False)
@example(words=["hydra.sweep.dir=${nope}"], multirun=True)
@example(words=["rank=range(1,1e300)"], multirun=True)
@example(words=["variant=lora,dora", "seed=auto", "lr=auto", "seeds.against=a'b\\"], multirun=True)
@given(words=lines, multirun=st.booleans())
def test_any_command_line_is_taken_or_refused_in_one_line(words: list[str], multirun: bool) -> None:
    checked(words, multirun=multirun)


TYPED = {
    float: ["nan", "inf", "0", "-1", "0.5", "1e-30", "1e30", "abc", "null", "[]"],
    int: ["0", "-1", "1", "2", "7", "999999999999999999999", "1.5", "abc", "null", "[1]"],
}
run_keys = {
    **dict.fromkeys(("lr", "alpha", "lora_dropout", "epochs"), float),
    **dict.fromkeys(
        ("rank", "seed", "data_seed", "batch_size", "task.max_length", "task.eval_batch_size"), int
    ),
}
words_of_runs = {
    "target_modules": [
        "[q]",
        "all-linear",
        "[gates]",
        ".*q_proj",
        "[q,k,v,o]",
        "3",
        "['(']",
        "[head]",
        "[embed]",
    ],
    "exclude_modules": ["[q]", "[q,v]", "null", "[x]"],
    "layers": ["0", "[0,2-3]", "-1", "9", "abc", "1-"],
    "variant": sorted(options("variant")),
    "init": ["kaiming", "olora", "pissa_niter_2", "zero_a", "nope", ""],
    "rank_pattern": ["{q:2}", "{z:2}", "{q:500}", "{q:-1}"],
    "budget": ["1", "9k", "1e99", "x", "null"],
    "modules_to_save": ["[lm_head]", "[x]", "auto", "null"],
    "task.metrics": ["[bleu]", "[accuracy]", "[rouge_l,exact_match]", "[f1]", "[]", "[x/y]"],
    "task.template": ["{prompt}", "{prompt} ;", "{x}", "{prompt.a}", "x"],
    "task.type": ["causal_lm", "multiple_choice", "regression", "classification", "seq2seq", "x"],
    "task.stop": ["';'", "zzz", "''", "null"],
    "task.labels": ["[a,b]", "[]", "null", "[a]"],
    "task.columns": ["{prompt:prompt,target:target}", "{prompt:x,target:y}", "{}", "{a:b}"],
    "model.dtype": ["float32", "bfloat16", "auto", "float16", "x"],
    "eval_splits": ["[test]", "[]", "[x]", "[train]"],
    "trainer.optim": ["sgd", "adamw_torch", "adafactor", "lomo", "x", "3"],
    "trainer.lr_scheduler_type": [
        *("cosine", "constant", "polynomial", "x", "reduce_lr_on_plateau", "null", "inverse_sqrt", "greedy"),
        *("warmup_stable_decay", "cosine_with_restarts", "cosine_with_min_lr", "constant_with_warmup"),
    ],
    "trainer.lr_scheduler_kwargs": [
        "{min_lr:0.001}",
        "{num_decay_steps:1}",
        "{power:-1}",
        "{x:1}",
        "null",
        "3",
    ],
    "trainer.metric_for_best_model": ["nll", "exact_match", "eval_nll", "x", "null"],
    "trial": ["true", "x"],
    "trainer.max_grad_norm": ["0", "-1", "abc", "nan"],
    "trainer.warmup_steps": ["0.5", "3", "-1", "abc", "1e300"],
    "trainer.eval_steps": ["1", "-1", "0.5", "null"],
    "trainer.gradient_accumulation_steps": ["0", "2", "1.5", "-3"],
    "variant.tinit": ["0", "0.9", "5"],
    "variant.init_r": ["2", "12", "999", "auto"],
    "variant.d_initial": ["nan", "0.1", "a"],
    "variant.mode": ["projected", "x"],
}
settings_of_runs = st.one_of(
    *[st.tuples(st.just(k), st.sampled_from(TYPED[kind])) for k, kind in run_keys.items()],
    *[st.tuples(st.just(k), st.sampled_from(given)) for k, given in words_of_runs.items()],
)
runs = st.lists(settings_of_runs, min_size=1, max_size=3, unique_by=lambda pair: pair[0])


@tries(20)
@example(words=["variant=vera", "task=pocket-style", "rank=${mul:2,${seed}}", "task.lr=${rank}"])
@example(words=["target_modules=[q,v]", "target_modules=[k]", "trainer.optim=sgd", "variant.x=1"])
@example(words=["task.sizes={train: 8}", "trainer.optim=sgd", "lr=1", "lr=2"])
@example(words=["trainer.warmup_steps=3", "~trainer.optim"])
@example(words=["preset=qlora", "rank=3", "variant.nope=1"])
@given(words=runs.map(lambda pairs: [f"{key}={value}" for key, value in pairs]))
def test_values_set_on_a_composition_that_jobs_share_give_what_hydra_composes(words: list[str]) -> None:
    shared = checked(words, multirun=False)
    with mock.patch.object(compose, "_with_values", lambda job: contextlib.nullcontext()):
        assert shared == checked(words, multirun=False)


DONE, DIVERGED, MISTAKE = 0, 1, 2
SHORT = {
    **{"steps": "2", "batch_size": "4", "task.max_new_tokens": "4", "eval_before_training": "false"},
    **{"task.sizes.train": "8", "task.sizes.validation": "2", "task.sizes.test": "2"},
    **{"eval_splits": "[validation]", "forgetting_text": "null"},
}


@functools.cache
def settled() -> None:
    """Import what a run needs: the collector of garbage, which each run calls, goes through it no more."""
    from tests.test_mistakes import ended

    ended(" ".join(f"{key}={value}" for key, value in SHORT.items()))
    gc.collect()
    gc.freeze()


def ending(pairs: list[tuple[str, str]], *more: str) -> None:
    from tests.test_mistakes import ended

    settled()
    typed = SHORT | dict(pairs)
    if typed.get("epochs", "null") != "null":
        del typed["steps"]
    end = ended(" ".join([*(f"{key}={value}" for key, value in typed.items()), *more]))
    assert "Traceback" not in end.text, end.text
    if end.code == MISTAKE:
        assert end.steps == 0, end.text
        *listing, line = end.lines()
        refused = line.startswith("lora_zoo: ") and not listing
        assert refused or (more and line.startswith("no match: ")), end.text  # a dry run lists what matches
    elif end.code == DIVERGED:  # a finding: a rate of 1e30
        assert "lora_zoo: diverged:" in end.text, end.text
    else:
        assert end.code == DONE, end.text


@tries(40, 0.1)
@given(pairs=runs)
def test_any_dry_run_lists_or_refuses(pairs: list[tuple[str, str]]) -> None:
    ending([p for p in pairs if p[0] != "variant" or p[1] != "zero_shot"], "dry_run=true")


@tries(20)
@example(pairs=[("epochs", "1e30")])
@given(pairs=runs)
def test_any_run_ends_well_or_before_its_first_step(pairs: list[tuple[str, str]]) -> None:
    ending(pairs)
