"""Parts of a decomposition are those of the whole one, and come back from the cache to the bit."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_zoo import inject
from lora_zoo.core.init import Factors, initial_factors
from lora_zoo.inits import cache, svd
from tests.processes import Running
from tests.processes import start as process

STARTS = ("pissa", "milora", "olora", "pissa_niter_4", "pissa_halko_2")
RANK = 4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache" / "svd"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, "0")


def gaussian(O: int, I: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(O, I, generator=torch.Generator().manual_seed(O), dtype=dtype)


def decaying(O: int, I: int) -> Tensor:
    """Singular values i^-½: the great ones apart, the small ones next to each other."""
    K = min(O, I)
    U_OK, V_IK = torch.linalg.qr(gaussian(O, K)).Q, torch.linalg.qr(gaussian(I, K)).Q
    return (U_OK * torch.arange(1, K + 1).float().rsqrt()) @ V_IK.T


def deficient(O: int, I: int) -> Tensor:
    return gaussian(O, 7) @ gaussian(7, I)


LARGE = {
    "square": gaussian(600, 600),
    "tall": gaussian(900, 560),
    "wide": decaying(560, 900),
    "close": decaying(640, 640),
    "deficient": deficient(600, 620),
    "zero": torch.zeros(560, 560),
    "double": gaussian(560, 600, torch.float64),
}


def start(init: str, W_OI: Tensor, rank: int = RANK, seed: int = 0) -> Factors:
    return initial_factors(init, W_OI, rank=rank, scale=0.5, seed=seed, matrix="layer")[0]


def same(one: Factors, other: Factors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def entries(home: Path) -> list[Path]:
    return sorted(home.glob("*.safetensors"))


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("end", [svd.leading, svd.trailing])
def test_an_end_of_a_large_matrix_is_that_of_the_whole_decomposition(name, end, without):
    """Against LAPACK in double precision, as far as the matrix's own precision goes: values and triplets."""
    W_OI = LARGE[name]
    assert min(W_OI.shape) > svd.SMALL
    U_OR, S_R, Vh_RI = end(W_OI, RANK)
    all_K = torch.linalg.svdvals(W_OI.double())
    wanted_R = all_K[:RANK] if end is svd.leading else all_K[-RANK:]
    close = 40 * torch.finfo(W_OI.dtype).eps * float(all_K[0])
    assert float((S_R - wanted_R).abs().max()) <= close
    assert float((Vh_RI @ W_OI.T - (U_OR * S_R).T).norm(dim=1).max()) <= close
    assert float((U_OR.T @ W_OI - S_R[:, None] * Vh_RI).norm(dim=1).max()) <= close
    for basis in (U_OR.T, Vh_RI):
        assert torch.allclose(basis @ basis.T, torch.eye(RANK, dtype=basis.dtype), atol=1e-5)


@pytest.mark.parametrize("end", [svd.leading, svd.trailing])
def test_large_matrices_are_not_decomposed_as_a_whole(end, without, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a whole decomposition")

    monkeypatch.setattr(svd, "_lapack", refuse)
    for name in ("square", "tall", "wide", "close"):
        end(LARGE[name], RANK)


def test_what_does_not_converge_is_decomposed_exactly(without, monkeypatch):
    monkeypatch.setattr(svd, "ROUNDS", 1)
    W_OI = LARGE["square"]
    U_OK, S_K, Vh_KI = torch.linalg.svd(W_OI, full_matrices=False)
    assert torch.equal(svd.leading(W_OI, 3).S_R, S_K[:3])
    assert torch.equal(svd.trailing(W_OI, 3).Vh_RI, Vh_KI[-3:])
    assert torch.equal(svd.trailing(W_OI, 3).U_OR, U_OK[:, -3:])


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (600, 560)])
def test_ranks_share_their_triplets(shape, without):
    W_OI = gaussian(*shape)
    for init, first in (("pissa", True), ("milora", False)):
        small, great = start(init, W_OI, 2), start(init, W_OI, 5)
        part = slice(0, 2) if first else slice(-2, None)
        assert torch.equal(great.A_RI[part], small.A_RI)
        assert torch.equal(great.B_OR[:, part], small.B_OR)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
