"""Layers of every kind, tiny models, a training loop with every hook.

No variant is named here: a file put under `variants/` is tested because it exists.
"""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from lora_zoo import LowRank
from lora_zoo.conformance.plugin import SELECTED
from lora_zoo.core.adapter import Adapter
from lora_zoo.core.hooks import Progress
from lora_zoo.core.hyperparameters import check_hyperparameters, hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import inject
from lora_zoo.injection.matrices import find_matrices
from lora_zoo.injection.plan import complete_hyperparameters
from lora_zoo.injection.targets import resolve

MATRIX = [name for name in SELECTED or VARIANTS if issubclass(VARIANTS[name], Adapter)]
WHOLE = [name for name in SELECTED or VARIANTS if name not in MATRIX]
POINTWISE = [name for name in MATRIX if VARIANTS[name].pointwise]
LOW_RANK = [name for name in MATRIX if issubclass(VARIANTS[name], LowRank)]


class LayerKind(NamedTuple):
    """A kind of matrix: the layer that holds it, what it is called there, and how it lies in there."""

    make: Callable  # (O, I) -> the layer
    written: Callable = lambda stored, W_OI: W_OI  # the layer's tensor with W in it, differentiable
    at: str = "layer"  # the layer's name in its model
    target: str = ""  # the matrix's name within the layer
    tensor: str = "weight"  # the tensor's name within the layer
    config: dict | None = None
    call: Callable = lambda layer, x: layer(x)
    square: bool = False  # O is I
    mergeable: bool = True


