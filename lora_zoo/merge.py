"""`python -m lora_zoo.merge RUN OUT`: a run's adapter merged into its base, a folder in Hub format.

OUT is loaded again as anybody would load it, and its logits are compared with those of the adapted model. It
appears whole or not at all. A quantised base is dequantised: what was trained on its values is added to them.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_zoo.core.errors import in_one_line
from lora_zoo.terminal import on_the_terminal, refuse_to_overwrite, say

if TYPE_CHECKING:
    from lora_zoo.models.base import Base

DTYPES = ("float32", "bfloat16", "float16")
STORED, COMPUTED = 8, 32
"""So many roundings of the largest logit are explained: of the saved dtype, and of float32 on the way."""


class Merged(NamedTuple):
    """What came out: the largest |Δlogit| between adapted and reloaded model, and what to judge it by."""

    difference: float
    largest: float
    dtype: str
    auto_class: str
    notes: list[str]

    @property
    def explained(self) -> bool:
        """Whether rounding in `dtype` alone gives such a difference."""
        import torch

        stored, computed = torch.finfo(getattr(torch, self.dtype)).eps, torch.finfo(torch.float32).eps
        return self.difference <= (STORED * stored + COMPUTED * computed) * self.largest


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.merge", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or an adapter: ours, PEFT's or loralib's")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--model", help="the base, where it is not (or not where) the adapter says it is")
    parser.add_argument("--dtype", choices=DTYPES, help="of the merged weights; default: the run's")
    parser.add_argument("--alpha", type=float, help="of an adapter that loralib saved")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the base brings")
    given = parser.parse_args(arguments)
    with on_the_terminal():
        made = merge(**vars(given))
    print(f"merged model in {given.out}: transformers' {made.auto_class}.from_pretrained loads it")
    print(f"largest logit difference, adapted and reloaded: {made.difference:.2g}", end=" ")
    print(f"(largest logit {made.largest:.4g}, {made.dtype})")
    for note in made.notes:
        print(note)
    if not made.explained:
        say(f"warning: rounding in {made.dtype} does not explain that difference")


def merge(
    run: Path,
    out: Path,
    *,
    model: str | None = None,
    dtype: str | None = None,
    alpha: float | None = None,
    trust_remote_code: bool = False,
) -> Merged:
    """Write the merged model to `out` and return how far it is from the adapted one.

    `alpha` is for a file of loralib's, which does not hold it.

    Raises FileNotFoundError where `run` holds no adapter, ValueError where its base is not known, cannot be
    loaded or does not fit, or where `out` holds something, and Unwritten where the disk refuses.
    """
    from lora_zoo.formats.native import load_adapter
    from lora_zoo.models.base import adapter_in, base_of
    from lora_zoo.models.compare import batch, logits
    from lora_zoo.models.loading import load_tokenizer
    from lora_zoo.models.saving import reloaded, whole

    out = out.resolve()
    refuse_to_overwrite(out)
    folder = adapter_in(run)
    base = base_of(folder, model, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(base.model)
    (network, new), scheme = _load(base, tokenizer)
    of_loralib: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    injection = load_adapter(network, folder, **of_loralib)
    _check_heads(new, injection.trained, folder)
    asked = batch(network)
    adapted = logits(network, asked)
    notes = [f"the base is dequantised from {scheme}"] if scheme else []
    if scheme:
        notes.append(_against_codes(base, tokenizer, injection, adapted, asked))
    injection.merge()
    injection.remove()
    if base.unit:
        adapted, note = _in_unit(network, base.unit, adapted)
        notes.append(note)
    if scheme and base.model.dtype in DTYPES:
        dtype = dtype or base.model.dtype  # dequantised in float32
    if dtype:
        network.to(getattr(_torch(), dtype))
    with whole(out) as part:
        network.save_pretrained(part)
        tokenizer.save_pretrained(part)
        del network, injection
        again = reloaded(part, base)
        difference = float((logits(again, asked) - adapted).abs().max())
    saved = str(next(again.parameters()).dtype).removeprefix("torch.")
    return Merged(difference, float(adapted.abs().max()), saved, base.auto_class, notes)


def _load(base: "Base", tokenizer: Any) -> tuple[Any, str | None]:
    """The base in plain layers and what its file lacks, and the scheme of its quantisation if it had one."""
    from lora_zoo.models import dequantize
    from lora_zoo.models.loading import load_model

    if scheme := dequantize.scheme_of(base.model):
        return dequantize.load_dequantised(base.model, base.auto_class, base.head, tokenizer), scheme
    return load_model(base.model, base.auto_class, base.head, tokenizer, seed=0), None


def _check_heads(new: list[str], trained: Iterable[str], folder: Path) -> None:
    """ValueError for a module that would stay as it was drawn: neither base nor adapter bring it."""
    held = {name.rpartition(".")[0] for name in trained}
    if lacking := [name for name in new if name not in held]:
        raise ValueError(f"neither the base nor {folder} brings weights for {', '.join(lacking)}")


def _against_codes(base: "Base", tokenizer: Any, injection: Any, adapted: Any, asked: dict[str, Any]) -> str:
    """What the scheme's own layers with this adapter make of the batch, where they run on this machine."""
    from lora_zoo.models import dequantize
    from lora_zoo.models.compare import logits

    try:
        model: Any = dequantize.load_quantised(base.model, base.auto_class, base.head, tokenizer).model
        if getattr(model, "hf_quantizer", None) is None:
            return "its own layers do not run on this machine, so they are not compared"
        with dequantize.with_adapter(model, injection):
            apart = float((logits(model, asked) - adapted).abs().max())
    except (LookupError, RuntimeError, ValueError) as error:
        return f"its own layers are not compared: {in_one_line(error)}"
    return f"its own layers, which round otherwise, with this adapter: logits differ by {apart:.2g}"


def _in_unit(network: Any, unit: dict[str, float], adapted: Any) -> tuple[Any, str]:
    """Let a regression's head answer in the labels' own unit, where its last layer has a bias to do so."""
    torch = _torch()
    mean, std = float(unit["mean"]), float(unit["std"])
    last = [m for m in network.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1]
    if not last or last[-1].bias is None:
        return adapted, f"scores are standardised: the labels' unit is {std:.6g} * score + {mean:.6g}"
    with torch.no_grad():
        last[-1].weight.mul_(std)
        last[-1].bias.mul_(std).add_(mean)
    return (
        adapted * std + mean,
        f"scores are in the labels' unit (mean {mean:.4g}, std {std:.4g} are in the head)",
    )


def _torch() -> Any:
    import torch

    return torch


if __name__ == "__main__":
    main()
