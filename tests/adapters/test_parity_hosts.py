"""Parity with PEFT and loralib on every host; `python tests/adapters/test_parity_hosts.py` prints it.

Convolutions, torch's attention, stacked experts, fused projections; several named adapters, patterns.
Where we differ on purpose, `DIFFERENCES` says why and names the test that shows it.
"""

import copy
import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import loralib
import peft
import peft.tuners.lora.layer
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from lora_zoo.conformance.cases import perturb, randomise
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject
from tests.lent import Lent

# (difference, reason, the test that shows it)
DIFFERENCES = [
    (
        "a convolution's branch has the layer's dilation and padding mode",
        "PEFT's has dilation 1 and pads with zeros: it fails, or its merged model is another one",
        "test_peft_s_branch_ignores_dilation_and_padding_mode_and_ours_follows_the_layer",
    ),
    (
        "a grouped convolution's update has the layer's groups: one A (R, I) serves them all",
        "it merges, at any rank; PEFT's A reads the channels of all groups, which no grouped kernel can",
        "test_our_grouped_update_merges_and_peft_s_reads_across_groups",
    ),
    (
        "DoRA on a grouped convolution has rows of norm m",
        "PEFT deals its product's entries out anew for the norm: right only while the groups share one A",
        "test_dora_s_magnitude_is_the_norm_on_a_grouped_convolution_and_not_in_peft",
    ),
    (
        "a Conv3d with a kernel of one along its first two axes merges",
        "PEFT takes it for a 1 x 1 Conv2d and fails",
        "test_a_conv3d_that_looks_like_a_1x1_conv2d_merges_and_fails_in_peft",
    ),
    (
        "a convolution's matrix is (O, I) with I = channels x kernel, and rank means its rank",
        "loralib's factors are (O k, R k) and (R k, C k): rank R is up to R k² of our matrix, and its Conv1d "
        "and Conv3d fail; with a kernel of one the two are the same",
        "test_loralib_s_convolution_of_rank_one_has_rank_nine_as_our_matrix",
    ),
    (
        "a grouped convolution's rows are its kernels",
        "loralib views (O / groups, C) as (O, C / groups): its product is cut into pieces",
        "test_loralib_s_grouped_product_is_cut_into_pieces_and_ours_is_not",
    ),
    (
        "DoRA works on nn.MultiheadAttention and on stacked experts",
        "the module runs on the effective weight, whatever made it; PEFT has plain LoRA alone there",
        "test_peft_refuses_dora_where_a_module_reads_its_weight_itself",
    ),
    (
        "an adapter acts in torch's fast path",
        "nn.TransformerEncoderLayer in evaluation calls none of its layers: PEFT's adapters do nothing there",
        "test_torch_s_fast_path_applies_our_adapters_and_ignores_peft_s",
    ),
    (
        "out_proj's update counts once",
        "PEFT's attention adds it, and has out_proj add it again, merged or not (peft pull request 3774)",
        "test_peft_adds_the_update_of_attention_s_output_twice",
    ),
    (
        "two active adapters on attention both train",
        "PEFT merges one after another and detaches what the first one gave: only the last has a gradient",
        "test_two_active_adapters_on_attention_train_and_in_peft_only_the_last_does",
    ),
    (
        "nn.MultiheadAttention: in_proj_weight, its q, k and v, and out_proj are targets of their own",
        "PEFT adapts in_proj_weight and out_proj together, ignores out_proj alone and refuses kdim, vdim",
        "test_attention_s_matrices_are_targets_of_their_own_and_not_in_peft",
    ),
    (
        "the frozen in_proj_weight stays to the bit",
        "PEFT adds and subtracts the update at each forward pass, with rounding",
        "test_forward_passes_change_peft_s_frozen_attention_and_not_ours",
    ),
    (
        "dropout is refused where the adapter sees no input",
        "PEFT refuses it on target_parameters too, but ignores it on nn.MultiheadAttention without a word",
        "test_dropout_on_attention_is_refused_and_peft_ignores_it",
    ),
    (
        "Llama-4's experts are known to be (E, I, O)",
        "the module has no `is_transposed`, so that PEFT exchanges A and B: its zero factor is the input's",
        "test_llama4_starts_with_a_zero_b_and_peft_with_a_zero_a",
    ),
    (
        "one expert is a target, with a rank of its own",
        "each expert is a matrix; PEFT's target is the whole parameter, the same for all named adapters",
        "test_two_adapters_may_target_different_experts_and_not_in_peft",
    ),
    (
        "fused q, k and v can have a pair (B, A) each",
        "as in the paper and in loralib; PEFT has one pair for the whole of c_attn, which changes k",
        "test_k_is_untouched_to_the_bit_where_q_and_v_are_adapted",
    ),
    (
        "several active DoRAs add what each changes in W",
        "PEFT applies each to the output of the one before, so that the order of names matters",
        "test_two_doras_add_up_and_in_peft_their_order_matters",
    ),
    (
        "a pattern that fits no adapted matrix is an error",
        "a misspelt name would leave rank and alpha as they were, without a word",
        "test_a_pattern_that_fits_nothing_is_refused_and_peft_ignores_it",
    ),
]


# --- what is adapted ---------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Attends(nn.Module):
    """Queries, keys and values differ."""

    def __init__(self, **more):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True, **more)

    def forward(self, x):
        return self.attn(x, x.flip(1).tanh(), x.roll(1, 2), need_weights=False)[0]


STORES = {"A_RI": "lora_A", "B_OR": "lora_B", "m_O": "lora_magnitude_vector"}


def whole(tensor):
    return tensor


def in_layer(model, place, name, adapter):
    """Where PEFT keeps our tensor `name`, and which part of it that is."""
    layer = place.name.removesuffix(".in_proj_weight").replace("attn.out_proj", "attn.base_layer.out_proj")
    return getattr(model.get_submodule(layer), STORES[name])[adapter].weight, whole


