"""Make the shipped model: `python experiments/pocket/make/pretrain.py --out DIR --seed 0`."""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import genres
import torch
import vocabulary
from initialisation import initialise
from muon import Muon
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """The shipped model's settings; `length` and `batch` count tokens and sequences."""

    steps: int = 6_000
    batch: int = 16
    length: int = 128
    muon_lr: float = 0.01
    adam_lr: float = 3e-3
    warmup: int = 100
    flat_until: float = 0.6
    final_lr: float = 0.02


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=256,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Corpus:
    """Endless packed batches; the mixture of genres follows `progress`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: str) -> None:
        self.ids = tokenizer.get_vocab()
        self.progress = 0.0
        self._documents = genres.documents(random.Random(seed), lambda: self.progress)
        self._tokens = self._stream()

    def _stream(self) -> Iterator[int]:
        for document in self._documents:
            yield self.ids["<s>"]
            yield from (self.ids[word] for word in document.split())

    def batch(self, sequences: int, length: int) -> Tensor:
        """Token ids (sequences, length + 1): each position but the last predicts the next."""
        tokens = [next(self._tokens) for _ in range(sequences * (length + 1))]
        return torch.tensor(tokens).view(sequences, length + 1)


def rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, flat, linear decay, as a factor of the peak."""
    flat_end = recipe.flat_until * recipe.steps
    left = (recipe.steps - step) / (recipe.steps - flat_end)
    return min(1.0, (step + 1) / recipe.warmup, recipe.final_lr + (1 - recipe.final_lr) * left)


def next_token_loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    return cross_entropy(model(ids[:, :-1], use_cache=False).logits.flatten(0, 1), ids[:, 1:].flatten())


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    named = dict(model.named_parameters())
    inner = {name for name, parameter in named.items() if parameter.ndim == 2 and "embed" not in name}
    others = [parameter for name, parameter in named.items() if name not in inner]
    adam = torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon([named[name] for name in sorted(inner)], lr=recipe.muon_lr), adam]


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, *, seed: int
) -> None:
    """Trains in place and prints a line for every 100 steps."""
    corpus = Corpus(tokenizer, f"pocket pretraining {seed}")
    optims = optimizers(model, recipe)
    peaks = [[group["lr"] for group in optim.param_groups] for optim in optims]
    start, losses = time.perf_counter(), []
    for step in range(recipe.steps):
        corpus.progress = step / recipe.steps
        loss = next_token_loss(model, corpus.batch(recipe.batch, recipe.length))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim, peak in zip(optims, peaks, strict=True):
            for group, lr in zip(optim.param_groups, peak, strict=True):
                group["lr"] = lr * rate(step, recipe)
            optim.step()
            optim.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step + 1} loss {sum(losses[-100:]) / 100:.3f} seconds {seconds:.0f}", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Stores half precision; the configuration still says float32, so it loads and trains in that.

    Generation is greedy and ends at ";", as every answer of the tasks does.
    """
    ids = tokenizer.get_vocab()
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=48, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[ids[";"], tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    halves = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=halves)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, in Hub format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="fewer for a quick look")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer = vocabulary.tokenizer()
    model = build(tokenizer)
    initialise(model, torch.Generator().manual_seed(arguments.seed))
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} words")
    pretrain(model, tokenizer, Recipe(steps=arguments.steps), seed=arguments.seed)
    save(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
