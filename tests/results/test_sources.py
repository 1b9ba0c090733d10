"""The code that an identity covers: what decides a result does, and nothing else."""

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import lora_zoo
from lora_zoo.config import command_line, compose, schema
from lora_zoo.config.spec import variant_of
from lora_zoo.core.generators import GENERATORS
from lora_zoo.pocket import lists
from lora_zoo.runs import identity, sources
from lora_zoo.runs.identity import identified, identified_as, specify
from lora_zoo.runs.provenance import stale
from lora_zoo.runs.sources import digest

schema.register()
PACKAGE = Path(lora_zoo.__file__).parent


@functools.cache
def config_of(*overrides: str) -> dict[str, Any]:
    (settings,) = compose.check(command_line.rewritten(list(overrides)), multirun=False)
    return asdict(specify(settings).settings)


def changed(monkeypatch: pytest.MonkeyPatch, path: str, before: str, after: str, *overrides: str) -> bool:
    """True if the run of `overrides` is another one once `before` is `after` in a file of the package."""
    config = config_of(*overrides)
    variant = variant_of(schema.Settings(variant=config["variant"]))
    first = identified(config, variant)[0]
    text = (PACKAGE / path).read_text()
    assert before in text
    syntax, edited = sources._syntax, digest(text.replace(before, after))
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_OF_OURS", {})  # which is kept for as long as a process runs
        patch.setattr(sources, "_syntax", lambda f, at: edited if f == PACKAGE / path else syntax(f, at))
        return identified(config, variant)[0] != first


LORA, PISSA, SORA = ("+variant=lora",), ("+variant=lora", "init=pissa"), ("+variant=sora",)
DROP, FULL = ("+variant=lora", "program=lora_drop"), ("+variant=full",)
MATTERS = [
    ("variants/low_rank.py", "return alpha / rank", "return alpha / rank**0.5", LORA),
    ("variants/adaptive/sora.py", 'group["l1_weight"] * group["lr"]', 'group["l1_weight"]', SORA),
    ("core/dropout.py", "1 / (1 - p)", "1 / (1 + p)", LORA),
    ("core/seeding.py", "digest[:8]", "digest[1:9]", LORA),
    ("inits/svd.py", "return", "return 1 and", PISSA),
    ("kernels/dense.py", "return", "return 1 and", LORA),
    ("hosts/linear.py", "return", "return 1 and", LORA),
    ("injection/wrappers.py", "self.layer(x)", "self.layer(-x)", LORA),
    ("programs/lora_drop.py", "threshold: float = 0.9", "threshold: float = 0.8", DROP),
    ("variants/shared/shared_lora.py", "return", "return 1 and", DROP),
    ("injection/base_model.py", "return found", "return dict(found)", FULL),
]


@pytest.mark.parametrize(("path", "before", "after", "overrides"), MATTERS, ids=lambda v: str(v)[:30])
def test_a_token_that_matters_makes_another_run(path, before, after, overrides, monkeypatch) -> None:
    assert changed(monkeypatch, path, before, after, *overrides)


IDLE = [
    ("variants/low_rank.py", "    return alpha / rank", "    return (alpha /\n            rank)  # s", LORA),
    ("variants/additive/lora.py", '"""§4.1, eq. 3: h = W x + (α/r) B A x."""', '"""Another."""', LORA),
    ("variants/low_rank.py", "must be a number other than 0", "must not vanish", LORA),
    ("variants/adaptive/sora.py", "softshrink(", "hardshrink(", LORA),
    ("inits/svd.py", "return", "return 1 and", LORA),
    ("programs/lora_drop.py", "0.9", "0.8", LORA),
    ("core/errors.py", "return", "return 1 and", LORA),
    ("report/report.py", "return", "return 1 and", LORA),
]


@pytest.mark.parametrize(("path", "before", "after", "overrides"), IDLE, ids=lambda v: str(v)[:30])
def test_what_does_not_matter_makes_none(path, before, after, overrides, monkeypatch) -> None:
    assert not changed(monkeypatch, path, before, after, *overrides)


def test_a_record_without_the_word_is_held_to_the_files_alone() -> None:
    """Variant and program, letter by letter: the hash of the versions before imports counted."""
    config = config_of(*LORA)
    variant = variant_of(schema.Settings(variant=config["variant"]))
    own = (PACKAGE / "variants/additive/lora.py").read_text()
    assert sources.own_files(variant, config) == own
    old, new = identified_as({"config": config, "made_of": {}}, variant), identified(config, variant)
    assert old[0] != new[0] and old[1]["settings"] == new[1]["settings"] and "covers" not in old[1]
    assert identified_as({"config": config, "made_of": json.loads(json.dumps(new[1]))}, variant) == new


def test_other_generated_examples_make_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(*LORA, "task=pocket-lists")
    variant = variant_of(schema.Settings(variant=config["variant"]))
    first, parts = identified(config, variant)
    record = {"config": config, "made_of": parts, "identity": first}
    assert stale(record) == "" and identified(config_of(*LORA, "task=pocket-style"), variant)[0] != first

    def without_edits(split: str, size: int, seed: int, *, difficulty: int = 1) -> list[dict[str, str]]:
        return [e | {"target": "same ;"} for e in lists.examples(split, size, seed, difficulty=1)]

    monkeypatch.setitem(GENERATORS._members, "pocket-lists", without_edits)
    identity._sample.cache_clear()
    assert identified(config, variant)[0] != first
    assert stale(record) == "the data have changed since: generated examples"
    identity._sample.cache_clear()