def in_experts(model, place, name, adapter):
    """PEFT's A (E R, I) holds the experts one after another; its B (O, R E) has their columns by turns."""
    owner, _, parameter = place.tensor.rpartition(".")
    wrapper, expert = model.get_submodule(owner), int(place.name.rpartition(".")[2])
    while wrapper.parameter_name != parameter:
        wrapper = wrapper.base_layer
    E = wrapper.num_experts
    if name == "A_RI":
        return wrapper.lora_A[adapter].weight, lambda A: A.unflatten(0, (E, -1))[expert]
    return wrapper.lora_B[adapter].weight, lambda B: B.unflatten(1, (-1, E))[..., expert]


def in_experts_exchanged(model, place, name, adapter):
    """PEFT takes (E, I, O) for (E, O, I) where the module does not say `is_transposed`."""
    theirs, part = in_experts(model, place, {"A_RI": "B_OR", "B_OR": "A_RI"}[name], adapter)
    return theirs, lambda tensor: part(tensor).T


def branch_like_its_layer(model):
    """With the dilation and the padding mode that PEFT leaves out."""
    for layer in (model.first, model.second):
        for branch in layer.lora_A.values():
            branch.dilation = layer.base_layer.dilation
            branch.padding_mode = layer.base_layer.padding_mode


def output_updated_once(model):
    """PEFT's attention adds out_proj's update, and then has out_proj itself add it again."""
    for layer in model.modules():
        if isinstance(layer, peft.tuners.lora.layer.MultiheadAttention):
            out = layer.base_layer.out_proj
            out.merge = lambda adapter_names, out=out: out.merged_adapters.extend(adapter_names)
            out.unmerge = out.merged_adapters.clear


class Subject(NamedTuple):
    """What both adapt: a model, its input at each step, our targets, PEFT's, and where PEFT keeps a factor.

    `put_right` mends in PEFT's model what `DIFFERENCES` calls its mistakes.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    ours: list[str]
    theirs: dict
    held: Callable = in_layer
    put_right: Callable[[nn.Module], object] = whole

    def base(self):
        torch.manual_seed(0)
        model = self.make()
        randomise(model.parameters(), 0.2, 3)
        return model.train()


def normal(*shape):
    return lambda step: torch.randn(shape, generator=torch.Generator().manual_seed(100 + step))


def tokens(step):
    return torch.randint(37, (3, 8), generator=torch.Generator().manual_seed(100 + step))


def same(targets):
    """The targets in our words and in PEFT's, where they are the same."""
    return targets, {"target_modules": targets}


def convolutions(space, kernel, **more):
    """Two convolutions; the first has a stride of two, padding and a bias."""
    cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space - 1]
    last = {1: 2, 2: 1, 3: 2}[space]  # PEFT has a formula of its own for a 1 x 1 Conv2d

    def make():
        first = cls(3, 6, kernel, **{"stride": 2, "padding": 1, **more})
        return Two(first, cls(6, 4, last, bias=False))

    shape = (2, 3, *[9, 8, 7][:space])
    return Subject(make, normal(*shape), *same(["first", "second"]), put_right=branch_like_its_layer)


def experts(model, config, held=in_experts, **more):
    both = ["experts.gate_up_proj", "experts.down_proj"]
    theirs = {"target_modules": [], "target_parameters": both}
    sizes = SMALL | {"num_local_experts": 3, "num_experts_per_tok": 2}
    return Subject(lambda: model(config(**sizes, **more)), tokens, both, theirs, held)


def gpt2():
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) | NO_ENDS
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=24, n_head=2, vocab_size=37, n_positions=16, **off))


NO_ENDS = dict.fromkeys(("bos_token_id", "eos_token_id"))
SMALL = NO_ENDS | dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=12,
    vocab_size=37,
    max_position_embeddings=32,
    tie_word_embeddings=False,
)
LINEAR = Subject(lambda: Two(nn.Linear(14, 10), nn.Linear(10, 8)), normal(6, 14), *same(["first", "second"]))
CONV = {
    "Conv1d": convolutions(1, 3),
    "Conv2d": convolutions(2, (3, 2)),
    "Conv3d": convolutions(3, (3, 2, 1)),
}
DILATED = {
    "Conv1d, dilation 2 *": convolutions(1, 3, dilation=2, padding=2),
    "Conv2d, dilation (1, 2) *": convolutions(2, 3, dilation=(1, 2), padding=2, stride=(2, 1)),
    "Conv3d, dilation 2 *": convolutions(3, 2, dilation=2),
    "Conv2d, padding same, dilation 2 *": convolutions(2, 3, padding="same", dilation=2, stride=1),
}
PADDED = {
    "Conv1d, circular *": convolutions(1, 3, padding_mode="circular", padding=2),
    "Conv2d, circular *": convolutions(2, 3, padding_mode="circular", padding=(2, 1)),
    "Conv2d, reflect *": convolutions(2, 3, padding_mode="reflect", padding=(2, 1)),
    "Conv2d, replicate *": convolutions(2, 3, padding_mode="replicate", padding=(2, 1)),
    "Conv3d, circular *": convolutions(3, 2, padding_mode="circular"),
}
ATTENTION = Subject(
    Attends,
    normal(3, 5, 16),
    ["attn.in_proj_weight", "attn.out_proj"],
    {"target_modules": ["attn"]},
    put_right=output_updated_once,
)
ENCODER = Subject(
    lambda: nn.Sequential(
        *(nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True) for _ in range(2))
    ),
    normal(3, 5, 16),
    ["self_attn.in_proj_weight", "self_attn.out_proj", "linear1"],
    {"target_modules": ["self_attn", "linear1"]},
    put_right=output_updated_once,
)
MIXTRAL = experts(MixtralForCausalLM, MixtralConfig)
GPT_OSS = experts(GptOssForCausalLM, GptOssConfig)
LLAMA_4 = experts(
    Llama4ForCausalLM,
    Llama4TextConfig,
    in_experts_exchanged,
    intermediate_size_mlp=12,
    moe_layers=[0, 1],
    attention_chunk_size=16,
)
LLAMA = Subject(
    lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), tokens, *same(["q_proj", "v_proj", "down_proj"])
)
C_ATTN = Subject(gpt2, tokens, ["c_attn"], {"target_modules": ["c_attn"], "fan_in_fan_out": True})


