"""Views of one trained model: DyLoRA's ranks as adapters, in runs, frames, tables and exports."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from lora_zoo import runs
from lora_zoo.analysis.protocol import cells
from lora_zoo.conformance.cases import fresh, logits, perturb
from lora_zoo.export import export
from lora_zoo.formats.native import load_adapter
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.report.tables import tables
from tests.processes import run
from tests.recorded import recorded, written

WORDS = (
    "+variant=dylora", "rank=4", "alpha=8", "steps=2", "batch_size=4", "lr=1e-1", "threads=1",
    "task=pocket-nli", "task.sizes={train: 24, validation: 12, test: 4}", "target_modules=[q,v]",
    "eval_before_training=false", "resume=true", "variant.views=[1,2]", "out=r", "tracking=none",
)  # fmt: skip


def dylora(**more: Any) -> Injection:
    injection = inject(fresh("llama")[0], "dylora", rank=4, alpha=6.0, rank_pattern={"v": 2}, **more)
    perturb(injection)
    return injection


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_the_view_of_a_rank_is_the_adapter_cut_to_it_and_exported(b: int, tmp_path: Path) -> None:
    """A layer of a smaller rank keeps its own."""
    injection = dylora(views=[b])
    model, other = injection.model, fresh("llama")[0]
    state = {name: t.clone() for name, t in injection.state_dict().items()}
    with injection.hooks.views()[f"rank={b}"]:
        judged = logits(model, "llama")
        save_peft(injection, tmp_path / "x")
    assert all(torch.equal(t, state[name]) for name, t in injection.state_dict().items())

    cut = inject(other, "lora", rank=b, alpha=6.0, rank_pattern={"v": min(b, 2)}, alpha_pattern={"v": 6.0})
    with torch.no_grad():
        for name, adapter in cut.adapters.items():
            R = adapter.rank
            adapter.A_RI.copy_(state[f"{name}.A_RI"][:R])
            adapter.B_OR.copy_(state[f"{name}.B_OR"][:, :R])
    assert_close(judged, logits(other, "llama"), rtol=1e-5, atol=1e-6)
    cut.remove()
    exported = load_adapter(other, tmp_path / "x")
    assert {a.rank for a in exported.adapters.values()} == {b, min(b, 2)}
    assert_close(judged, logits(other, "llama"), rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(model, "llama"), judged) == (b == 4)


def test_by_default_the_views_are_the_doublings_below_the_rank() -> None:
    assert [*dylora().hooks.views()] == ["rank=1", "rank=2"]
    assert not dylora(views=False).hooks.views()
    assert [*dylora(views=[3, 1]).hooks.views()] == ["rank=3", "rank=1"]
    with pytest.raises(ValueError, match="views must be ranks from 1 to 4; got 5"):
        dylora(views=[2, 5]).hooks.on_train_begin(10)


def result(at: Path) -> tuple[Path, dict[str, Any]]:
    (file,) = (at / "r").glob("*/result.json")
    return file, json.loads(file.read_text())


def test_a_run_judges_each_view_once_whatever_stops_it(tmp_path: Path) -> None:
    first = run(*WORDS, at=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    file, done = result(tmp_path)
    views, metric = done["views"], done["metric"]
    assert [*views] == ["rank=1", "rank=2"] and done["timings"]["views"] > 0
    assert all(views[v].keys() == done["metrics"].keys() for v in views)
    assert "rank=2 (test)" in first.stdout

    # As if it had been killed after the first view: that one is kept, the other judged again.
    views["rank=1"]["test"][metric] = 0.123
    left = {"rank=1": views["rank=1"]}
    file.write_text(json.dumps(done | {"state": "running", "views": left}))
    again = run(*WORDS, at=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    _, more = result(tmp_path)
    assert more["views"] == views and more["adapter"] == done["adapter"]
    assert list(runs.by_view(runs.load(tmp_path / "r"))["view"]) == ["whole", "rank=1", "rank=2"]

    with pytest.raises(ValueError, match="unknown view of dylora 'rank=4'"):
        export(file.parent, tmp_path / "x", view="rank=4")
    found = export(file.parent, tmp_path / "x", view="rank=2")
    assert found.difference < 1e-5 and found.written.config["r"] == 2


def test_views_are_told_before_a_run_and_a_wrong_one_refused(tmp_path: Path) -> None:
    told = run(*WORDS, "dry_run=true", "eval_splits=[test]", at=tmp_path)
    assert "views: rank=1, rank=2, each evaluated on test after training" in told.stdout
    refused = run(*WORDS, "variant.views=[5]", "dry_run=true", at=tmp_path)
    assert refused.returncode == 2 and "views must be ranks from 1 to 4; got 5" in refused.stdout


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    for seed in range(3):
        one = recorded("+variant=dylora", "rank=4", f"seed={seed}", test=0.5 + seed / 10)
        metric = one["metric"]
        judged = {f"rank={b}": {"test": {metric: b / 10 + seed / 50}} for b in (1, 2)}
        written(tmp_path, one | {"views": judged})
    return runs.load(tmp_path)


def test_a_frame_has_a_row_for_each_view_on_request(frame: pd.DataFrame) -> None:
    views = runs.by_view(frame)
    assert len(views) == 9 and views["run"].is_unique and runs.axes(views) == ["view"]
    at_two = views[views["view"] == "rank=2"]
    assert sorted(at_two["test"]) == pytest.approx([0.2, 0.22, 0.24]) and at_two["validation"].isna().all()
    assert (at_two["trainable"] == 1000).all() and at_two["folder"].isna().all()
    metric = frame["metric"].iloc[0]
    assert list(at_two[f"metrics.test.{metric}"]) == list(at_two["test"])
    whole = views[views["view"] == "whole"].drop(columns="view").reset_index(drop=True)
    assert list(whole["test"]) == list(frame["test"]) and list(whole["run"]) == list(frame["run"])
    found = cells(views, by=["view"])
    assert {cell.key["view"]: cell.n for cell in found.cells} == {"whole": 3, "rank=1": 3, "rank=2": 3}
    with pytest.raises(ValueError, match=r"differ in view \(rank=1, rank=2, whole\)"):
        cells(views, by=["variant"])


def test_a_report_has_a_table_of_views(frame: pd.DataFrame) -> None:
    main, views = tables(frame)
    assert (main.name, views.name) == ("runs", "runs_views") and "9 views of 3 runs" in views.title
    assert [row.header[0] for row in views.rows] == ["whole", "rank=2", "rank=1"]
