"""A small ViT that knows the digits 0 to 4, and images of 5 to 9 for it to learn, from scikit-learn's digits.

python experiments/digits/make.py OUT     # OUT/base, a model in Hub format, and OUT/data/SPLIT/DIGIT/N.png
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

KNOWN, NEW = range(5), range(5, 10)
SPLITS = {"train": 300, "validation": 200}
STEPS, BATCH, LR = 600, 64, 1e-3
CONFIG = {
    **{"image_size": 8, "patch_size": 2, "num_channels": 3, "num_labels": len(KNOWN)},
    **{"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


def images(digits: range) -> tuple[list[Image.Image], np.ndarray]:
    """8 x 8 images in colour, in an order of their own, and which digit each is."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    kept = [n for n in order if found.target[n] in digits]
    made = [Image.fromarray((found.images[n] * 15).astype(np.uint8)).convert("RGB") for n in kept]
    return made, found.target[kept]


def train_base(out: Path) -> float:
    """Train a ViT on the digits that it knows and save it; return its accuracy on every fifth, left out."""
    torch.manual_seed(0)
    pictures, digits = images(KNOWN)
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    x_N = processor(pictures, return_tensors="pt")["pixel_values"]
    y_N, held_N = torch.tensor(digits), torch.arange(len(digits)) % 5 == 0
    model = ViTForImageClassification(ViTConfig(**CONFIG))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    rows = (~held_N).nonzero().flatten()
    for _ in range(STEPS):
        batch = rows[torch.randint(len(rows), (BATCH,))]
        optimizer.zero_grad()
        cross_entropy(model(x_N[batch]).logits, y_N[batch]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(x_N[held_N]).logits.argmax(1) == y_N[held_N]).float().mean()
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return float(right)


def write_data(out: Path) -> dict[str, int]:
    """Write the images of the digits that are new; return how many each split has."""
    pictures, digits = images(NEW)
    ends = np.cumsum([*SPLITS.values(), len(digits) - sum(SPLITS.values())])
    counts: dict[str, int] = {}
    for number, (picture, digit) in enumerate(zip(pictures, digits, strict=True)):
        split = [*SPLITS, "test"][int(np.searchsorted(ends, number, side="right"))]
        folder = out / split / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number}.png")
        counts[split] = counts.get(split, 0) + 1
    return counts


if __name__ == "__main__":
    where = Path(sys.argv[1])
    print(f"base: {train_base(where / 'base'):.3f} of the digits 0 to 4 that it has not seen")
    print(f"data: {write_data(where / 'data')}")