# --- the twins ---------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Our tensor and theirs, of which ours is a part."""

    ours: nn.Parameter
    theirs: nn.Parameter
    part: Callable[[Tensor], Tensor]

    def read(self, tensor):
        return self.part(tensor).reshape(self.ours.shape)


@dataclass
class Twins:
    """Our adapted model and theirs on the same weights, with the same factors."""

    ours: nn.Module
    theirs: nn.Module
    inputs: Callable[[int], Tensor]
    pairs: dict[str, list[Pair]]
    merged: Callable[[], nn.Module]
    """Merges theirs into a model whose tensors have the base's names."""
    active: tuple[str, ...] = ("default",)
    step: int = 0

    @torch.no_grad()
    def align(self):
        every = [pair for pairs in self.pairs.values() for pair in pairs]
        for pair in every:
            pair.read(pair.theirs).copy_(pair.ours)
        assert all(torch.equal(pair.ours, pair.read(pair.theirs)) for pair in every)
        return self

    def activate(self, *names):
        adapters_of(self.ours).activate(*names)
        self.theirs.base_model.set_adapter(list(names))
        self.active = names

    def live(self):
        return [pair for name in self.active for pair in self.pairs[name]]

    def tensors(self):
        return [(pair.ours, pair.read(pair.theirs)) for pair in self.live()]

    def outputs(self):
        """Ours runs first, so that a dropout lent to PEFT repeats our masks."""
        x = self.inputs(self.step)
        return answer(self.ours, x), answer(self.theirs, x)

    def backward(self):
        for y in self.outputs():
            target = torch.randn(y.shape, generator=torch.Generator().manual_seed(200 + self.step))
            (y - target).square().mean().backward()

    def gradients(self):
        """Of both, after one backward pass."""
        found = [(pair.ours.grad, pair.read(pair.theirs.grad)) for pair in self.live()]
        assert all(theirs.abs().max() > 100 * TOLERANCE for _, theirs in found), "gradients too small to tell"
        return found


def answer(model, x):
    y = model(x)
    return getattr(y, "logits", y)


@torch.no_grad()
def evaluated(model, x):
    """The output in evaluation and without gradients, where torch takes its fast paths."""
    training = model.training
    model.eval()
    y = answer(model, x)
    model.train(training)
    return y


def in_evaluation(model):
    """Where loralib merges."""
    model.eval()
    return model


FLAGS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


def peft_model(base, name="default", **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, peft.LoraConfig(**config), adapter_name=name)


def pairs_of(subject, injection, theirs):
    return [
        Pair(tensor, *subject.held(theirs.base_model.model, injection.matrices[place], name, injection.name))
        for place, adapter in injection.adapters.items()
        for name, tensor in adapter.named_parameters()
    ]


def twins_of(subject, variant="lora", **more):
    """PEFT's adapter and ours; `more` means the same to both."""
    base = subject.base()
    ours, usual = copy.deepcopy(base), {"rank": 4, "alpha": 6.0}
    injection = inject(ours, variant, target_modules=subject.ours, **usual, **more)
    perturb(injection, 0.1)
    theirs = peft_model(base, r=4, lora_alpha=6, **FLAGS[variant], **subject.theirs, **more).train()
    subject.put_right(theirs.base_model.model)
    assert injection.trainable() == theirs.get_nb_trainable_parameters()[0]
    pairs = {"default": pairs_of(subject, injection, theirs)}
    return Twins(ours, theirs, subject.inputs, pairs, theirs.merge_and_unload).align()


def named_twins(subject, variant="lora", then=None):
    """Two adapters of different rank and alpha, "a" and "b" (on what `then` says); both are active."""
    base = subject.base()
    ours, pairs, theirs = copy.deepcopy(base), {}, None
    both = (("a", subject, 4, 6.0), ("b", then or subject, 3, 5.0))
    for seed, (name, on, rank, alpha) in enumerate(both):
        injection = inject(ours, variant, target_modules=on.ours, rank=rank, alpha=alpha, name=name)
        perturb(injection, 0.1, seed)
        config = dict(r=rank, lora_alpha=alpha, **FLAGS[variant], **on.theirs)
        if theirs is None:
            theirs = peft_model(base, name, **config)
        else:
            theirs.add_adapter(name, peft.LoraConfig(**config))
        pairs[name] = pairs_of(on, injection, theirs)
    subject.put_right(theirs.base_model.model)
    twins = Twins(ours, theirs.train(), subject.inputs, pairs, theirs.merge_and_unload).align()
    twins.activate("a", "b")
    return twins


def with_our_dropout(subject, variant):
    twins = twins_of(subject, variant, lora_dropout=0.3)
    for name, adapter in adapters_of(twins.ours)["default"].adapters.items():
        twins.theirs.base_model.model.get_submodule(name).lora_dropout["default"] = Lent(adapter.dropout)
    return twins


def loralib_gpt2():
    """Its code for GPT-2: c_attn as one MergedLinear with factors for q and v."""
    base = C_ATTN.base()
    ours = copy.deepcopy(base)
    injection = inject(ours, "lora", target_modules=["q", "v"], rank=4, alpha=6.0)
    perturb(injection, 0.1)
    pairs = []
    for number, block in enumerate(base.requires_grad_(False).transformer.h):
        fused = loralib.MergedLinear(
            24, 72, r=4, lora_alpha=6, enable_lora=[True, False, True], fan_in_fan_out=True
        )
        fused.weight.data, fused.bias = block.attn.c_attn.weight.data, block.attn.c_attn.bias
        block.attn.c_attn = fused
        for half, role in enumerate("qv"):
            adapter = injection.adapters[f"transformer.h.{number}.attn.c_attn.{role}"]
            part = functools.partial(lambda half, tensor: tensor.chunk(2)[half], half)
            pairs += [
                Pair(adapter.A_RI, fused.lora_A, part),
                Pair(adapter.B_OR, fused.lora_B, part),
            ]
    return Twins(ours, base, tokens, {"default": pairs}, lambda: in_evaluation(base)).align()


