"""lm-evaluation-harness on a merged model: what it is given, what is kept, and a run without it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_zoo import merge
from lora_zoo.models.harness import FILE, judged


def test_without_the_package_nothing_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as ended:
        merge.main([str(tmp_path), str(tmp_path / "out"), "--evaluate", "piqa"])
    assert ended.value.code == 2
    assert "needs lm-evaluation-harness" in (said := capsys.readouterr().err)
    assert 'pip install "lora_zoo[harness]"' in said and len(said.splitlines()) == 1


def test_a_model_is_judged_by_the_tasks_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    values = {"alias": "piqa", "acc,none": 0.75, "acc_stderr,none": 0.01, "sample_len": 4}

    def simple_evaluate(**given: Any) -> dict[str, Any]:
        asked.update(given)
        if "nope" in given["tasks"]:
            raise KeyError("no task is called nope")
        return {"results": {"piqa": values}, "config": {}}

    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=simple_evaluate))
    assert judged(tmp_path, ["piqa"]) == ["piqa: acc 0.75", "piqa: acc_stderr 0.01"]
    assert asked["model"] == "hf" and asked["tasks"] == ["piqa"]
    assert asked["model_args"] == {"pretrained": str(tmp_path), "trust_remote_code": False}
    assert json.loads((tmp_path / FILE).read_text()) == {"piqa": values}
    with pytest.raises(ValueError, match=r"--evaluate: .*no task is called nope"):
        judged(tmp_path, ["nope"])
