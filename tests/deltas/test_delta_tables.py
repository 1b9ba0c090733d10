"""Tables of ΔW: a row a matrix, each number from dense matrices and definitions; the course of a real run."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy
import pandas as pd
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_zoo import updates as deltas
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.pocket import HUB
from lora_zoo.updates.reading import AdapterUpdates, FactoredUpdates
from tests.processes import run as wrapper

O, I, RANK = 24, 18, 3
Q, K, UP, ALL = "layers.0.q_proj", "layers.0.k_proj", "layers.1.up_proj", "embed_tokens"


class Net(nn.Module):
    """Matrices with a role and a layer, and an embedding outside of the layers; no forward pass is needed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(I, O)
        self.layers = nn.ModuleList([nn.Module(), nn.Module()])
        self.layers[0].q_proj = nn.Linear(I, O)
        self.layers[0].k_proj = nn.Linear(I, O)
        self.layers[1].up_proj = nn.Linear(O, 2 * O)


def adapted(
    variant: str = "lora",
    seed: int = 1,
    targets: tuple[str, ...] = (Q, UP, ALL),
    rank: int = RANK,
    size: float = 0.3,
) -> Injection:
    hyper = {} if variant == "full" else {"rank": rank}
    injection = inject(Net(), variant, target_modules=list(targets), seed=seed, **hyper)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=source))
    return injection


def read(
    variant: str = "lora", seed: int = 1, **more: object
) -> tuple[AdapterUpdates, dict[str, tuple[Tensor, Tensor]]]:
    """The ΔW as they are read with their base, and W, ΔW (O, I) of each in float64."""
    injection = adapted(variant, seed, **more)
    return AdapterUpdates(variant, injection), {
        u.name: (u.W_OI.double(), u.dW_OI.double()) for u in injection
    }


def rows_of(table: pd.DataFrame) -> dict[str, dict[str, object]]:
    assert list(table["name"]) and table["name"].is_unique
    return {row["name"]: row for row in table.to_dict("records")}


