"""Bytes that a step keeps for its backward pass, and on a GPU its peak."""

import torch
from torch import nn

from lora_zoo.bench.options import Options
from lora_zoo.bench.paths import LABELS, StepPath, paths
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.shapes import REFERENCE, Shape
from lora_zoo.models.activations import saved_bytes

ABOUT = """\
Bytes that autograd saves between forward and backward, each storage once, parameters and frozen tensors left
out; *adapter's own*: what is saved beyond the frozen baseline's, in bytes a token. *peak*: the most memory
that a step allocates beyond what was there before it (on a GPU alone)."""
COLUMNS = {
    "frozen, MB": "{frozen_mb:.1f}",
    **{f"{label}: adapter's own, B/token": f"{{{name}_own:,.0f}}" for name, label in LABELS.items()},
    "fused / PEFT": "{over_peft:.2f}",
    **{f"{name}: peak, MB": f"{{{name}_peak:.1f}}" for name in ("frozen", *LABELS)},
}
PLOTTED = {f"{name}_own": label for name, label in LABELS.items()}


def measure(options: Options) -> Measurement:
    rows = [measure_one(*case, options.device) for case in options.cases(REFERENCE, options.variants)]
    for row in rows:
        if row.get("peft_own", 0) > 0:
            row["over_peft"] = row["fused_own"] / row["peft_own"]
    keys, unit = ("shape", "variant"), "bytes per token beyond the frozen baseline's"
    return Measurement("memory", "Memory of a step", ABOUT, keys, COLUMNS, rows, unit, PLOTTED)


def measure_one(shape: Shape, base: nn.Module, variant: str, device: torch.device) -> Values:
    row: Values = {"shape": shape.name, "variant": variant, "tokens": shape.tokens}
    for (name, _), path in paths(shape, base, variant, device=device).items():
        row[f"{name}_bytes"] = saved_by(path)
        row[f"{name}_own"] = (row[f"{name}_bytes"] - row["frozen_bytes"]) / shape.tokens
        if device.type == "cuda":
            row[f"{name}_peak"] = peak_bytes(path) / 1e6
    return row | {"frozen_mb": row["frozen_bytes"] / 1e6}


def saved_by(path: StepPath) -> int:
    """Bytes saved for backward by one forward pass."""
    with path.context():
        return saved_bytes(path.model, path.loss)


def peak_bytes(path: StepPath) -> int:
    """The most that a step allocates on the GPU beyond what is there already."""
    path.step()  # what is made once is made
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    path.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
