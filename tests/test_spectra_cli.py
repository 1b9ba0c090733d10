"""`python -m lora_zoo.spectra`, called as people call it."""

import json
import re
from pathlib import Path

import pandas as pd
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import lora_zoo
from lora_zoo import runs
from lora_zoo.pocket import HUB
from lora_zoo.runs.record import RESULT
from lora_zoo.spectra import main as spectra
from tests.processes import run as command
from tests.recorded import recorded

ABOUT = {"model": {"name": "pocket", "path": "pocket"}}


def adapter(folder: Path, variant: str = "lora", seed: int = 0, **hyper: object) -> Path:
    """A perturbed adapter of the pocket's q and v in `folder`."""
    injection = lora_zoo.inject(AutoModelForCausalLM.from_pretrained(HUB), variant, seed=seed, **hyper)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return lora_zoo.save_adapter(injection, folder, **ABOUT)


def run(root: Path, *overrides: str) -> Path:
    """The folder of a recorded run with an adapter."""
    record = recorded(*overrides)
    folder = root / f"{record['name']}-{record['identity']}"
    folder.mkdir(parents=True)
    (folder / RESULT).write_text(json.dumps(record))
    adapter(folder / "adapter", seed=record["seed"], rank=record["config"]["rank"])
    return folder


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, list[list[str]]]:
    """The tables on the screen: title -> cells."""
    capsys.readouterr()
    spectra([str(a) for a in arguments])
    tables: dict[str, list[list[str]]] = {}
    for line in capsys.readouterr().out.splitlines():
        if title := re.fullmatch(r"\*\*(.+)\*\*", line):
            tables[title[1]] = []
        elif line.startswith("|") and not line.startswith("|-"):
            tables[list(tables)[-1]].append([cell.strip() for cell in line.strip("|").split("|")])
    return tables


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        spectra([str(a) for a in arguments])
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out and said.err.count("\n") == 1
    return said.err


def test_one_adapter_is_a_table_of_its_matrices(tmp_path, capsys):
    (title, (head, *rows)), *more = shown(capsys, adapter(tmp_path / "mine", rank=4)).items()
    assert title == "spectra: mine" and not more
    assert head[:4] == ["name", "role", "layer", "norm"] and len(rows) == 8
    assert {row[head.index("numerical_rank")] for row in rows} == {"4"}
    assert rows[0][:3] == ["model.layers.0.self_attn.q_proj", "q", "0"]


def test_of_several_the_first_is_compared_with_each(tmp_path, capsys):
    for number in range(3):
        adapter(tmp_path / f"a{number}", seed=number % 2, rank=4)
    out = tmp_path / "out"
    tables = shown(capsys, *sorted(tmp_path.iterdir()), "--factor", "A", "--first", 2, "--out", out)
    assert [title for title in tables if "comparison" in title] == [
        "comparison: a0 / a1",
        "comparison: a0 / a2",
    ]
    written = pd.read_csv(out / "comparison.csv").set_index("adapter")
    assert written.loc["a0 / a2", ["phi", "cosine"]].to_numpy() == pytest.approx(1), "the same adapter twice"
    assert (written.loc["a0 / a1", "phi"] < 0.5).all()
    assert (written["random"] == 2 / 128).all() and (written["of"] == "A").all()
    assert len(pd.read_csv(out / "spectra.csv")) == 24


def test_figures_are_files_and_a_figure_that_cannot_be_drawn_costs_nothing(tmp_path, capsys):
    for number in range(2):
        adapter(tmp_path / f"a{number}", seed=number, rank=4)
    out = tmp_path / "out"
    spectra(
        [f"{tmp_path}/a0", f"{tmp_path}/a1", "--what", "spectra,amplification,overlap", "--out", str(out)]
    )
    assert {path.name for path in out.iterdir()} == {
        f"{name}.{ending}"
        for name in ("spectra", "amplification", "overlap", "comparison")
        for ending in ("csv", "svg", "pdf", "png")
    }
    assert "a0 and a1" in (out / "comparison.svg").read_text()
    lora_zoo.save_adapter(
        lora_zoo.inject(AutoModelForCausalLM.from_pretrained(HUB), "lora", rank=2), tmp_path / "zero"
    )
    capsys.readouterr()
    spectra([f"{tmp_path}/zero", f"{tmp_path}/a0", "--out", str(tmp_path / "none")])
    said = capsys.readouterr()
    assert "figures: spectra\n" in said.err and "no figure comparison" in said.err
    assert len(pd.read_csv(tmp_path / "none" / "comparison.csv")) == 8