def conv(space, groups=1, stride=1, **more):
    """(O, I) -> a convolution with I inputs to each output: a kernel of two along one axis if I is even."""

    def make(O, I):
        kernel, of = (2 if I % 2 == 0 else 1), (groups if O % groups == 0 else 1)
        cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space - 1]
        ones, none = [1] * (space - 1), [0] * (space - 1)
        where = {"stride": (stride, *ones), "padding": (1, *none)}
        return cls(I // kernel * of, O, (kernel, *ones), groups=of, **where, **more)

    return make


def call_conv(layer, x):
    """Each vector of x (..., I) as an image of two positions, all of its outputs after each other."""
    groups, kernel, space = layer.groups, layer.kernel_size, len(layer.kernel_size)
    image = x.reshape(*x.shape[:-1], -1, kernel[0]).repeat_interleave(groups, dim=-2)
    image = image * torch.arange(1, image.shape[-2] + 1).to(x)[:, None]  # groups see different inputs
    image = torch.cat([image, 2 * image.flip(-1)], dim=-1)
    y = layer(image.reshape(-1, *image.shape[-2:], *[1] * (space - 1)))
    return y.flatten(1).reshape(*x.shape[:-1], -1)


class Experts(nn.Module):
    """Matrices of three experts in one parameter; the tokens take turns. `transposed`: (E, I, O)."""

    def __init__(self, name, O, I, transposed=False):
        super().__init__()
        shape = (3, I, O) if transposed else (3, O, I)
        setattr(self, name, nn.Parameter(torch.zeros(shape)))
        self.name, self.is_transposed = name, transposed
        self.has_gate = self.is_concatenated = True  # as transformers marks its experts

    def forward(self, x):
        stack, flat = getattr(self, self.name), x.reshape(-1, x.shape[-1])
        turns = [stack[(t + 1) % 3] for t in range(len(flat))]
        rows = [row @ (W if self.is_transposed else W.T) for row, W in zip(flat, turns, strict=True)]
        return torch.stack(rows).reshape(*x.shape[:-1], -1)


def call_attention(layer, x):
    """Keys and values are x (..., I) as one sequence, queries the same numbers in the layer's width."""
    sequence = x.reshape(1, -1, x.shape[-1])
    wide = torch.nn.functional.pad(sequence, (0, max(0, layer.embed_dim - x.shape[-1])))
    y = layer(wide[..., : layer.embed_dim], sequence, sequence, need_weights=False)[0]
    return y.reshape(*x.shape[:-1], -1)


class Codes(nn.Parameter):
    """A quantised tensor as torchao's are to others: it knows the values of its codes, half of each."""

    def dequantize(self):
        return self.data / 2

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            x, weight, *bias = args
            return nn.functional.linear(x, weight.dequantize().as_subclass(torch.Tensor), *bias)
        return super().__torch_function__(func, types, args, kwargs or {})


def of_codes(O, I):
    layer = nn.Linear(I, O)
    layer.weight = Codes(layer.weight.data, requires_grad=False)
    return layer


def into_rows(first, last):
    """W written to rows from first * O to last * O of a matrix of O rows a part."""

    def written(stored, W_OI):
        return torch.cat([stored[: first * len(W_OI)], W_OI, stored[last * len(W_OI) :]])

    return written


def heads_of(O):
    return 2 if O % 2 == 0 else 1


def into_heads(stored, W_OI):
    """W as the keys of a projection that holds q, k, v of one head after another."""
    O, I = W_OI.shape
    q, _, v = stored.view(heads_of(O), 3, -1, I).unbind(1)
    return torch.stack([q, W_OI.view_as(q), v], dim=1).reshape(stored.shape)


def into_expert(stored, W):
    return torch.stack([stored[0], W, stored[2]])


KINDS = {
    "linear": LayerKind(lambda O, I: nn.Linear(I, O)),
    "linear_without_bias": LayerKind(lambda O, I: nn.Linear(I, O, bias=False)),
    "quantised": LayerKind(of_codes, mergeable=False),
    "conv1d": LayerKind(Conv1D, lambda stored, W_OI: W_OI.T),
    "embedding": LayerKind(lambda O, I: nn.Embedding(I, O), lambda stored, W_OI: W_OI.T),
    "scaled_embedding": LayerKind(
        lambda O, I: Gemma3TextScaledWordEmbedding(I, O, None, embed_scale=3.0), lambda stored, W_OI: W_OI.T
    ),
    **{
        name: LayerKind(make, lambda stored, W_OI: W_OI.reshape(stored.shape), call=call_conv)
        for name, make in {
            "convolution_1d": conv(1),
            "convolution_2d": conv(2),
            "convolution_3d": conv(3),
            "convolution_2d_grouped_strided": conv(2, groups=2, stride=2),
            "convolution_1d_circular": conv(1, padding_mode="circular"),
        }.items()
    },
    "fused": LayerKind(
        lambda O, I: nn.Linear(I, 3 * O), into_rows(1, 2), "c_attn", "k", config={"model_type": "openai-gpt"}
    ),
    "fused_conv1d": LayerKind(
        lambda O, I: Conv1D(3 * O, I),
        lambda stored, W_OI: into_rows(2, 3)(stored.T, W_OI).T,
        "c_attn",
        "v",
        config={"model_type": "openai-gpt"},
    ),
    "fused_by_head": LayerKind(
        lambda O, I: nn.Linear(I, 3 * O),
        into_heads,
        "query_key_value",
        "k",
        config={"model_type": "gpt_neox"},
    ),
    "attention": LayerKind(
        lambda O, I: nn.MultiheadAttention(I, heads_of(I), batch_first=True),
        into_rows(1, 2),
        target="in_proj_weight.k",
        tensor="in_proj_weight",
        call=call_attention,
        square=True,
    ),
    "attention_output": LayerKind(
        lambda O, I: nn.MultiheadAttention(I, 1, batch_first=True),
        target="out_proj",
        tensor="out_proj.weight",
        call=call_attention,
        square=True,
    ),
    "attention_apart": LayerKind(
        lambda O, I: nn.MultiheadAttention(O, 1, kdim=I, vdim=I, batch_first=True),
        target="v_proj_weight",
        tensor="v_proj_weight",
        call=call_attention,
    ),
    "experts": LayerKind(
        lambda O, I: Experts("down_proj", O, I),
        into_expert,
        "experts",
        "down_proj.1",
        "down_proj",
    ),
    "experts_fused_transposed": LayerKind(
        lambda O, I: Experts("gate_up_proj", 2 * O, I, transposed=True),
        lambda stored, W_OI: into_expert(stored, into_rows(1, 2)(stored[1].T, W_OI).T),
        "experts",
        "gate_up_proj.1.up",
        "gate_up_proj",
    ),
}
EVERYWHERE = ("linear", "embedding", "convolution_2d_grouped_strided", "attention")
"""Kinds of layer on which every variant is tested: one for each way in which a matrix is held and applied."""
UNSEEN = [name for name in KINDS if name.startswith(("attention", "experts"))]  # no input to drop


def firsts(of, among=tuple(MATRIX)):
    """Of the variants that share a value of `of`, a function of their class, the first; of None all."""
    first = {}
    for name in among:
        value = of(VARIANTS[name])
        first.setdefault(name if value is None else value, name)
    return list(first.values())


@functools.cache
def representatives():
    """The first variant of each forward pass and kernel: others meet a layer as it does."""
    return firsts(lambda cls: (cls.forward, cls.output, cls.kernel))


def _abstract_base(name):
    variants = {VARIANTS[name] for name in MATRIX}
    return next(base for base in VARIANTS[name].__mro__ if base not in variants)


@functools.cache
def bases():
    """The first representative of each abstract base: what derives from it leaves the layer to it."""
    return list({_abstract_base(name): name for name in reversed(representatives())}.values())


def cases(among=tuple(MATRIX)):
    """(variant, kind of layer): every variant on `EVERYWHERE`, one of each abstract base on every kind.

    The other representatives meet three further kinds, by turns. Without the kinds that a class refuses.
    """
    whole = bases()
    found = [(name, kind) for name in among for kind in (KINDS if name in whole else EVERYWHERE)]
    for number, name in enumerate(representatives()):
        further = [kind for kind in KINDS if kind not in EVERYWHERE and takes(name, kind)]
        turned = further[number % max(len(further), 1) :] + further[: number % max(len(further), 1)]
        found += [(name, kind) for kind in turned[:3] if name in among]
    return [(name, kind) for name, kind in dict.fromkeys(found) if takes(name, kind)]


def few_cases(among=tuple(MATRIX)):
    """(variant, kind of layer), for rules that a variant's tensors and a layer's keep each by themselves.

    Every variant on the first kind that it takes, the representatives on one more of `EVERYWHERE` by turns,
    one of each abstract base on all of them, and two of these, by turns, on every kind.
    """
    found = [(name, next(kind for kind in KINDS if takes(name, kind))) for name in among]
    found += zip(representatives(), itertools.cycle(EVERYWHERE[1:]), strict=False)
    found += itertools.product(bases(), EVERYWHERE)
    for number, kind in enumerate(KINDS):
        fit = [name for name in bases() if takes(name, kind)]
        found += [(fit[turn % len(fit)], kind) for turn in (number, number + 1)]
    return sorted({(name, kind) for name, kind in found if name in among and takes(name, kind)})


def mergeable(pairs):
    """Those of (variant, kind of layer) whose layer can hold another matrix than its own."""
    return [(name, kind) for name, kind in pairs if KINDS[kind].mergeable]


def with_turns(cases, *values):
    """Each case with one of each list of `values`, by turns, for a rule that needs no product."""
    turns = itertools.cycle(itertools.product(*values))
    return [(*case, *turn) for case, turn in zip(cases, turns, strict=False)]


def in_a_loop(names, cases):
    """Parametrise a test by the first of its arguments `names`; the cases of one such value are a loop.

    Most tests are shorter than what pytest does for one. Each case has the random stream and the folder of a
    test of its own, what it skips is itself alone, and a failure names it.
    """
    first, *others = [name.strip() for name in names.split(",")]
    of: dict[str, list[tuple]] = {}
    for value, *more in cases:
        of.setdefault(value, []).append(tuple(more))

    def decorate(test):
        @functools.wraps(test)
        def looped(**given):
            skipped = []
            for number, values in enumerate(of[given[first]]):
                torch.manual_seed(0)
                try:
                    test(**(given | dict(zip(others, values, strict=True)) | _folder(given, number)))
                except pytest.skip.Exception as skip:
                    skipped.append(skip)
                except BaseException as error:
                    error.add_note(f"the case: {', '.join(map(str, values))}")
                    raise
            if len(skipped) == len(of[given[first]]):
                raise skipped[0]

        signature = inspect.signature(test)
        left = [p for name, p in signature.parameters.items() if name not in others]
        looped.__signature__ = signature.replace(parameters=left)
        return pytest.mark.parametrize(first, of)(looped)

    return decorate


def _folder(given, number):
    """A folder within that of the test, where it asks for one."""
    if "tmp_path" not in given:
        return {}
    folder = given["tmp_path"] / str(number)
    folder.mkdir()
    return {"tmp_path": folder}


def on_models(kinds):
    """(variant, kind of model): each on the first; one of each base on one more, by turns; no matrix: on all.

    What differs between models are their layers, which `cases` has.
    """
    first, *others = kinds
    turns = dict(zip(bases(), itertools.cycle(others), strict=False))
    found = [(name, first) for name in VARIANTS] + list(turns.items())
    found += [(name, kind) for name in VARIANTS if name not in MATRIX for kind in others]
    return sorted(found)


@functools.cache
def takes(name, kind, O=10, I=14):
    """True if the variant called `name` can adapt this kind of layer of this shape, as its class says."""
    cls, model = VARIANTS[name], lone(kind, O, I)
    host = next(matrix.host for matrix in find_matrices(model) if matrix.name == model.target)
    hyper = complete_hyperparameters(cls, settings(name))
    return not cls.unfit(host, hyper) and (cls.pointwise or host.sees_input)


def fitting(name, model, targets):
    """Those of `targets` of which the variant called `name` can adapt every matrix, as its class says."""
    cls = VARIANTS[name]
    hyper = complete_hyperparameters(cls, settings(name))
    each = {target: resolve(model, [target]) for target in targets if cls.adapts}
    apart = {t: cls.misplaced(model, {m.name: m.role for m in found}) for t, found in each.items()}
    return [t for t, found in each.items() if not (apart[t] or any(cls.unfit(m.host, hyper) for m in found))]


class Lone(nn.Module):
    """A model that is one layer."""

    def __init__(self, kind, layer, heads):
        super().__init__()
        self.kind = KINDS[kind]
        setattr(self, self.kind.at, layer)
        self.config = SimpleNamespace(num_attention_heads=heads, **(self.kind.config or {}))

    @property
    def holder(self):
        """The layer that holds the matrix, or what stands in its place."""
        return getattr(self, self.kind.at)

    @property
    def target(self):
        return f"{self.kind.at}.{self.kind.target}".rstrip(".")

    def forward(self, x):
        return self.kind.call(self.holder, x)


def lone(kind, O=10, I=14, dtype=torch.float64, seed=0):
    """A model of one layer of `kind` with random weights and, where it has one, a random bias."""
    model = Lone(kind, KINDS[kind].make(O, I), heads_of(O)).to(dtype)
    randomise(model.parameters(), 0.4, seed, set_to=True)
    return model


def stored_in(model):
    """The tensor of a plain `lone` model that holds its matrix."""
    return model.get_parameter(f"{model.kind.at}.{model.kind.tensor}")


def seen(model):
    """The tensor that holds the matrix as other code reads it, whatever stands there."""
    return functools.reduce(getattr, model.kind.tensor.split("."), model.holder)


def readable(model, injection):
    """The tensor that holds the matrix as other code reads it; the stored one where none can be read."""
    return seen(model) if injection.variant.pointwise else only(injection)[1].tensor()


def merge(injection):
    """Merge where variant and layers have an effective weight; else the adapter stays as it is."""
    unmergeable = any(matrix.host.unmergeable for matrix in injection.matrices.values())
    if injection.variant.pointwise and not unmergeable:
        injection.merge()


def with_effective(model, adapter, host, x):
    """The output of a plain `lone` model with the adapter's effective weight and bias, by torch alone."""
    of = {f"{model.kind.at}.{model.kind.tensor}": effective_weight(model, adapter, host)}
    if adapter.adds_bias and model.holder.bias is None:
        model.holder.bias = nn.Parameter(own_bias(model))
    if adapter.changes_bias and getattr(model.holder, "bias", None) is not None:
        of[f"{model.kind.at}.bias"] = effective_bias(model, adapter, host)
    return functional_call(model, of, (x,))


def effective_weight(model, adapter, host):
    """The tensor of a plain `lone` model with the adapter's effective matrix in it."""
    return model.kind.written(stored_in(model).detach(), adapter.weight(host.matrix()))


def own_bias(model):
    """A copy of the bias of a plain `lone` model, zeros where it has none."""
    bias_O = model.holder.bias
    return stored_in(model).new_zeros(len(stored_in(model))) if bias_O is None else bias_O.detach().clone()


def effective_bias(model, adapter, host):
    """The bias of a plain `lone` model, the adapted rows effective."""
    bias_O = own_bias(model)
    bias_O[host.part] = adapter.bias(bias_O[host.part].clone())
    return bias_O


def inputs(kind, I=14, dtype=torch.float64, seed=0, batch=(3, 4)):
    source = torch.Generator().manual_seed(seed)
    if kind.endswith("embedding"):
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
    """`rank`, no dropout, small groups and `more`, as far as the variant `name` has such hyperparameters."""
    known = hyperparameters(VARIANTS[name])
    given = {"rank": rank, "lora_dropout": 0.0, "group_size": 4, **more}
    return {key: value for key, value in given.items() if key in known}


def adapt(model, name, rank=4, seed=0, targets=(), **more):
    """Inject where a `lone` model has its matrix, or at `targets`."""
    targets = targets or (model.target,)
    return inject(model, name, target_modules=targets, seed=seed, **settings(name, rank, **more))


def nearest_rank(name, model, rank, targets=()):
    """The rank nearest to `rank` that fits where `adapt` would put it; a greater one, if there is one."""
    cls = VARIANTS[name]
    matrices = resolve(model, targets or (model.target,)) if cls.adapts else []
    for taken in (*range(rank, 2 * rank + 1), *range(rank - 1, 0, -1)):
        hyper = cls.complete(check_hyperparameters(cls, settings(name, taken)))
        if not any(cls.unfit(m.host, hyper) for m in matrices):
            return taken
    raise AssertionError(f"{name} refuses every rank from 1 to {2 * rank}")


def only(injection):
    """The one adapter of an injection and its host."""
    ((name, adapter),) = injection.adapters.items()
    return adapter, injection.matrices[name].host


def tensors(adapter):
    """Everything an adapter holds, stored or remade from a seed."""
    return {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}


def adamw(injection, lr=1e-2):
    """AdamW as the variant wraps it; None where nothing trains."""
    return injection.optimizer(torch.optim.AdamW, lr=lr) if injection.trainable() else None


def train(injection, loss, *, steps, total=None, lr=1e-2, skipped=(), first=1, optimizer=None):
    """AdamW steps `first` to `steps` of a run of `total`, with all hooks; the names that received a gradient.

    Of a skipped step the gradients are dropped before anybody sees them.
    """
    total, hooks, reached = total or steps, injection.hooks, set()
    hooks.on_train_begin(total)
    optimizer = optimizer or adamw(injection, lr)
    for step in range(first, steps + 1 if optimizer else 0):
        progress = Progress(step, total)
        with hooks.forward_context(progress):
            (loss() + hooks.regularizer()).backward()
        if step in skipped:
            optimizer.zero_grad()
        else:
            hooks.on_after_backward(progress)
        named = injection.named_parameters().items()
        reached |= {name for name, p in named if p.grad is not None and p.grad.any()}
        optimizer.step()
        hooks.on_step_end(progress)
        optimizer.zero_grad()
    if steps == total:
        hooks.on_train_end()
    return reached


SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, vocab_size=37)


