"""The seeds that differences need, by each score."""

from pathlib import Path

import numpy as np
import pytest

from lora_zoo import runs
from lora_zoo.analysis import noise
from lora_zoo.analysis.power import seeds_needed
from tests.recorded import recorded, written


def test_a_score_of_less_noise_needs_fewer_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    items = draw.normal(size=50) ** 2
    for number, variant in enumerate(("lora", "dora", "pissa")):
        for seed in range(5):
            likely = {i: float(x + number + draw.normal() / 100) for i, x in enumerate(items)}
            test = 0.9 + number / 1000 + draw.normal() / 100
            told = {"likelihood": {"test": {"nll": float(np.mean([*likely.values()]))}}}
            scores = {i: float(draw.uniform() < 0.9) for i in likely}
            record = recorded(f"variant={variant}", f"seed={seed}", test=test, **told)
            written(tmp_path, record, {"test": scores}, {"test": likely})
    table = noise.noise(runs.load(tmp_path), ["variant"])
    assert len(table) == 6 and set(table["n"]) == {5}
    by_nll, by_test = (table[table["value"] == value].reset_index() for value in ("test_nll", "test"))
    assert by_nll["difference"].abs().round(1).isin([1.0, 2.0]).all()
    assert (by_nll["seeds"] <= 3).all() and (by_test["seeds"] > 3).all()
    assert (by_nll["p_items"] < 1e-3).all() and (by_test["p_items"] > 1e-3).all()
    for row in table.to_dict("records"):
        assert row["seeds"] == seeds_needed(row["difference"], row["sd"])
    noise.main([str(tmp_path), "--by", "variant"])
    shown = capsys.readouterr().out
    assert "| variant=dora | variant=lora | test_nll | 5 |" in shown
    assert f"test_nll: {by_nll['seeds'].median():g} seeds in the median of 3 pairs" in shown


def test_what_the_seeds_cannot_tell_is_not_told(tmp_path: Path) -> None:
    for variant, test in (("lora", 0.5), ("dora", 0.75)):
        written(tmp_path, recorded(f"variant={variant}", test=test))
    (row,) = noise.noise(runs.load(tmp_path), ["variant"], values=["test"]).to_dict("records")
    assert abs(row["difference"]) == 0.25 and row["n"] == 1
    assert all(np.isnan(row[name]) for name in ("sd", "p", "p_items", "seeds"))