def loralib_convolution(space):
    """One convolution with a kernel of one: there the two mean the same matrix."""
    cls = (loralib.Conv1d, loralib.Conv2d, loralib.Conv3d)[space - 1]
    torch.manual_seed(0)
    theirs = cls(6, 8, 1, r=4, lora_alpha=6, stride=2, padding=1)
    ours = nn.Sequential(OrderedDict(conv=copy.deepcopy(theirs.conv)))
    injection = inject(ours, "lora", target_modules=["conv"], rank=4, alpha=6.0)
    perturb(injection, 0.1)
    adapter = injection.adapters["conv"]
    pairs = [
        Pair(adapter.A_RI, theirs.lora_A, whole),
        Pair(adapter.B_OR, theirs.lora_B, whole),
    ]
    inputs = normal(2, 6, *[5] * space)
    return Twins(ours, theirs, inputs, {"default": pairs}, lambda: in_evaluation(theirs)).align()


# The end of a name -> (in, out) in these models.
WIDTHS = {
    "gate_up_proj": (16, 24),
    "down_proj": (12, 16),
    "in_proj_weight": (16, 48),
    "out_proj": (16, 16),
    "linear1": (16, 24),
}


class OnLinears(nn.Module):
    """A plain model run on the matrices of linear layers, each with PEFT's DoRA."""

    def __init__(self, base, injection):
        super().__init__()
        self.base, self.matrices, self.linears = (
            base.requires_grad_(False),
            injection.matrices,
            nn.ModuleDict(),
        )
        for name in injection.adapters:
            linear = nn.Linear(*next(I_O for end, I_O in WIDTHS.items() if end in name), bias=False)
            linear.weight.data = self.turned(self.stored(name), linear.weight)
            layer = peft_model(nn.Sequential(linear), r=4, lora_alpha=6, use_dora=True, target_modules=["0"])
            self.linears[name.replace(".", "/")] = layer.base_model.model[0]

    def stored(self, name):
        """The matrix, an expert's or a whole parameter, as the base stores it."""
        tensor, last = self.base.get_parameter(self.whole(name)), name.rpartition(".")[2]
        return tensor[int(last)] if last.isdigit() else tensor

    def whole(self, name):
        tensor = self.matrices[name].tensor
        return tensor if tensor in dict(self.base.named_parameters()) else f"{tensor}.weight"

    def turned(self, matrix, like):
        """No matrix of experts is square here: its shape tells how it lies."""
        return matrix if matrix.shape == like.shape else matrix.T

    def tensors(self):
        found = {}
        for name in self.matrices:
            linear = self.linears[name.replace(".", "/")]
            W_OI = linear(torch.eye(linear.in_features)).T
            found.setdefault(self.whole(name), []).append(self.turned(W_OI, self.stored(name)))
        return {n: torch.stack(W) if len(W) > 1 else W[0] for n, W in found.items()}

    def forward(self, x):
        return functional_call(self.base, self.tensors(), (x,))

    def merged(self):
        self.base.load_state_dict({name: W.detach() for name, W in self.tensors().items()}, strict=False)
        return self.base


def dora_on_parameters(subject, variant):
    """PEFT has it on linear layers alone: its model is the plain one, run on their matrices."""
    base = subject.base()
    ours = copy.deepcopy(base)
    injection = inject(ours, variant, target_modules=subject.ours, rank=4, alpha=6.0)
    perturb(injection, 0.1)
    theirs = OnLinears(base, injection)
    pairs = [
        Pair(tensor, getattr(theirs.linears[place.replace(".", "/")], STORES[name])["default"].weight, whole)
        for place, adapter in injection.adapters.items()
        for name, tensor in adapter.named_parameters()
    ]
    return Twins(ours, theirs, subject.inputs, {"default": pairs}, theirs.merged).align()


# --- the cases ---------------------------------------------------------------------------------------------


@dataclass
class Distance:
    """Largest absolute differences; `merged` of outputs and all weights, ours unmerged against theirs too."""

    outputs: float
    gradients: float
    ten_steps: float
    merged: float


def apart(pairs):
    return max(float((ours - theirs).detach().abs().max()) for ours, theirs in pairs)


def adamw(parameters):
    """With an epsilon that keeps the rounding of a gradient near zero from deciding a step's sign."""
    own = {id(p): p for p in parameters}.values()
    return torch.optim.AdamW(own, lr=1e-2, weight_decay=0.0, eps=1e-4)


def measure(twins):
    """At the start, after ten steps, and then merged."""
    plain = disabled(twins.ours, twins.inputs(0))
    outputs = twins.outputs()
    assert apart([(outputs[1], plain)]) > 1000 * TOLERANCE, "the adapters change too little to tell"
    optimisers = adamw(p.ours for p in twins.live()), adamw(p.theirs for p in twins.live())
    for twins.step in range(1, 11):
        twins.backward()
        if twins.step == 1:
            gradients = apart(twins.gradients())
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    ten_steps = apart([twins.outputs(), *twins.tensors()])
    return Distance(apart([outputs]), gradients, ten_steps, merged_apart(twins))


def disabled(model, x):
    with adapters_of(model).disabled():
        return answer(model, x)


def merged_apart(twins):
    x = twins.inputs(twins.step)
    unmerged = evaluated(twins.ours, x)
    adapters_of(twins.ours).merge()
    theirs = twins.merged()
    y, other = evaluated(theirs, x), dict(theirs.named_parameters())
    mine = dict(twins.ours.named_parameters())
    assert mine.keys() == {name for name in other if "lora_" not in name}
    weights = [(tensor, other[name]) for name, tensor in mine.items()]
    return apart([(unmerged, y), (evaluated(twins.ours, x), y), *weights])