@pytest.mark.parametrize("width, iterations", [(4, 0), (4, 3), (14, 2)])
def test_the_randomised_decomposition_is_torchs_own(shape, width, iterations, without):
    W_OI = gaussian(*shape, dtype=torch.float64)
    torch.manual_seed(7)
    U_OR, S_R, V_IR = torch.svd_lowrank(W_OI, q=width, niter=iterations)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    ours = svd.randomised(W_OI, width, iterations, seed=7)
    assert torch.equal(torch.get_rng_state(), before), "the global stream is not ours to read"
    torch.testing.assert_close(ours.S_R, S_R)
    torch.testing.assert_close(ours.U_OR * ours.S_R @ ours.Vh_RI, U_OR * S_R @ V_IR.T)


def test_olora_is_the_beginning_of_the_whole_qr(without):
    for shape in ((30, 20), (20, 30)):
        W_OI = gaussian(*shape, dtype=torch.float64)
        Q_OK, R_KI = torch.linalg.qr(W_OI)
        A_RI, B_OR = start("olora", W_OI)
        torch.testing.assert_close(B_OR, Q_OK[:, :RANK])
        torch.testing.assert_close(A_RI, R_KI[:RANK])


@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("shape", [(300, 280), (560, 600)])
def test_starts_are_equal_to_the_bit_with_and_without_the_cache(init, shape, home, monkeypatch):
    W_OI = gaussian(*shape)
    first, second = start(init, W_OI), start(init, W_OI)
    assert bool(entries(home)) == (init != "olora")
    monkeypatch.setenv(cache.FOLDER, "")
    assert same(start(init, W_OI), first)
    assert same(start(init, W_OI), second)


@pytest.mark.parametrize("init", ["pissa", "milora", "pissa_niter_4"])
@pytest.mark.parametrize("shape", [(300, 280), (560, 600)])
def test_the_second_start_decomposes_nothing(init, shape, home, monkeypatch):
    W_OI = gaussian(*shape)
    first = start(init, W_OI)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decomposed again")

    for name in ("_lapack", "_leading", "_trailing", "_randomised"):
        monkeypatch.setattr(svd, name, refuse)
    assert same(start(init, W_OI), first)


def test_pissa_and_milora_share_one_decomposition_of_a_small_matrix(home):
    W_OI = gaussian(60, 50)
    start("pissa", W_OI), start("milora", W_OI), start("pissa", W_OI, rank=2)
    assert len(entries(home)) == 1


def test_the_key_knows_content_shape_dtype_and_what_is_done(home, monkeypatch):
    W_OI = gaussian(6, 8)
    other = W_OI.clone()
    other[3, 3] = torch.nextafter(other[3, 3], other[3, 3] + 1)
    keys = [
        cache.key(W_OI, "exact"), cache.key(other, "exact"), cache.key(W_OI.view(8, 6), "exact"),
        cache.key(W_OI.view(torch.int32).float(), "exact"), cache.key(W_OI, "leading 32"),
        cache.key(W_OI.T.contiguous().T, "exact"),
    ]  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)  # may round differently
    keys.append(cache.key(W_OI, "exact"))
    assert len(set(keys)) == len(keys)
    monkeypatch.undo()


def test_equal_matrices_have_equal_keys_in_another_process(home):
    (home.parents[1] / "other.py").write_text(
        "import torch; from lora_zoo.inits import cache; torch.set_num_threads(1); "
        "print(cache.key(torch.arange(12.).view(3, 4), 'exact'))"
    )
    said = process(at=home.parents[1], module="other").communicate()[0]
    assert said.strip() == cache.key(torch.arange(12.0).view(3, 4), "exact")


@pytest.mark.parametrize("damage", ["empty", "text", "half", "bit", "header", "foreign"])
def test_a_damaged_entry_is_found_out_and_mended(damage, home):
    W_OI = gaussian(60, 50)
    right = start("pissa", W_OI)
    (path,) = entries(home)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not a tensor at all, and no header",
            "half": whole[:middle],
            "bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "header": whole.replace(b"S_R", b"T_R", 1),
            "foreign": whole.replace(b"[60,50]", b"[50,60]", 1),
        }[damage]
    )
    assert path.read_bytes() != whole
    assert same(start("pissa", W_OI), right)
    assert path.read_bytes() == whole