def test_many_matrices_are_shown_by_role(tmp_path, capsys):
    folders = [adapter(tmp_path / "wide", rank=2, target_modules="all-linear")]
    (title, (head, *rows)), *_ = shown(capsys, *folders).items()
    assert len(rows) == 28 and "medians" not in title
    model = torch.nn.ModuleDict({f"q{i}": torch.nn.Linear(4, 4) for i in range(60)})
    injection = lora_zoo.inject(model, "lora", rank=2, target_modules=list(model))
    lora_zoo.save_adapter(injection, tmp_path / "many")
    (title, (head, *rows)), *_ = shown(capsys, tmp_path / "many").items()
    assert "(medians by role of 60 matrices)" in title and rows[0][head.index("matrices")] == "60"
    assert len(next(iter(shown(capsys, tmp_path / "many", "--all").values()))) == 61


def test_an_adapter_of_peft_s_needs_no_base(tmp_path, capsys):
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(HUB), peft.LoraConfig(r=3, target_modules=["q_proj"])
    )
    model.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "no/where"}))
    assert len(next(iter(shown(capsys, tmp_path).values()))) == 5
    said = refusal(capsys, tmp_path, "--what", "amplification")
    assert "no/where" in said and "weights" in said
    assert len(next(iter(shown(capsys, tmp_path, "--what", "amplification", "--model", HUB).values()))) == 5


def test_recorded_tables_are_found_by_results_and_archives(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    for seed in (0, 1):
        run(sweep, "rank=4", f"seed={seed}")
    shown(capsys, sweep, "--what", "amplification,touched", "--record")
    frame = runs.load(sweep)
    runs.archive(frame, tmp_path / "kept.jsonl.gz")
    for found in (frame, runs.load(tmp_path / "kept.jsonl.gz")):
        table = runs.deltas(found, "amplification")
        assert len(table) == 16 and set(table["run"]) == set(frame["run"])
        assert (table["own"] < table["base"]).all() and (table["directions"] == 4).all()
        assert len(runs.deltas(found, "touched").loc[0, "profile"]) > 64
        with pytest.raises(ValueError, match="recorded: amplification, overlap"):
            runs.deltas(found, "intruders")
    before = (frame.loc[0, "folder"], "deltas.json")
    shown(capsys, before[0], "--record")
    assert len(runs.deltas(runs.load(sweep), "spectra")) == 8, "beside the others"


def test_mistakes_are_one_line(tmp_path, capsys):
    own = adapter(tmp_path / "own", rank=2)
    assert "does not exist" in refusal(capsys, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no adapter" in refusal(capsys, tmp_path / "empty")
    assert "Did you mean 'intruders'" in refusal(capsys, own, "--what", "intruder")
    assert "--first counts directions; got 0" in refusal(capsys, own, "--first", 0)
    assert "no checkpoints" in refusal(capsys, own, "--what", "evolution")
    assert "archive of records" in refusal(capsys, _touched(tmp_path / "r.jsonl.gz"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        spectra([str(own), "--record"])
    assert "no run's folder" in capsys.readouterr().err


def _touched(path: Path) -> Path:
    path.touch()
    return path


def test_the_command_runs_as_a_module(tmp_path):
    said = command("--help", at=tmp_path, module="lora_zoo.spectra")
    assert said.returncode == 0
    assert "RUN_OR_ADAPTER" in said.stdout and "torch" not in said.stderr
