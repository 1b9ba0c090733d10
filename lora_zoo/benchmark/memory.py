"""What a step keeps for its backward pass, and on a GPU its peak."""

import torch
from torch import nn

from lora_zoo.benchmark.contenders import Contender, contenders
from lora_zoo.benchmark.options import Options
from lora_zoo.benchmark.report import Curve, Report, Row
from lora_zoo.benchmark.shapes import Shape
from lora_zoo.models.activations import saved_bytes

ABOUT = """\
Bytes that autograd saves between forward and backward, each storage once, parameters and frozen tensors left
out; *adapter's own*: what is saved beyond the frozen limit's, in bytes a token. *peak*: the most memory
that a step allocates beyond what was there before it (on a GPU alone)."""
PATHS = {"fused": "fused (as it is)", "plain": "plain (definition)", "peft": "PEFT"}
COLUMNS = {
    "shape": "shape",
    "variant": "variant",
    "limit": "limit, MB",
    **{f"{path}_own": f"{path}: adapter's own, B/token" for path in PATHS},
    "over_peft": "fused / PEFT",
    "own_over_lora": "fused / LoRA's",
    **{f"{path}_peak": f"{path}: peak, MB" for path in ("limit", *PATHS)},
}


def measure(options: Options) -> Report:
    rows = []
    for shape in options.on("llama-192", "llama-768"):
        base = shape.model(options.dtype, options.device)
        own = [measure_one(shape, base, variant, options.device) for variant in options.variants]
        rows += [row | _beside_lora(row, own) for row in own]
    return report(rows)


def measure_one(shape: Shape, base: nn.Module, variant: str, device: torch.device) -> Row:
    found = contenders(shape, base, variant, device=device)
    saved = {path: saved_by(contender) for (path, _), contender in found.items()}
    row: Row = {
        "shape": shape.name,
        "variant": variant,
        "tokens": shape.tokens,
        "limit": saved["limit"] / 1e6,
    }
    row |= {f"{path}_bytes": size for path, size in saved.items()}
    for path in saved.keys() - {"limit"}:
        row[f"{path}_own"] = (saved[path] - saved["limit"]) / shape.tokens
    if row.get("peft_own", 0) > 0:
        row["over_peft"] = row["fused_own"] / row["peft_own"]
    if device.type == "cuda":
        row |= {f"{path}_peak": peak_bytes(contender) / 1e6 for (path, _), contender in found.items()}
    return row


def _beside_lora(row: Row, rows: list[Row]) -> Row:
    """The adapter's own bytes as a share of LoRA's, where that was measured."""
    lora = next((other["fused_own"] for other in rows if other["variant"] == "lora"), None)
    return {"own_over_lora": row["fused_own"] / lora} if lora else {}


def saved_by(contender: Contender) -> int:
    """Bytes saved for backward by one forward pass of `contender`."""
    with contender.around():
        return saved_bytes(contender.model, contender.loss)


def peak_bytes(contender: Contender) -> int:
    """The most that a step allocates on the GPU beyond what is there already."""
    contender.step()  # what is made once is made
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def report(rows: list[Row]) -> Report:
    bars = [
        {"panel": row["shape"], "variant": row["variant"], "path": label, "y": row[f"{path}_own"]}
        for row in rows
        for path, label in PATHS.items()
        if f"{path}_own" in row
    ]
    curve = Curve(
        title="Bytes saved for backward beyond the frozen limit's",
        x="variant",
        group="path",
        x_label="variant",
        y_label="bytes per token",
        rows=bars,
    )
    return Report("memory", "Memory of a step", ABOUT, COLUMNS, rows, curve=curve)
