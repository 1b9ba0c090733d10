"""Tutorials: their Python runs as it stands on the page, and the index names them all."""

import csv
import re
import sys
from pathlib import Path

import pytest
import torch

from lora_zoo.core.user_files import run_file
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import inject

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)


def test_the_index_names_every_tutorial() -> None:
    named = re.findall(r"\]\((\w[\w-]*\.md)\)", (PAGES / "index.md").read_text())
    assert sorted([*named, "index.md"]) == sorted(path.name for path in PAGES.glob("*.md"))


def test_peft_s_adapter_gives_the_same_outputs_here_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    theirs, ours = blocks("peft.md")
    (tmp_path / "theirs.py").write_text(theirs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    exec(ours, {"__name__": "ours"})
    monkeypatch.delitem(sys.modules, "theirs")
    said = dict(
        re.findall(r"^(without the adapter|here and there|and back): (\S+)$", capsys.readouterr().out, re.M)
    )
    assert float(said["without the adapter"]) > 1
    assert float(said["here and there"]) < 1e-5 and float(said["and back"]) < 1e-5


def test_the_variant_of_one_s_own_is_what_its_equation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for held in ("_members", "_origins"):
        monkeypatch.setattr(VARIANTS, held, dict(getattr(VARIANTS, held)))
    (code,) = blocks("own-variant.md")
    (tmp_path / "gain_lora.py").write_text(code)
    run_file(tmp_path / "gain_lora.py")
    assert "gain_lora" in VARIANTS
    model = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False))
    W_OI = model[0].weight.detach().clone()
    adapted = inject(model, "gain_lora", rank=2, alpha=4, target_modules=["0"])
    assert adapted.trainable() == 2 * (5 + 6) + 5
    (adapter,) = (m for m in model.modules() if hasattr(m, "g_O"))
    with torch.no_grad():
        adapter.B_OR.normal_(), adapter.g_O.normal_()
    expected_OI = W_OI + torch.diag(adapter.g_O) @ (4 / 2 * adapter.B_OR @ adapter.A_RI)
    torch.testing.assert_close(model(torch.eye(6)), expected_OI.T)


def test_the_csv_has_both_labels_in_each_split_and_no_text_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(blocks("compare.md")[0], {"__name__": "make"})
    splits = {name: list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("train", "test")}
    assert [len(rows) for rows in splits.values()] == [800, 400]
    assert all({row["food"] for row in rows} == {"good", "bad"} for rows in splits.values())
    assert len({row["review"] for rows in splits.values() for row in rows}) == 1200
