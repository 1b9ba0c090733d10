"""Adapters with directions that we know, as files, and tables of ΔW with numbers that we know."""

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

OUT, IN = 64, 128
NAMES = {"q": "model.layers.0.self_attn.q_proj", "v": "model.layers.0.self_attn.v_proj"}
_FOLDER = tempfile.TemporaryDirectory(prefix="lora-zoo-planted-")  # gone when the interpreter ends


def orthogonal(size: int, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=source, dtype=torch.float64)).Q


def rows(rank: int, seed: int, top: float, rest: float) -> torch.Tensor:
    """`rank` orthonormal directions, nested in rank: at one seed those of rank 8 are the first of rank 64.

    Two seeds with parts a and b share a·b of their first direction (`top`) and of each of the next seven
    (`rest`); what is private lies in other dimensions for each seed.
    """
    axes = orthogonal(IN, 0).T
    common, private, free = axes[:8], axes[8 + 8 * seed : 16 + 8 * seed], axes[48:]
    part = torch.tensor([top] + 7 * [rest], dtype=torch.float64).clamp(0, 1)[:, None]
    first = part.sqrt() * common + (1 - part).sqrt() * private
    return torch.cat([first, orthogonal(len(free), 1 + seed) @ free])[:rank]


def adapter(rank: int, seed: int, parts: Mapping[str, tuple[float, float]], of: str = "A") -> str:
    """An adapter's folder; `parts`: role -> (top, rest). `of`: whose first direction is that of `rows`, with
    the other's, A's or ΔW's ("right"), in the reverse order."""
    down = torch.linspace(2, 1, rank, dtype=torch.float64)
    of_A, of_B = (down, down**-2) if of == "A" else (1 / down, down**2)
    tensors = {}
    for role, (top, rest) in parts.items():
        tensors[f"{NAMES[role]}.A_RI"] = of_A[:, None] * rows(rank, seed, top, rest)
        tensors[f"{NAMES[role]}.B_OR"] = orthogonal(OUT, 99)[:, :rank] * of_B
    return written(rank, seed, tensors)


def written(rank: int, seed: int, tensors: Mapping[str, torch.Tensor]) -> str:
    folder = Path(tempfile.mkdtemp(dir=_FOLDER.name))
    save_file({name: t.float().contiguous() for name, t in tensors.items()}, folder / "adapter.safetensors")
    hyper = {"rank": rank, "alpha": float(rank), "init": "kaiming", "lora_dropout": 0.0}
    targets = sorted({name.rpartition(".")[0] for name in tensors})
    said = {"format": 1, "variant": "lora", "name": "default", "hyperparameters": hyper, "patterns": {}}
    said |= {"target_modules": targets, "in_full": [], "seed": seed, "about": {}}
    (folder / "adapter.json").write_text(json.dumps(said))
    return str(folder)


def table(name: str, matrices: list[dict[str, Any]]) -> dict[str, Any]:
    """The column `record` of a run that recorded one table of ΔW."""
    return {"record": {"deltas": {name: matrices}}}


def uneven(role: str, **columns: float) -> list[dict[str, Any]]:
    """Two matrices of a role, one with more of everything and one with less, so that the mean is as given."""
    return [
        {"name": f"{role}{i}", "role": role, "layer": i} | {key: w * value for key, value in columns.items()}
        for i, w in enumerate((1.25, 0.75))
    ]


def nothing(role: str, *columns: str) -> list[dict[str, Any]]:
    """A matrix whose quantities could not be told."""
    return [{"name": f"{role}9", "role": role, "layer": 9} | dict.fromkeys(columns, math.nan)]
