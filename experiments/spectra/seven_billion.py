"""How long the spectra of an adapter of a 7B model take, from its factors and from the whole matrices.

An adapter in PEFT's format with random factors on the seven projections of 32 layers (224 matrices of
4096 x 4096 and 4096 x 11008, rank 64) is written to a temporary folder. `python -m lora_zoo.spectra` reads it
as a command of its own; one ΔW of each shape is then formed and decomposed whole, and that time multiplied.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from lora_zoo import updates

SHAPES = {
    **{f"self_attn.{role}_proj": (4096, 4096) for role in "qkvo"},
    **{f"mlp.{role}_proj": (11008, 4096) for role in ("gate", "up")},
    "mlp.down_proj": (4096, 11008),
}


def write(folder: Path, layers: int, rank: int) -> None:
    """PEFT's files, with factors whose singular values differ by more than a chance."""
    source, tensors = torch.Generator().manual_seed(0), {}
    fade = torch.logspace(0, -2, rank)
    for layer in range(layers):
        for name, (O, I) in SHAPES.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, I, generator=source) * fade[:, None]
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(O, rank, generator=source)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[2] for name in SHAPES})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    config |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": "a/7b-that-is-nowhere"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="of the whole SVD")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.layers, given.rank)
        began = time.perf_counter()
        command = [sys.executable, "-m", "lora_zoo.spectra", folder, "--out", f"{folder}/out"]
        subprocess.run(command, check=True, capture_output=True)
        thin = time.perf_counter() - began
        print(
            f"from the factors, {given.layers * len(SHAPES)} matrices, the command as a whole: {thin:.1f} s"
        )
        found, whole, worst = updates.read(folder), 0.0, 0.0
        for name, shape in SHAPES.items():
            if name not in ("self_attn.q_proj", "mlp.gate_proj"):
                continue
            delta = found[f"model.layers.0.{name}"]
            dW_OI = delta.dense().to(getattr(torch, given.dtype))
            began = time.perf_counter()
            sigma = torch.linalg.svdvals(dW_OI).double()[: given.rank]
            took = time.perf_counter() - began
            count = given.layers * sum(sorted(s) == sorted(shape) for s in SHAPES.values())
            whole += took * count
            worst = max(worst, float(((sigma - delta.singular_values) / sigma[0]).abs().max()))
            print(f"whole svdvals of one {shape} ΔW: {took:.1f} s; of {count}: {took * count:.0f} s")
        print(f"all whole, from these: {whole:.0f} s; ratio {whole / thin:.0f}")
        print(f"largest |Δσ| / σ₁: {worst:.1e}")


if __name__ == "__main__":
    main()