PATTERNS = {
    "linear": (LINEAR, {"rank_pattern": {"first": 2}, "alpha_pattern": {"second": 9}}),
    "convolutions": (CONV["Conv2d"], {"rank_pattern": {"second": 2}, "alpha_pattern": {"first": 9}}),
    "attention": (ATTENTION, {"alpha_pattern": {"attn.*": 9}}),
    "experts": (MIXTRAL, {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"experts.gate_up_proj": 9}}),
    "c_attn": (C_ATTN, {"rank_pattern": {"h.0.attn.c_attn": 2}, "alpha_pattern": {r".*h\.1.*c_attn": 3}}),
    "the first that fits": (
        LLAMA,
        {
            "rank_pattern": {
                "layers.0.self_attn.q_proj": 6,
                r"model\.layers\.1\..*_proj": 3,
                "q_proj": 2,
                "down_proj": 5,
            },
            "alpha_pattern": {"v_proj": 1, "layers.1.self_attn.v_proj": 9, r"model\.layers\.0\.mlp\..*": 3},
        },
    ),
}
PARAMETERS = {
    "MultiheadAttention *": ATTENTION,
    "TransformerEncoderLayer *": ENCODER,
    "Mixtral's experts, (E, O, I)": MIXTRAL,
    "GPT-OSS's experts, (E, I, O)": GPT_OSS,
    "Llama-4's experts, (E, I, O)": LLAMA_4,
}
NAMED = {
    "linear": LINEAR,
    "convolution": CONV["Conv2d"],
    "experts": MIXTRAL,
    "c_attn": C_ATTN,
}
SPELT = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}


def titled(variants, subjects, make):
    return {
        f"{SPELT[variant]}, {name}": functools.partial(make, subject, variant)
        for variant in variants
        for name, subject in subjects.items()
    }


# What makes the twins; a star where PEFT's mistake is put right first.
CASES = {
    **titled(FLAGS, CONV | {"GPT-2's c_attn as a whole": C_ATTN}, twins_of),
    **titled(["lora", "dora"], DILATED | PADDED, twins_of),
    **titled(["lora", "dora"], {"Conv2d, dropout 0.3": CONV["Conv2d"]}, with_our_dropout),
    **titled(["lora", "rslora"], PARAMETERS, twins_of),
    **titled(
        ["dora"],
        {f"{name.strip(' *')}, PEFT's on Linear": p for name, p in PARAMETERS.items()},
        dora_on_parameters,
    ),
    **titled(["lora"], {f"{name}, two adapters": subject for name, subject in NAMED.items()}, named_twins),
    **{
        f"LoRA, {name}, patterns": functools.partial(twins_of, subject, **patterns)
        for name, (subject, patterns) in PATTERNS.items()
    },
    "rsLoRA, linear, patterns": functools.partial(twins_of, LINEAR, "rslora", **PATTERNS["linear"][1]),
    "loralib's MergedLinear, GPT-2's q and v": loralib_gpt2,
    **{
        f"loralib's Conv{space}d, kernel of one": functools.partial(loralib_convolution, space)
        for space in (1, 2, 3)
    },
}
TOLERANCE = 1e-5


@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_ten_steps_and_merged_weights_agree(case):
    distance = measure(CASES[case]())
    assert distance.outputs < TOLERANCE
    assert distance.gradients < TOLERANCE
    assert distance.ten_steps < TOLERANCE
    assert distance.merged < TOLERANCE


def test_every_deliberate_difference_names_a_test_that_exists():
    for difference, reason, test in DIFFERENCES:
        assert difference and reason and callable(globals().get(test)), test


# --- several named adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [("a", "b"), ("b", "a"), ("a",), ("b",)], ids="-".join)
@pytest.mark.parametrize("name", [*NAMED, "attention"])
def test_active_adapters_give_peft_s_outputs_and_gradients_and_idle_ones_get_none(name, active):
    twins = named_twins(NAMED.get(name, ATTENTION))
    twins.activate(*active)
    assert apart([twins.outputs()]) < TOLERANCE
    if name == "attention" and len(active) > 1:
        return  # PEFT has no gradient for the first: a test of its own
    twins.backward()
    assert apart(twins.gradients()) < TOLERANCE
    idle = [pair for own in twins.pairs.keys() - set(active) for pair in twins.pairs[own]]
    assert all(pair.ours.grad is None and pair.theirs.grad is None for pair in idle)


@pytest.mark.parametrize("name", [*NAMED, "attention"])
def test_without_an_active_adapter_the_model_is_the_plain_one(name):
    subject = NAMED.get(name, ATTENTION)
    twins, x = named_twins(subject), subject.inputs(0)
    plain = answer(subject.base().requires_grad_(False), x)  # torch's attention has a path for frozen weights
    with twins.theirs.disable_adapter():
        assert_close(answer(twins.theirs, x), plain, rtol=0, atol=TOLERANCE)
    assert torch.equal(disabled(twins.ours, x), plain)
    assert apart([twins.outputs()]) < TOLERANCE
    adapters_of(twins.ours).activate()
    assert torch.equal(answer(twins.ours, x), plain)


@pytest.mark.parametrize("gone, left", ["ab", "ba"])
@pytest.mark.parametrize("name", [*NAMED, "attention"])
def test_after_deleting_one_the_other_acts_trains_and_merges_as_in_peft(name, gone, left):
    twins = named_twins(NAMED.get(name, ATTENTION))
    adapters_of(twins.ours)[gone].remove()
    twins.theirs.delete_adapter(gone)
    twins.active = (left,)
    assert adapters_of(twins.ours).active == (left,)
    distance = measure(twins)
    assert max(distance.outputs, distance.gradients, distance.ten_steps, distance.merged) < TOLERANCE


@pytest.mark.parametrize("active", [("a", "b"), ("b",)], ids="-".join)
def test_adapters_on_different_layers_act_where_they_are(active):
    alone = LINEAR._replace(ours=["second"], theirs={"target_modules": ["second"]})
    twins = named_twins(alone, then=LINEAR)
    twins.activate(*active)
    distance = measure(twins)
    assert max(distance.outputs, distance.gradients, distance.ten_steps, distance.merged) < TOLERANCE


def test_two_active_adapters_on_attention_train_and_in_peft_only_the_last_does():
    twins = named_twins(ATTENTION)
    twins.backward()
    assert all(pair.theirs.grad is None for pair in twins.pairs["a"])
    assert all(pair.ours.grad.any() for pair in twins.pairs["a"])
    last = [(pair.ours.grad, pair.read(pair.theirs.grad)) for pair in twins.pairs["b"]]
    assert apart(last) < TOLERANCE