TABLES: Mapping[str, Callable[[AdapterUpdates], pd.DataFrame]] = {
    "spectra": deltas.spectra,
    "changes": deltas.changes,
    "amplification": deltas.amplification,
    "touched": deltas.overlap,
    "intruders": deltas.intruders,
    "comparison": lambda one: deltas.comparison(one, one),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_row_is_a_matrix_with_its_place(table: str) -> None:
    found = TABLES[table](read()[0])
    assert set(found["name"]) == {ALL, Q, UP} and len(found) == 3
    places = {row["name"]: (row["role"], row["layer"]) for row in found.to_dict("records")}
    assert places[Q] == ("q", 0) and places[UP] == ("up", 1) and places[ALL][0] == "embed"
    assert found["layer"].dtype == "Int64" and pd.isna(places[ALL][1])
    assert list(found.columns[:3]) == ["name", "role", "layer"]


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa", "full"])
def test_spectra_are_those_of_the_dense_matrices(variant: str) -> None:
    found, dense = read(variant)
    rows = rows_of(deltas.spectra(found))
    assert rows.keys() == dense.keys()
    for name, (_, dW_OI) in dense.items():
        row, sigma = rows[name], numpy.linalg.svd(dW_OI.numpy(), compute_uv=False)
        energy, p = numpy.cumsum(sigma**2) / numpy.sum(sigma**2), sigma[sigma > 1e-6 * sigma[0]]
        p = p / p.sum()
        assert row["shape"] == tuple(dW_OI.shape)
        expected = {
            "norm": numpy.linalg.norm(dW_OI.numpy()),
            "stable_rank": numpy.sum(sigma**2) / sigma[0] ** 2,
            "participation_ratio": numpy.sum(sigma**2) ** 2 / numpy.sum(sigma**4),
            "effective_rank": numpy.exp(-numpy.sum(p * numpy.log(p))),
            "energy_1": energy[0],
            "energy_8": energy[min(7, len(energy) - 1)],
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-3)
        assert row["rank_90"] == int(numpy.searchsorted(energy, 0.9)) + 1
        values = row["singular_values"]
        numpy.testing.assert_allclose(values, sigma[: len(values)], atol=1e-5)
        if variant in ("lora", "pissa"):
            assert row["numerical_rank"] == {"lora": RANK, "pissa": 2 * RANK}[variant] <= len(values)


def test_the_part_of_the_first_eight_is_theirs() -> None:
    found, dense = read("full")
    row, sigma = rows_of(deltas.spectra(found))[Q], numpy.linalg.svd(dense[Q][1], compute_uv=False)
    assert row["energy_8"] == pytest.approx(numpy.sum(sigma[:8] ** 2) / numpy.sum(sigma**2))
    assert row["energy_1"] == pytest.approx(sigma[0] ** 2 / numpy.sum(sigma**2))


def changes_of_rows(W: numpy.ndarray, dW: numpy.ndarray) -> dict[str, float]:
    """DoRA's ΔM and ΔD; a row of zeros has no direction."""
    before, after = (numpy.linalg.norm(m, axis=1) for m in (W, W + dW))
    there = before * after > 0
    cosines = ((W + dW) * W).sum(axis=1)[there] / before[there] / after[there]
    return {
        "magnitude_change": numpy.abs(after - before).mean(),
        "direction_change": (1 - cosines).mean(),
    }


@pytest.mark.parametrize("variant", ["lora", "dora", "full"])
def test_changes_are_of_norms_and_rows(variant: str) -> None:
    found, dense = read(variant)
    for name, row in rows_of(deltas.changes(found)).items():
        W, dW = (tensor.numpy() for tensor in dense[name])
        expected = changes_of_rows(W, dW) | {
            "norm": numpy.linalg.norm(dW),
            "relative_norm": numpy.linalg.norm(dW) / numpy.linalg.norm(W),
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_what_is_relative_to_nothing_is_no_number() -> None:
    model = Net()
    nn.init.zeros_(model.layers[0].q_proj.weight)
    injection = inject(model, "lora", target_modules=[Q], rank=2)
    with torch.no_grad():
        injection.parameters()[1].add_(1)
    (row,) = deltas.changes(AdapterUpdates("zero", injection)).to_dict("records")
    assert math.isnan(row["relative_norm"]) and row["norm"] > 0 and row["direction_change"] == 0


@pytest.mark.parametrize("asked, taken", [(None, RANK), (2, 2), (50, RANK)])
def test_amplification_is_lora_s_table(asked: int | None, taken: int) -> None:
    found, dense = read()
    for name, row in rows_of(deltas.amplification(found, asked)).items():
        W, dW = (tensor.numpy() for tensor in dense[name])
        U, _, Vh = numpy.linalg.svd(dW)
        own = numpy.linalg.norm(U[:, :taken].T @ W @ Vh[:taken].T)
        base = numpy.linalg.norm(numpy.linalg.svd(W, compute_uv=False)[:taken])
        expected = {
            "directions": taken,
            "own": own,
            "base": base,
            "random": numpy.linalg.norm(W) * taken / math.sqrt(W.size),
            "factor": numpy.linalg.norm(dW) / own,
            "norm": numpy.linalg.norm(dW),
            "base_norm": numpy.linalg.norm(W),
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_where_the_adapter_has_no_rank_eight_directions_are_looked_at() -> None:
    assert set(deltas.amplification(read("full")[0])["directions"]) == {8}
    # a residual start's ΔW has twice the adapter's rank
    assert set(deltas.amplification(read("pissa")[0])["directions"]) == {RANK}


@pytest.mark.parametrize("side", ["right", "left"])
def test_touched_tenths_are_those_of_w_s_vectors(side: str) -> None:
    found, dense = read()
    for name, row in rows_of(deltas.overlap(found, side)).items():
        W, dW = (tensor.numpy() for tensor in dense[name])
        U, _, Vh = numpy.linalg.svd(W, full_matrices=False)
        along = ((dW @ Vh.T) ** 2).sum(axis=0) if side == "right" else ((U.T @ dW) ** 2).sum(axis=1)
        along = along / (dW**2).sum()
        tenth = {18: 2, 24: 2}[min(W.shape)]
        numpy.testing.assert_allclose(row["profile"], along, atol=1e-4)
        assert (row["top"], row["bottom"]) == pytest.approx(
            (along[:tenth].sum(), along[-tenth:].sum()), abs=1e-4
        )
        assert row["expected"] == tenth / W.shape[1 if side == "right" else 0]
    assert deltas.overlap(found).equals(deltas.overlap(found, "right"))


def test_a_tenth_of_few_is_one() -> None:
    injection = inject(nn.Sequential(nn.Linear(1, 4)), "full", target_modules=["0"])
    (row,) = deltas.overlap(AdapterUpdates("small", injection)).to_dict("records")
    assert (row["expected"], row["top"], row["profile"]) == (1.0, 0.0, [0.0])


def test_intruders_are_counted_below_epsilon_where_this_says_something() -> None:
    found, dense = read(size=1.5)
    rows = rows_of(deltas.intruders(found, first=6, epsilon=0.7))
    for name, row in rows.items():
        W, dW = (tensor.numpy() for tensor in dense[name])
        theirs, tuned = (numpy.linalg.svd(m, full_matrices=False)[0] for m in (W, W + dW))
        cosines = numpy.abs(tuned[:, :6].T @ theirs).max(axis=1)
        numpy.testing.assert_allclose(row["cosines"], cosines, atol=1e-4)
        assert row["of"] == 6 and row["intruders"] == int((cosines < 0.7).sum())
        assert row["floor"] == pytest.approx(math.sqrt(2 * math.log(len(W)) / len(W)))
    assert sum(row["intruders"] for row in rows.values()) > 0
    unsaid = deltas.intruders(found)
    assert set(unsaid["of"]) == {10} and unsaid.equals(deltas.intruders(found, 10, 0.5))
    below = rows_of(unsaid)
    assert below[Q]["floor"] > 0.5 > below[UP]["floor"]  # 24 and 48 outputs
    assert pd.isna(below[Q]["intruders"]) and not pd.isna(below[UP]["intruders"])


@pytest.mark.parametrize("table", ["changes", "amplification", "touched", "intruders"])
def test_without_w_a_table_that_needs_it_says_so(table: str) -> None:
    thin = FactoredUpdates("mine", adapted())
    with pytest.raises(deltas.NeedsBase, match="mine was read from its factors alone"):
        TABLES[table](thin)
    assert len(deltas.spectra(thin)) == len(deltas.comparison(thin, thin)) == 3


def test_zero_everywhere_has_rows_and_no_directions() -> None:
    found, _ = read(size=0.0)
    assert not deltas.spectra(found)[["norm", "stable_rank", "effective_rank", "rank_90", "energy_8"]].any(
        axis=None
    )
    assert not deltas.changes(found)[["norm", "magnitude_change", "direction_change"]].any(axis=None)
    assert deltas.amplification(found)["factor"].isna().all()
    assert not deltas.overlap(found)[["top", "bottom"]].any(axis=None)
    assert not deltas.intruders(found, epsilon=0.9)["intruders"].any()
    pairs = deltas.comparison(found, found)
    assert not pairs["cosine"].any() and pairs[["phi", "phi_1"]].isna().all(axis=None)
    assert not pairs[["i", "j"]].any(axis=None)


def test_a_matrix_of_no_numbers_has_a_row_of_none() -> None:
    injection = adapted()
    with torch.no_grad():
        injection.named_parameters()[f"{Q}.B_OR"][0, 0] = math.nan
    found = AdapterUpdates("bad", injection)
    rows = rows_of(deltas.spectra(found))
    for key in ("norm", "stable_rank", "effective_rank", "numerical_rank", "rank_90", "energy_1"):
        assert math.isnan(rows[Q][key]) and rows[UP][key] > 0
    for table in (deltas.amplification, deltas.overlap, deltas.intruders, TABLES["comparison"]):
        with pytest.raises(ValueError, match=f"ΔW of {Q} holds NaN or inf"):
            table(found)


# --- two adapters -----------------------------------------------------------------------------------------


def space(of: str, injection: Injection, name: str, first: int) -> numpy.ndarray:
    """Columns, by scipy, of the first directions of an adapter's matrix."""
    if of in ("A", "B"):
        adapter = injection.adapters[name]
        rows = adapter.A_RI.detach().double() if of == "A" else adapter.B_OR.detach().double().T
    else:
        dW_OI = injection.update(name).dW_OI.double()
        rows = dW_OI if of == "right" else dW_OI.T
    return scipy.linalg.svd(rows.numpy(), full_matrices=False)[2][:first].T


@pytest.mark.parametrize("of", ["right", "left", "A", "B"])
@pytest.mark.parametrize("first", [8, 2, 1])
def test_a_comparison_is_of_angles_and_vectors(of: str, first: int) -> None:
    one, other = adapted(seed=1, rank=2), adapted(seed=2, rank=4)
    table = deltas.comparison(
        AdapterUpdates("one", one), AdapterUpdates("other", other), factor=of, first=first
    )
    for name, row in rows_of(table).items():
        i, j = min(first, 2), min(first, 4)
        a, b = space(of, one, name, i), space(of, other, name, j)
        cosines = numpy.cos(scipy.linalg.subspace_angles(a, b))
        x, y = (injection.update(name).dW_OI.double().numpy().ravel() for injection in (one, other))
        expected = {
            "cosine": x @ y / numpy.linalg.norm(x) / numpy.linalg.norm(y),
            "phi_1": float(a[:, 0] @ b[:, 0]) ** 2,
            "i": i,
            "j": j,
            "phi": (cosines**2).sum() / min(i, j),
            "random": max(i, j) / len(a),
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-4)


def test_compared_are_the_matrices_that_both_change() -> None:
    one, other = read(targets=(Q, UP))[0], read(targets=(K, UP))[0]
    assert list(deltas.comparison(one, other)["name"]) == [UP]
    unsaid = deltas.comparison(one, other)
    assert unsaid.equals(deltas.comparison(one, other, factor="right", first=8))
    with pytest.raises(ValueError, match=f"lora and dora have no matrix in common: {Q}, {K}"):
        deltas.comparison(read(targets=(Q,))[0], read("dora", targets=(K,))[0])
    with pytest.raises(ValueError, match="is no product of factors"):
        deltas.comparison(one, read("dora")[0], factor="A")


def test_the_grid_is_lora_s_figure() -> None:
    one, other = adapted(seed=1, rank=3), adapted(seed=2, rank=5)
    grid = deltas.grid(AdapterUpdates("one", one)[Q], AdapterUpdates("other", other)[Q])
    assert grid.shape == (3, 5) and list(grid.index) == [1, 2, 3] and list(grid.columns) == [1, 2, 3, 4, 5]
    assert (grid.index.name, grid.columns.name) == ("i", "j")
    for i in grid.index:
        for j in grid.columns:
            angles = scipy.linalg.subspace_angles(space("A", one, Q, i), space("A", other, Q, j))
            assert grid.loc[i, j] == pytest.approx(numpy.mean(numpy.cos(angles) ** 2), abs=1e-6)
    less = deltas.grid(AdapterUpdates("one", one)[Q], AdapterUpdates("other", other)[Q], first=(2, 4))
    pd.testing.assert_frame_equal(less, grid.iloc[:2, :4])
    right = deltas.grid(AdapterUpdates("one", one)[Q], AdapterUpdates("other", other)[Q], factor="right")
    assert right.loc[1, 1] == pytest.approx(
        float(space("right", one, Q, 1)[:, 0] @ space("right", other, Q, 1)[:, 0]) ** 2, abs=1e-6
    )
    same = deltas.grid(AdapterUpdates("one", one)[Q], AdapterUpdates("one", one)[Q])
    assert same.iloc[2, 2] == pytest.approx(1) and same.iloc[0, 2] == pytest.approx(1)


def test_a_random_grid_is_of_random_spaces_by_its_seed() -> None:
    grid = deltas.random_grid(200, (4, 9), seed=3)
    assert grid.shape == (4, 9) and grid.equals(deltas.random_grid(200, (4, 9), seed=3))
    assert not grid.equals(deltas.random_grid(200, (4, 9), seed=4))
    assert (grid.index.name, grid.columns.name, grid.index[0], grid.columns[-1]) == ("i", "j", 1, 9)
    assert deltas.random_grid(100).shape == (8, 64)
    mean = sum(deltas.random_grid(40, (3, 6), seed=seed) for seed in range(300)) / 300
    expected = numpy.maximum.outer(numpy.arange(1, 4), numpy.arange(1, 7)) / 40
    numpy.testing.assert_allclose(mean, expected, rtol=0.25)
    numpy.testing.assert_allclose(mean.iloc[2, 5], expected[2, 5], rtol=0.06)


def test_of_a_wide_random_matrix_the_first_directions_are_taken() -> None:
    full = deltas.random_grid(30, (30, 30), seed=1)
    assert full.iloc[-1, -1] == pytest.approx(1), "all directions are the whole space"
    part = deltas.random_grid(30, (4, 5), ranks=(30, 30), seed=1)
    pd.testing.assert_frame_equal(part, full.iloc[:4, :5])


# --- a run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that kept its checkpoints after the second and the fourth."""
    at = tmp_path_factory.mktemp("run")
    quick = ("task.sizes={train: 32, validation: 4, test: 4}", "threads=1", "tracking=none")
    quick += ("batch_size=4", "task.max_new_tokens=2", "eval_splits=[test]", "eval_before_training=false")
    quick += ("forgetting_text=null",)
    ended = wrapper("+variant=lora", "rank=2", "alpha=5", "steps=4", "trainer.save_steps=2", *quick, at=at)
    assert ended.returncode == 0, ended.stderr
    (folder,) = (at / "runs").iterdir()
    return folder


def by_hand(adapter: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """W and ΔW of each matrix from the files alone: α / r B A = 2.5 B A."""
    saved, base = load_file(adapter / "adapter.safetensors"), load_file(HUB / "model.safetensors")
    names = [name.removesuffix(".B_OR") for name in saved if name.endswith(".B_OR")]
    return {
        name: (
            base[f"{name}.weight"].double(),
            2.5 * saved[f"{name}.B_OR"].double() @ saved[f"{name}.A_RI"].double(),
        )
        for name in names
    }


def test_the_course_of_a_run_is_in_its_checkpoints(run: Path) -> None:
    table = deltas.evolution(run)
    assert list(table.columns[:4]) == ["step", "name", "role", "layer"]
    assert table["step"].unique().tolist() == [2, 4]
    for step, rows in table.groupby("step"):
        dense = by_hand(run / "checkpoints" / f"checkpoint-{step}")
        assert set(rows["name"]) == set(dense) and len(rows) == len(dense)
        for row in rows.to_dict("records"):
            W, dW = (tensor.numpy() for tensor in dense[row["name"]])
            sigma = numpy.linalg.svd(dW, compute_uv=False)
            expected = changes_of_rows(W, dW) | {
                "norm": numpy.linalg.norm(dW),
                "relative_norm": numpy.linalg.norm(dW) / numpy.linalg.norm(W),
                "stable_rank": numpy.sum(sigma**2) / sigma[0] ** 2,
            }
            assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-3)
            assert row["numerical_rank"] == 2 and 1 <= row["effective_rank"] <= 2


def test_the_last_checkpoint_is_the_run_s_adapter_and_its_record(run: Path) -> None:
    found, record = deltas.read(run), json.loads((run / "result.json").read_text())
    assert found.label == record["name"] and found.rank == 2
    last = deltas.evolution(run).query("step == 4").set_index("name")
    updates = {row["name"]: row for row in record["updates"]}
    assert set(updates) == set(found) == set(last.index)
    for name, (_, dW_OI) in by_hand(run / "adapter").items():
        torch.testing.assert_close(found[name].dense(), dW_OI, rtol=0, atol=1e-6)
        for key in ("norm", "relative_norm", "magnitude_change", "direction_change", "effective_rank"):
            assert last.loc[name, key] == pytest.approx(updates[name][key], rel=1e-4)


def test_a_run_without_checkpoints_says_how_to_keep_them(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no checkpoints; a run keeps them with trainer\.save_steps=N"):
        deltas.evolution(tmp_path)
    with pytest.raises(ValueError, match="nobody/nothing"):
        deltas.evolution(run, model="nobody/nothing")
