"""What the adapter tests share: layers of every kind, tiny models, a training loop with every hook.

No variant is named here: a file put under `variants/` is tested because it exists.
"""

import copy
import functools

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from lora_zoo.adapters.adapter import Adapter, LowRank
from lora_zoo.adapters.injection import inject
from lora_zoo.adapters.method import Progress
from lora_zoo.adapters.registry import hyperparameters, variants

VARIANTS = list(variants())
MATRIX = [name for name, cls in variants().items() if issubclass(cls, Adapter)]
LOW_RANK = [name for name, cls in variants().items() if issubclass(cls, LowRank)]

LAYERS = {
    "linear": lambda O, I: nn.Linear(I, O),
    "linear_without_bias": lambda O, I: nn.Linear(I, O, bias=False),
    "conv1d": Conv1D,
    "embedding": lambda O, I: nn.Embedding(I, O),
}


class Lone(nn.Module):
    """A model that is one layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def lone(kind, O=10, I=14, dtype=torch.float64, seed=0):
    """A model of one layer of `kind` with random weights and, where it has one, a random bias."""
    model = Lone(LAYERS[kind](O, I)).to(dtype)
    randomise(model.parameters(), 0.4, seed, set_to=True)
    return model


def inputs(kind, I=14, dtype=torch.float64, seed=0, batch=(3, 4)):
    source = torch.Generator().manual_seed(seed)
    if kind == "embedding":
        return torch.randint(I, batch, generator=source)
    return torch.randn(*batch, I, generator=source, dtype=torch.float64).to(dtype)


@torch.no_grad()
def randomise(parameters, size, seed=1, set_to=False):
    """Add a seeded normal draw of width `size` to each parameter, or put it in its place."""
    source = torch.Generator().manual_seed(seed)
    for p in parameters:
        draw = size * torch.randn(p.shape, generator=source, dtype=torch.float64)
        p.copy_(draw if set_to else p + draw)


def perturb(injection, size=0.3, seed=1):
    """Move every trainable tensor away from its start."""
    randomise(injection.parameters(), size, seed)


def settings(name, rank=4, **more):
    """`rank` and `more` as far as the variant called `name` has such hyperparameters."""
    known = hyperparameters(variants()[name])
    return {key: value for key, value in {"rank": rank, **more}.items() if key in known}


def adapt(model, name, rank=4, seed=0, targets=("layer",), **more):
    return inject(model, name, target_modules=targets, seed=seed, **settings(name, rank, **more))


def tensors(adapter):
    """Everything an adapter holds, stored or remade from a seed."""
    return {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}


def train(injection, loss, *, steps, total=None, lr=1e-2):
    """`steps` AdamW steps of a run of `total`, with all hooks; the names that received a gradient."""
    total, method, reached = total or steps, injection.method, set()
    method.begin(total)
    groups = injection.param_groups(lr=lr)
    optimizer = torch.optim.AdamW(groups) if groups else None
    for step in range(1, steps + 1 if optimizer else 0):
        progress = Progress(step, total)
        with method.forward_context(progress):
            (loss() + method.regularizer()).backward()
        method.on_backward_end(progress)
        named = injection.named_parameters().items()
        reached |= {name for name, p in named if p.grad is not None and p.grad.any()}
        optimizer.step()
        method.on_step_end(progress)
        optimizer.zero_grad()
    if steps == total:
        method.finalize()
    return reached


SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, vocab_size=37)


@functools.cache
def _llama():
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=32)
    return LlamaForCausalLM(config)


@functools.cache
def _bert():
    torch.manual_seed(0)
    config = BertConfig(**SIZES, num_labels=3, max_position_embeddings=32)
    model = BertForSequenceClassification(config)
    randomise([p for n, p in model.named_parameters() if n.endswith("bias")], 0.1)
    return model


MODELS = {
    "llama": (_llama, {"target_modules": ["q", "v"], "modules_to_save": []}),
    "bert": (_bert, {"target_modules": ["q", "v"], "modules_to_save": ["classifier"]}),
}


def fresh(kind):
    """A tiny random model in evaluation mode (no dropout), and the arguments that say what to adapt in it."""
    make, where = MODELS[kind]
    return copy.deepcopy(make()).eval(), where


def batch(kind):
    ids = torch.randint(37, (3, 6), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "labels": ids if kind == "llama" else torch.tensor([0, 2, 1])}


@torch.no_grad()
def logits(model, kind):
    return model(**batch(kind)).logits