def two_doras(order):
    twins = named_twins(LINEAR, "dora")
    twins.activate(*order)
    return twins


def test_two_doras_add_up_and_in_peft_their_order_matters():
    (ours, theirs), (turned, theirs_turned) = two_doras("ab").outputs(), two_doras("ba").outputs()
    assert_close(ours, turned, rtol=0, atol=TOLERANCE)
    assert not torch.allclose(theirs, theirs_turned, rtol=0, atol=0.01)
    changes = []
    for active in ("a", "b"):  # PEFT's, each alone
        merged = two_doras(active).theirs.merge_and_unload()
        changes.append({n: p - LINEAR.base().get_parameter(n) for n, p in merged.named_parameters()})
    expected = {n: p + changes[0][n] + changes[1][n] for n, p in LINEAR.base().named_parameters()}
    both = functional_call(LINEAR.base(), expected, (LINEAR.inputs(0),))
    assert_close(ours, both, rtol=0, atol=TOLERANCE)
    merged = two_doras("ba").ours
    adapters_of(merged).merge()
    assert apart((merged.get_parameter(n), W) for n, W in expected.items()) < TOLERANCE


def test_two_adapters_may_target_different_experts_and_not_in_peft():
    base, x = MIXTRAL.base(), MIXTRAL.inputs(0)
    model, name = copy.deepcopy(base), "model.layers.0.mlp.experts.down_proj"
    first = inject(model, "lora", target_modules=[f"{name}.0"], rank=2, name="a")
    second = inject(
        model, "lora", target_modules=[f"{name}.{e}" for e in (0, 2)], rank_pattern={f"{name}.2": 5}, name="b"
    )
    perturb(first)
    perturb(second)
    assert {n: a.rank for n, a in second.adapters.items()} == {f"{name}.0": 8, f"{name}.2": 5}
    adapters_of(model).activate("a", "b")
    stack = base.get_parameter(name).detach().clone()
    for update in (*first, *second):
        stack[int(update.name[-1])] += update.dW_OI
    assert_close(answer(model, x), answer_with(base, {name: stack}, x), rtol=0, atol=TOLERANCE)
    effective = model.model.layers[0].mlp.experts.down_proj
    assert torch.equal(effective[1], base.get_parameter(name)[1])
    theirs = peft_model(base, "a", target_modules=[], target_parameters=["experts.down_proj"])
    with pytest.raises(ValueError, match="same set of parameters"):
        other = peft.LoraConfig(target_modules=[], target_parameters=["experts.gate_up_proj"])
        theirs.add_adapter("b", other)


def answer_with(model, tensors, x):
    y = functional_call(model, tensors, (x,))
    return getattr(y, "logits", y)


# --- fused projections -------------------------------------------------------------------------------------


def test_k_is_untouched_to_the_bit_where_q_and_v_are_adapted():
    """In merged weights and in outputs, for any input; q and v change. PEFT's one pair changes k."""
    twins, base, k = loralib_gpt2(), C_ATTN.base(), slice(24, 48)
    h = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))
    for merged in (False, True):
        if merged:
            adapters_of(twins.ours).merge()
        for block, plain in zip(twins.ours.transformer.h, base.transformer.h, strict=True):
            c_attn, expected = block.attn.c_attn, plain.attn.c_attn
            y, y0 = c_attn(h), expected(h)
            assert torch.equal(y[..., k], y0[..., k])
            assert torch.equal(c_attn.weight[:, k], expected.weight[:, k])
            assert torch.equal(c_attn.bias, expected.bias)
            for role in (slice(24), slice(48, 72)):
                assert not torch.isclose(y[..., role], y0[..., role]).all(0).all(0).any()
    theirs = twins_of(C_ATTN).theirs.merge_and_unload().transformer.h[0].attn.c_attn
    assert not torch.isclose(theirs(h)[..., k], base.transformer.h[0].attn.c_attn(h)[..., k]).all()


@pytest.mark.parametrize("role, rows", [("q", slice(16)), ("k", slice(16, 32)), ("v", slice(32, 48))])
def test_a_role_of_attention_changes_its_own_rows_alone(role, rows):
    base = ATTENTION.base()
    model, W_OI = copy.deepcopy(base), base.attn.in_proj_weight
    injection = inject(model, "lora", target_modules=[f"attn.in_proj_weight.{role}"], rank=4, alpha=6.0)
    perturb(injection)
    (adapter,) = injection.adapters.values()
    x, expected = ATTENTION.inputs(0), W_OI.detach().clone()
    expected[rows] += 1.5 * adapter.B_OR.detach() @ adapter.A_RI.detach()
    y = functional_call(base, {"attn.in_proj_weight": expected}, (x,))
    assert_close(model(x), y, rtol=0, atol=TOLERANCE)
    injection.merge()
    others = torch.ones(48, dtype=torch.bool)
    others[rows] = False
    assert torch.equal(model.attn.in_proj_weight[others], W_OI[others])
    assert_close(model.attn.in_proj_weight, expected, rtol=0, atol=TOLERANCE)


# --- deliberate differences --------------------------------------------------------------------------------


def test_a_pattern_that_fits_nothing_is_refused_and_peft_ignores_it():
    patterns = {"rank_pattern": {"frist": 2}}
    with pytest.raises(ValueError, match="unknown target among the adapted ones 'frist'"):
        inject(LINEAR.base(), "lora", target_modules=LINEAR.ours, **patterns)
    theirs = peft_model(LINEAR.base(), r=4, **LINEAR.theirs, **patterns).base_model.model
    assert theirs.first.r["default"] == 4


@pytest.mark.parametrize("variant", ["lora", "dora"])
@pytest.mark.parametrize("name", DILATED | PADDED)
def test_peft_s_branch_ignores_dilation_and_padding_mode_and_ours_follows_the_layer(name, variant):
    subject = (DILATED | PADDED)[name]._replace(put_right=whole)
    twins, x = twins_of(subject, variant), subject.inputs(0)
    ours = answer(twins.ours, x)
    try:
        theirs = answer(twins.theirs, x)
    except RuntimeError as error:
        assert "dilation" in name and "must match the size" in str(error)
        theirs = torch.full_like(ours, torch.inf)
    merged = twins.merged()(x)
    assert not torch.allclose(theirs, merged, rtol=0, atol=0.01)
    assert_close(ours, merged, rtol=0, atol=TOLERANCE)