def test_what_was_not_used_for_longest_goes_first(home, monkeypatch):
    matrices = [gaussian(40 + n, 40) for n in range(4)]
    begun = time.time() - 1000
    for age, W_OI in enumerate(matrices[:3]):
        start("pissa", W_OI)
        newest = max(entries(home), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (begun + age, begun + age))
    size = max(path.stat().st_size for path in entries(home))
    start("milora", matrices[0])  # the oldest is used again
    monkeypatch.setenv(cache.LIMIT, str(3.2 * size / 1e9))
    start("pissa", matrices[3])
    held = {path.stem for path in entries(home)}
    assert held == {cache.key(matrices[n], "exact") for n in (0, 2, 3)}


def test_a_limit_that_is_no_number_is_said(home, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "much")
    with pytest.raises(ValueError, match="LORA_ZOO_CACHE_GB must be a number of gigabytes; got 'much'"):
        start("pissa", gaussian(20, 20))


def test_a_disk_that_refuses_costs_the_cache_and_not_the_start(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "file"))  # no folder can be made in a file
    W_OI = gaussian(30, 20)
    cached = start("pissa", W_OI)
    monkeypatch.setenv(cache.FOLDER, "0")
    assert same(cached, start("pissa", W_OI))


@pytest.mark.parametrize("word", ["", "0", " "])
def test_an_empty_word_switches_it_off(word, monkeypatch, tmp_path):
    monkeypatch.setenv(cache.FOLDER, word)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cache.folder() is None
    start("pissa", gaussian(30, 20))
    assert not list(tmp_path.iterdir())


def test_it_lies_where_other_libraries_keep_theirs(monkeypatch):
    monkeypatch.delenv(cache.FOLDER, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.folder() == Path("~/.cache/lora_zoo/svd").expanduser()


def crowd(home: Path, count: int) -> Iterator[Running]:
    (home.parents[1] / "crowd.py").write_text(
        "import torch; from lora_zoo.core.init import initial_factors; torch.set_num_threads(1)\n"
        "for n in range(30):\n"
        "    W = torch.randn(40, 30 + n % 5, generator=torch.Generator().manual_seed(n % 5))\n"
        "    A, B = initial_factors('pissa', W, rank=4, scale=1.0, seed=0, matrix='x')[0]\n"
        "    print(float((A * 3).sum() + B.sum()).hex())"
    )
    for _ in range(count):
        yield process(at=home.parents[1], module="crowd")


def test_processes_side_by_side_read_and_write_whole_entries(home, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "0.00004")  # three entries: they are let go of all the time
    said = {member.communicate()[0] for member in list(crowd(home, 3))}
    assert len(said) == 1
    assert len(next(iter(said)).splitlines()) == 30
    assert not list(home.glob(".*")), "a part was left"


def test_an_injection_starts_alike_with_and_without(home, monkeypatch):
    def states() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return inject(torch.nn.Sequential(torch.nn.Linear(40, 30)), "dora", init="pissa", rank=3,
                      target_modules=["0"]).state_dict()  # fmt: skip

    first, second = states(), states()
    monkeypatch.setenv(cache.FOLDER, "0")
    for name, tensor in states().items():
        assert torch.equal(tensor, first[name]) and torch.equal(tensor, second[name])
    assert entries(home)


MEASURE = """
import os, pathlib, sys, torch
from lora_zoo import inject
torch.set_num_threads(1)
torch.manual_seed(0)  # W decides whether the iteration converges, or a dense SVD is made
torch.linalg.svd(torch.randn(64, 64)); torch.linalg.qr(torch.randn(64, 8))
torch.randn(64, 1024) @ torch.randn(1024, 64)
model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(3)))
inject(torch.nn.Sequential(torch.nn.Linear(16, 16)), "milora", rank=2, target_modules=["0"])
def peak():  # of addresses, as pages may be swapped out and come back
    (line,) = (line for line in pathlib.Path("/proc/self/status").open() if line.startswith("VmPeak"))
    return int(line.split()[1]) * 1024
for variant in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    before = peak()  # of the fork alone
    injection = inject(model, variant, rank=8, target_modules=[str(n) for n in range(3)])
    own = sum(t.numel() * t.element_size() for t in injection.state_dict().values())
    print((peak() - before - own) / model[0].layer.weight.nbytes, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_start_needs_at_most_two_matrices_beside_the_model(without):
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}  # freed at once
    command = [sys.executable, "-c", MEASURE, "pissa", "milora"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=exact)
    needed = [float(line) for line in ended.stdout.split()]
    assert len(needed) == 2 and max(needed) <= 2.0 and min(needed) > 0.1, needed