def copied(module, memo=None):
    """As `deepcopy`, which takes several times as long for all that a module holds beside tensors."""
    memo = {} if memo is None else memo
    if hasattr(module, "__deepcopy__"):
        return copy.deepcopy(module, memo)
    if id(module) not in memo:
        new = memo[id(module)] = object.__new__(type(module))
        for key, value in vars(module).items():
            if key == "_modules":
                new.__dict__[key] = {name: child and copied(child, memo) for name, child in value.items()}
            elif isinstance(value, dict) and not value:
                new.__dict__[key] = type(value)()
            else:
                new.__dict__[key] = copy.deepcopy(value, memo)
    return memo[id(module)]


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


@functools.cache
def _gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=37, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


MODELS = {
    "llama": (_llama, {"target_modules": ["q", "v"], "modules_to_save": []}),
    "gpt2": (_gpt2, {"target_modules": ["q", "v"], "modules_to_save": []}),
    "bert": (_bert, {"target_modules": ["q", "v"], "modules_to_save": ["classifier"]}),
}


def fresh(kind):
    """A tiny random model in evaluation mode (no dropout), and the arguments that say what to adapt in it."""
    make, where = MODELS[kind]
    return copied(make()).eval(), where


def batch(kind):
    ids = torch.randint(37, (3, 6), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "labels": torch.tensor([0, 2, 1]) if kind == "bert" else ids}


@torch.no_grad()
def logits(model, kind):
    return model(**batch(kind)).logits