def grouped_twins(variant, rank=4):
    """One convolution of two groups; PEFT's factors are ours once a group, zero for the other's channels."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    ours = copy.deepcopy(base)
    injection = inject(ours, variant, target_modules=["0"], rank=rank, alpha=1.5 * rank)
    perturb(injection)
    theirs = peft_model(base, r=2 * rank, lora_alpha=3 * rank, target_modules=["0"], **FLAGS[variant])
    adapter, layer = injection.adapters["0"], theirs.base_model.model[0]
    with torch.no_grad():
        A = layer.lora_A["default"].weight.zero_()  # (2 R, channels, 3, 3)
        for group in range(2):
            rows, channels = slice(group * rank, (group + 1) * rank), slice(2 * group, 2 * group + 2)
            A[rows, channels] = adapter.A_RI.view(rank, 2, 3, 3)
        layer.lora_B["default"].weight.copy_(adapter.B_OR[..., None, None])  # (O, R of its group, 1, 1)
        for magnitude in layer.lora_magnitude_vector.values():
            magnitude.weight.copy_(adapter.m_O.view(1, -1, 1, 1))
    return Twins(ours, theirs, normal(2, 4, 7, 7), {}, theirs.merge_and_unload), adapter


def test_our_grouped_update_merges_and_peft_s_reads_across_groups():
    twins, adapter = grouped_twins("lora")
    y, theirs = twins.outputs()
    assert_close(y, theirs, rtol=0, atol=TOLERANCE)
    with pytest.raises(NotImplementedError, match="groups > 1"):
        twins.merged()
    inject(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)), "lora", target_modules=["0"], rank=3)
    with pytest.raises(ValueError, match="divisible by groups"):
        peft_model(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)), r=3, target_modules=["0"])
    assert tuple(adapter.A_RI.shape) == (4, 2 * 9)
    x = twins.inputs(0)
    other = x.clone()
    other[:, 2:] += 1  # the second group's channels
    layer = twins.theirs.base_model.model[0].lora_A["default"]
    randomise([layer.weight], 0.1)
    assert torch.equal(twins.ours(other)[:, :3], y[:, :3])
    assert not torch.isclose(twins.theirs(other)[:, :3], twins.theirs(x)[:, :3]).all()
    adapters_of(twins.ours).merge()
    assert_close(twins.ours(x), y, rtol=0, atol=TOLERANCE)


def test_dora_s_magnitude_is_the_norm_on_a_grouped_convolution_and_not_in_peft():
    twins, adapter = grouped_twins("dora")
    y, theirs = twins.outputs()
    assert_close(y, theirs, rtol=0, atol=TOLERANCE)
    layer, x = twins.theirs.base_model.model[0], twins.inputs(0)
    A = layer.lora_A["default"].weight.detach()
    A[4:, 2:] += 0.3  # the second group's own A, on its own channels: still what a grouped kernel can do
    B_OR, W = layer.lora_B["default"].weight.detach().flatten(1), layer.base_layer.weight.detach()
    dW = torch.cat([B_OR[:3] @ A[:4, :2].flatten(1), B_OR[3:] @ A[4:, 2:].flatten(1)])
    V = W + 1.5 * dW.view_as(W)
    norm = V.flatten(1).norm(dim=1)[:, None, None, None]
    expected = nn.functional.conv2d(x, adapter.m_O.view_as(norm) * V / norm, layer.base_layer.bias, groups=2)
    assert not torch.allclose(twins.theirs(x), expected, rtol=0, atol=0.01)
    adapters_of(twins.ours).merge()
    assert_close(twins.ours[0].weight.flatten(1).norm(dim=1), adapter.m_O.detach())
    assert_close(twins.ours(x), y, rtol=0, atol=TOLERANCE)


def test_a_conv3d_that_looks_like_a_1x1_conv2d_merges_and_fails_in_peft():
    subject = convolutions(3, (1, 1, 3))
    twins = twins_of(subject)
    y, theirs = twins.outputs()
    assert_close(y, theirs, rtol=0, atol=TOLERANCE)
    adapters_of(twins.ours).merge()
    assert_close(answer(twins.ours, subject.inputs(0)), y, rtol=0, atol=TOLERANCE)
    with pytest.raises(RuntimeError):
        twins.merged()


def updates_of(theirs):
    """loralib's update and ours of rank one, as matrices (O, channels of a group x kernel)."""
    randomise([theirs.lora_A, theirs.lora_B], 1.0)
    dW = theirs.scaling * (theirs.lora_B @ theirs.lora_A).view(theirs.conv.weight.shape)
    injection = inject(nn.Sequential(copy.deepcopy(theirs.conv)), "lora", target_modules=["0"], rank=1)
    perturb(injection)
    (update,) = injection
    return dW.detach().flatten(1), update.dW_OI, injection.trainable()


def test_loralib_s_convolution_of_rank_one_has_rank_nine_as_our_matrix():
    layer = loralib.Conv2d(4, 12, 3, r=1)
    theirs_OI, ours_OI, count = updates_of(layer)
    assert [int(torch.linalg.matrix_rank(W)) for W in (theirs_OI, ours_OI)] == [9, 1]
    assert layer.lora_A.numel() + layer.lora_B.numel() == 3 * 12 + 36 * 3
    assert count == 12 + 4 * 9
    for broken, image in ((loralib.Conv1d, 1), (loralib.Conv3d, 3)):
        with pytest.raises(RuntimeError, match="invalid for input of size"):
            broken(4, 12, 3, r=1)(torch.zeros(1, 4, *[5] * image))


def test_loralib_s_grouped_product_is_cut_into_pieces_and_ours_is_not():
    layer = loralib.Conv2d(6, 8, 1, r=1, groups=2)
    theirs_OI, ours_OI, count = updates_of(layer)
    assert [int(torch.linalg.matrix_rank(W)) for W in (theirs_OI, ours_OI)] == [2, 1]
    assert int(torch.linalg.matrix_rank(theirs_OI.view(4, 6))) == 1
    assert (layer.lora_A.numel() + layer.lora_B.numel(), count) == (6 + 4, 3 + 8)


