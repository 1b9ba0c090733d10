"""What a quantised base leaves of a model at step 0, and what it takes: `measure.py text | cost MODEL`.

text: the pocket model's loss on text of its pretraining, by scheme and start, before any training.
cost: bytes of MODEL's base, and processor seconds of a training step of LoRA, by scheme, in turns.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from lora_zoo import inject
from lora_zoo.config.quantization import SCHEMES
from lora_zoo.config.schema import Model
from lora_zoo.models.loading import load_model, load_tokenizer
from lora_zoo.tasks.forgetting import HeldOutLoss

STARTS = ("kaiming", "loftq", "loftq_iter_5", "qpissa", "qpissa_iter_5")


def text(schemes: Sequence[str], rank: int) -> None:
    """Nats a token with adapters of each start on all linear layers, as they are before step 1."""
    settings = Model(name="pocket", path="pocket")
    held_out = HeldOutLoss("pocket", load_tokenizer(settings))
    print("scheme", *STARTS, sep=" | ")
    for scheme in schemes:
        losses = []
        for start in STARTS if scheme != "none" else STARTS[:1]:
            model = loaded(settings, scheme, "AutoModelForCausalLM")
            inject(model, "lora", target_modules="all-linear", rank=rank, alpha=rank, init=start)
            losses.append(f"{held_out.loss(model):.4f}")
        print(scheme, *losses, sep=" | ")


def cost(path: str, schemes: Sequence[str], rounds: int) -> None:
    """LoRA of rank 8 on q and v, 16 texts of 32 tokens, one thread; the median of steps taken in turns."""
    torch.set_num_threads(1)
    settings, ids = Model(name="model", path=path), torch.randint(1000, 2000, (16, 32))
    models, seconds = {}, dict[str, list[float]]()
    for scheme in schemes:
        models[scheme] = model = loaded(settings, scheme, "AutoModelForSequenceClassification")
        inject(model, "lora", target_modules=["q", "v"], rank=8)
        seconds[scheme] = []
    for _ in range(rounds):
        for scheme, model in models.items():
            began = time.process_time()
            model.train()(input_ids=ids, labels=ids[:, 0] % 2).loss.backward()
            seconds[scheme].append(time.process_time() - began)
    print("scheme | base, MB | of it linear layers in codes, MB | CPU seconds a step, median")
    for scheme, model in models.items():
        frozen = [p for p in model.parameters() if not p.requires_grad]
        whole = of_bytes([*frozen, *model.buffers()])
        codes = of_bytes([p for p in frozen if not p.is_floating_point()])
        print(scheme, f"{whole:.1f}", f"{codes:.1f}", f"{statistics.median(seconds[scheme]):.3f}", sep=" | ")


def loaded(settings: Model, scheme: str, auto_class: str) -> Any:
    asked = Model(name=settings.name, path=settings.path, quantization=None if scheme == "none" else scheme)
    return load_model(asked, auto_class, {}, None, seed=0).model


def of_bytes(parameters: Sequence[Tensor]) -> float:
    """Megabytes of tensors and of the scales that belong to them."""
    found = {t.data_ptr(): t.numel() * t.element_size() for p in parameters for t in (p, *scales(p))}
    return sum(found.values()) / 1e6


def scales(of: Any) -> Iterator[Tensor]:
    """The tensors in what bitsandbytes keeps beside codes."""
    for own in (getattr(of, "quant_state", None), getattr(of, "state2", None)):
        if own is not None:
            yield from (value for value in vars(own).values() if isinstance(value, Tensor))
            yield from scales(own)
    if isinstance(row_scales := getattr(of, "SCB", None), Tensor):
        yield row_scales


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("text", "cost"))
    parser.add_argument("model", nargs="?", default="pocket")
    parser.add_argument("--scheme", default="none,nf4,int8", help=f"none, {', '.join(SCHEMES)}")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    schemes = given.scheme.split(",")
    text(schemes, given.rank) if given.what == "text" else cost(given.model, schemes, given.rounds)


if __name__ == "__main__":
    main()