@pytest.mark.parametrize("subject", [ATTENTION, MIXTRAL, GPT_OSS], ids=["attention", "mixtral", "gpt_oss"])
def test_peft_refuses_dora_where_a_module_reads_its_weight_itself(subject):
    """Ours is compared with PEFT's on linear layers of the same matrices, among CASES."""
    with pytest.raises(ValueError, match="use_dora"):
        peft_model(subject.base(), use_dora=True, **subject.theirs)


def test_torch_s_fast_path_applies_our_adapters_and_ignores_peft_s(monkeypatch):
    twins, calls = twins_of(ENCODER), []
    real, x = torch._transformer_encoder_layer_fwd, ENCODER.inputs(0)
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *args: calls.append("fast") or real(*args)
    )
    ours, theirs = twins.outputs()
    assert not calls
    fast = evaluated(twins.ours, x)
    assert len(calls) == 2
    assert_close(fast, ours, rtol=0, atol=TOLERANCE)
    assert_close(fast, theirs, rtol=0, atol=TOLERANCE)
    assert_close(evaluated(twins.theirs, x), evaluated(ENCODER.base(), x), rtol=0, atol=TOLERANCE)
    assert not torch.allclose(fast, evaluated(twins.theirs, x), rtol=0, atol=0.1)
    assert_close(evaluated(twins.merged(), x), fast, rtol=0, atol=TOLERANCE)
    with_gradients = answer(twins.ours.eval(), x)
    assert with_gradients.requires_grad
    assert_close(with_gradients, fast, rtol=0, atol=TOLERANCE)


def test_peft_adds_the_update_of_attention_s_output_twice():
    twins = twins_of(ATTENTION._replace(put_right=whole))
    injection, x = adapters_of(twins.ours)["default"], ATTENTION.inputs(0)
    y, theirs = twins.outputs()
    changes = {injection.matrices[update.name].tensor: update.dW_OI for update in injection}
    for out_times, expected in ((1, y), (2, theirs)):
        base = ATTENTION.base()
        with torch.no_grad():
            base.attn.in_proj_weight += changes["attn.in_proj_weight"]
            base.attn.out_proj.weight += out_times * changes["attn.out_proj.weight"]
        assert_close(base(x), expected, rtol=0, atol=TOLERANCE)
    assert_close(twins.merged()(x), theirs, rtol=0, atol=TOLERANCE)


def test_attention_s_matrices_are_targets_of_their_own_and_not_in_peft():
    base, x = ATTENTION.base(), ATTENTION.inputs(0)
    model = copy.deepcopy(base)
    injection = inject(model, "lora", target_modules=["attn.out_proj"], rank=4)
    perturb(injection)
    (update,) = injection
    W_OI = base.attn.out_proj.weight + update.dW_OI
    expected = functional_call(base, {"attn.out_proj.weight": W_OI}, (x,))
    assert_close(model(x), expected, rtol=0, atol=TOLERANCE)
    theirs = peft_model(copy.deepcopy(base), r=4, target_modules=["out_proj"], init_lora_weights=False)
    assert_close(theirs(x), base(x), rtol=0, atol=TOLERANCE)
    both = [n for n, _ in peft_model(base, target_modules=["attn"]).named_parameters() if "lora_A" in n]
    assert len(both) == 2
    apart_qkv = Attends(kdim=12, vdim=10)
    assert len(inject(apart_qkv, "lora", target_modules=["k_proj_weight", "v_proj_weight"])) == 2
    with pytest.raises(ValueError, match="same embed"):
        peft_model(Attends(kdim=12, vdim=10), target_modules=["attn"])


def test_forward_passes_change_peft_s_frozen_attention_and_not_ours():
    twins, before = twins_of(ATTENTION), ATTENTION.base().attn.in_proj_weight
    for twins.step in range(10):
        twins.outputs()
    ours = twins.ours.attn.parametrizations.in_proj_weight.original
    assert torch.equal(ours, before)
    assert not torch.equal(twins.theirs.base_model.model.attn.base_layer.in_proj_weight, before)


def test_dropout_on_attention_is_refused_and_peft_ignores_it():
    with pytest.raises(ValueError, match=r"lora_dropout=0\.5 has no meaning on attn\.in_proj_weight"):
        inject(Attends(), "lora", target_modules=ATTENTION.ours, lora_dropout=0.5)
    theirs = peft_model(
        ATTENTION.base(), r=4, init_lora_weights=False, lora_dropout=0.5, **ATTENTION.theirs
    ).train()
    x = ATTENTION.inputs(0)
    assert_close(theirs(x), theirs(x), rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="lora_dropout"):
        peft_model(MIXTRAL.base(), lora_dropout=0.5, **MIXTRAL.theirs)


def test_llama4_starts_with_a_zero_b_and_peft_with_a_zero_a():
    base = LLAMA_4.base()
    injection = inject(copy.deepcopy(base), "lora", target_modules=LLAMA_4.ours, rank=4)
    pairs = pairs_of(LLAMA_4, injection, peft_model(base, r=4, **LLAMA_4.theirs))
    for pair, name in zip(pairs, ["A_RI", "B_OR"] * len(injection), strict=True):
        assert pair.ours.any() == (name == "A_RI")
        assert pair.read(pair.theirs).any() == (name == "B_OR")


def table():
    """The parity table in Markdown."""
    lines = ["| case | outputs | gradients | after ten steps | merged |", "|---|---|---|---|---|"]
    for case, make in CASES.items():
        d = measure(make())
        lines.append(f"| {case} | {d.outputs:.1e} | {d.gradients:.1e} | {d.ten_steps:.1e} | {d.merged:.1e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"Largest absolute differences from PEFT {peft.__version__} and loralib, float32, AdamW at 1e-2.\n")
    print(table() + "\n\n\\* PEFT's mistake (see DIFFERENCES) is put right first.")
