"""The interface of every variant: a pure map from the frozen matrix W to the effective matrix W' = weight(W).

Forward, merging, ΔW = W' - W, spectra, export, parameter counts and nearly all tests follow from `weight`; a
variant overrides `forward` only to compute the same value faster.
Shapes: O out, I in, R rank; W is (O, I) whatever the layer's own layout.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_zoo.core.dropout import Dropout, ForwardCounter
from lora_zoo.core.dtypes import at_least_float32, cast, uncast, wide
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.host import Host, LayerHost
from lora_zoo.core.hyperparameters import counted
from lora_zoo.core.init import Factors, Init, Recoding, find_init, initial_factors, is_blank
from lora_zoo.core.kernel import KERNELS, Kernel, hooked
from lora_zoo.core.recomputation import in_backward
from lora_zoo.core.seeding import flat, generator, normal, uniform
from lora_zoo.core.statistics import ORIGINAL, Statistics


@dataclass(frozen=True)
class LayerContext:
    """The place of an adapter, and all that it may know: its draws depend on `name` and `seed` alone.

    `role` is the matrix's (q, k, v, o, gate, up, down, embed, head) or "" where it plays none; `statistics`
    of data are those that the variant and its initialisation need.
    """

    name: str
    host: Host
    seed: int
    counter: ForwardCounter
    shared: nn.Module | None = None
    statistics: Statistics = field(default_factory=dict)
    role: str = ""
    drawn: set[str] = field(default_factory=set, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.host.shape

    def full(self, shape: tuple[int, ...], value: float = 0.0) -> Tensor:
        """A constant on the device of W, in float32 or wider: what a trained tensor is made of."""
        like = self.host.like
        return like.new_full(shape, value, dtype=at_least_float32(like.dtype))

    def uniform(self, purpose: str, shape: tuple[int, ...], bound: float) -> Tensor:
        """U(-bound, bound), where and as `full`; the first rows of a taller draw are the same numbers.

        Each `purpose` has a stream of its own. ValueError where it is drawn twice.
        """
        return self._drawn(purpose, shape, lambda source: uniform(*flat(shape), bound, source))

    def normal(self, purpose: str, shape: tuple[int, ...], std: float) -> Tensor:
        """N(0, std²), as `uniform`."""
        return self._drawn(purpose, shape, lambda source: normal(*flat(shape), std, source))

    def _drawn(
        self, purpose: str, shape: tuple[int, ...], draw: Callable[[torch.Generator], Tensor]
    ) -> Tensor:
        if purpose in self.drawn:
            raise ValueError(f"{self.name}: {purpose!r} is drawn twice, as the same numbers; name them apart")
        self.drawn.add(purpose)
        made = self.full(shape)
        if not is_blank():
            made.copy_(draw(generator("init", self.seed, self.name, purpose)).view(shape))
        return made

    def first_factors(
        self, init: str, *, rank: int, scale: float, part: str = "", recoding: Recoding | None = None
    ) -> tuple[Factors, bool]:
        """The factors with which `init` begins here, and if it is residual; a `part` has draws of its own.

        `recoding` is for an adapter that keeps the factors of which such a start has made codes.
        """
        name = f"{self.name} {part}" if part else self.name
        return initial_factors(
            init,
            self.host.matrix(),
            rank=rank,
            scale=scale,
            seed=self.seed,
            matrix=name,
            statistics=self.statistics,
            recoding=recoding,
        )

    def recoding(self, init: str, *, scale: float) -> Recoding | None:
        """The hand of an `init` that gives the layer other codes; None for others, or where none is drawn."""
        if is_blank() or not find_init(init).recodes or ORIGINAL not in self.statistics:
            return None
        original_OI = wide(self.statistics[ORIGINAL]).to(self.host.like.device)
        return Recoding(self.host.coder, original_OI, scale)

    def dropout(self, p: float) -> Dropout:
        """Dropout with masks of this site's own. ValueError unless 0 <= p < 1, 0 where there is no input."""
        if p and not self.host.sees_input:
            raise ValueError(
                f"lora_dropout={p} has no meaning on {self.name}: its module reads the weight by itself, "
                "so that the adapter never sees the input; use lora_dropout=0 or exclude_modules"
            )
        return Dropout(p, seed=self.seed, name=self.name, counter=self.counter)


class Variant(ABC):
    """Anything that the registry holds, from a matrix's adapter to full fine-tuning."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The name as people write it, where the class is not called so (LoRA+)."""
    baseline: ClassVar[bool] = False
    """True for what adapters are measured against: reports draw it as a line."""
    paper: ClassVar[str]
    equation: ClassVar[str]
    count: ClassVar[str]
    """Trainable parameters per adapted matrix, as an expression in O, I, R, role and the hyperparameters."""
    pointwise: ClassVar[bool] = True
    """True if the output is `apply(x, weight(W))`. False (a router): there is no `weight`, so no ΔW, merge,
    spectra or export as LoRA."""
    identity_at_start: ClassVar[bool] = True
    """False where the paper's own start changes the model: W' is near W at step 0, and not W."""
    sized_by: ClassVar[str] = "rank"
    """The hyperparameter that `budget=` finds."""
    targets: ClassVar[Sequence[str]] = ("q", "v")
    """What `target_modules=auto` means."""
    preset_of: ClassVar[str] = ""
    """The variant of which this is a second name, with other defaults; "" for a variant of its own."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of hyperparameters, where they are not those of the constructors."""
    inits: ClassVar[Sequence[str]] = ()
    """The initialisations that the variant can begin with, unless `accepts_init` says it another way."""
    needs: ClassVar[Sequence[str]] = ()
    """Statistics of data at each matrix (`core.statistics.STATISTICS`) from which adapters are built."""
    hooks: ClassVar[type[AdapterHooks]] = AdapterHooks
    peft: ClassVar[Any] = None
    """The variant's own form in PEFT (`formats.peft.forms.PeftFormat`); None where it is written as LoRA."""
    made_of: ClassVar[Sequence[str]] = ()
    """The variants whose adapters this one holds, by name: their code is a part of a run's identity."""
    shared_form: ClassVar[str] = ""
    """The variant in which matrices share the factors that this one has in each; "" where there is none."""
    adapts: ClassVar[bool] = True
    """False for a variant that puts no adapter on any matrix."""
    changes_weight: ClassVar[bool] = True
    changes_bias: ClassVar[bool] = False
    """True where the class has a `weight`, a `bias` of its own: both follow from its methods, not stated."""
    adds_bias: ClassVar[bool] = False
    """True where `bias` makes something of nothing: a layer without a bias is merged into one that has it."""

    by_row: ClassVar[str] = ""
    """What it does with each row of a batch as with one example; "" where it sees tokens alone."""
    not_recomputable: ClassVar[str] = ""
    """What it does that rules out recomputed activations (gradient checkpointing); "" where nothing does."""

    @classmethod
    def fully_trained(cls, model: nn.Module, modules_to_save: Sequence[str] | None) -> list[str]:
        """The names of the model's own parameters that train.

        `modules_to_save` are the parameters that the user asked for, None where none were. ValueError where
        there is nothing to train.
        """
        return list(modules_to_save or ())

    @classmethod
    def complete(cls, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """`hyper` with the values that follow from others, once the rank of a matrix is known."""
        return dict(hyper)

    @classmethod
    def of_layer(cls, hyper: Mapping[str, Any], layer: int, layers: int) -> dict[str, Any]:
        """Those of `hyper` that follow from a matrix's depth: its layer, from 0, of so many in its stack."""
        return {}

    @classmethod
    def scale_with(cls, hyper: Mapping[str, Any]) -> float | None:
        """The scale s of the update of a matrix with these complete hyperparameters; None without a scale."""
        return None

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        """The reason why a matrix (O, I) of a layer of this `kind` cannot be adapted, None if it can be.

        `hyper` is complete; asked before the model is changed.
        """
        return None

    @classmethod
    def misplaced(cls, model: nn.Module, roles: Mapping[str, str]) -> dict[str, str]:
        """Matrix -> the reason why it cannot be adapted where it lies in the model, whatever its layer.

        `roles` are those of all matrices that are to be adapted; asked before the model is changed.
        """
        return {}

    @classmethod
    def unfit(cls, host: Host, hyper: Mapping[str, Any]) -> str | None:
        """The reason why the matrix of `host` cannot be adapted: `refusal`'s, its size, or its bias."""
        shape = host.shape
        if reason := cls.refusal(host.kind, shape, hyper):
            return reason
        most = cls.largest_rank(shape, hyper)
        if most is not None and not 1 <= hyper[cls.sized_by] <= most:
            end = "the smaller side" if most == min(shape) else most
            return f"{cls.sized_by} must lie between 1 and {end}; got {hyper[cls.sized_by]}"
        if cls.changes_bias and host.sealed_bias:
            return f"its module adds {host.sealed_bias} by itself, and this variant changes the bias as well"
        if cls.adds_bias and not host.can_have_bias:
            return "it cannot have a bias, which this variant would give it"
        return None

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        """Trainable parameters over all matrices, each (O, I) with its complete hyperparameters and `role`.

        By default the sum of `count`; a variant with shared tensors counts them once.
        """
        return sum(counted(cls, shape, hyper) for shape, hyper in matrices)

    @classmethod
    def trainable_beside(cls, model: nn.Module, hyper: Mapping[str, Any]) -> int:
        """Trainable parameters that belong to no matrix, and depend on the model: a prompt's, say."""
        return 0

    @classmethod
    def virtual_tokens(cls, hyper: Mapping[str, Any]) -> int:
        """The positions of the model that it takes for itself, before those of the input."""
        return 0

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        """The greatest value of `sized_by` that a matrix (O, I) takes; None where there is no such limit."""
        return None

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        """True if the variant can begin with `init`."""
        return init.family in cls.inits

    @classmethod
    def require_weight(cls, action: str) -> None:
        """Raise ValueError, saying that `action` is impossible, for a variant without an effective weight."""
        if not cls.pointwise:
            raise ValueError(
                f"{cls.name} has no effective weight, as its output is no product of x with one matrix: "
                f"it cannot be {action}"
            )


class Adapter(nn.Module, Variant):
    """One adapted matrix. A subclass's keyword-only arguments are its hyperparameters."""

    kernel: ClassVar[str] = ""
    """The name of the kernel (`lora_zoo.kernels`) that computes `forward` faster; "" where there is none."""
    dropout: Dropout

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.matrix_name = context.name
        plain = self.changes_bias or not self.kernel  # kernels add the layer's own bias
        self.fused: Kernel | None = None if plain else KERNELS.find(self.kernel)()
        self.counter = context.counter

    assigned: int = 0
    """The number of assignments to attributes so far, in eager mode: a weight may depend on each of them."""

    @property
    def varies(self) -> bool:
        """True while a pass of the model uses several of its weights, so that none can be formed once."""
        return False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not torch.compiler.is_compiling():
            vars(self)["assigned"] = self.assigned + 1

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.changes_weight = not cls.pointwise or cls.weight is not Adapter.weight
        cls.changes_bias = cls.bias is not Adapter.bias

    def weight(self, W_OI: Tensor) -> Tensor:
        """The effective matrix (O, I): the paper's equation, pure in `W_OI` and the adapter's tensors.

        By default W itself. ValueError for a variant that is not pointwise.
        """
        self.require_weight("written as a matrix")
        return W_OI

    def bias(self, b_O: Tensor) -> Tensor:
        """The effective bias (O,), pure in `b_O` and the adapter's tensors: by default the layer's own.

        `b_O` is zero where the layer has none.
        """
        return b_O

    def changes_bias_of(self, host: Host) -> bool:
        """True if the bias of the adapted rows becomes another, or they get one."""
        return self.changes_bias if host.own_bias is not None else self.adds_bias

    def effective_bias(self, host: Host) -> Tensor:
        """The bias (O,) that the adapted rows have with this adapter."""
        own_O, like = host.own_bias, host.like
        with uncast(like.device):
            return self.bias(like.new_zeros(host.shape[:1]) if own_O is None else own_O)

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        """The layer's output for x with the effective matrix and bias; a faster one adds `bias` itself.

        Where W' would be rounded to fewer bits than float32 has, W is left as it is, and W' - W is rounded.
        So it is where W is of codes, which the layer multiplies in a way of its own.
        """
        W_OI, bias = host.matrix(), self.bias if self.changes_bias else None
        narrow = cast(W_OI.device) or W_OI.dtype != at_least_float32(W_OI.dtype)
        if host.stores_codes or (narrow and self.changes_weight):
            y = host.product(x)
            return host.plus_bias(y + host.times(x, self.change(W_OI)).to(y.dtype), bias)
        with uncast(W_OI.device):
            effective_OI = self.weight(W_OI).to(W_OI.dtype)
        return host.apply(x, effective_OI, bias)

    def change(self, W_OI: Tensor) -> Tensor:
        """W' - W (O, I), in the dtype of W."""
        with uncast(W_OI.device):
            return (self.weight(W_OI) - W_OI).to(W_OI.dtype)

    def output(self, x: Tensor, host: LayerHost) -> Tensor:
        """The adapted layer's output: by the kernel where it serves, else by `forward`."""
        if self.fused is not None and not hooked(self):
            if not (self.training or torch.is_grad_enabled()):
                y = self.fused.lean(self, x, host)
                if y is not None:
                    return y
            operands = self.fused.operands(self)
            if not self.fused.refusal(x, host, operands):
                return self.fused.run(x, host, operands, self.dropout.mask(x))
        return self._beside(x, host) if host.replaced else self(x, host)

    def _beside(self, x: Tensor, host: LayerHost) -> Tensor:
        """The output of a layer whose forward is replaced, and what the adapter changes of W x + bias."""
        base, plain = host.base(x), host.plus_bias(host.product(x))
        return base + (self(x, host.knowing(plain)) - plain).to(base.dtype)

    def path(self, x: Tensor, host: LayerHost) -> str:
        """The way that `output` takes for x: "fused", or "plain" and the reason."""
        if self.fused is None:
            return "plain: there is no kernel"
        if hooked(self):
            return "plain: the adapter has hooks"
        reason = self.fused.refusal(x, host, self.fused.operands(self))
        return f"plain: {reason}" if reason else "fused"

    def emit(self, value: Tensor) -> None:
        """Give a scalar of this pass (a router's balance, say) to the hooks, which find it in `emitted()`."""
        if self.training and torch.is_grad_enabled() and not in_backward():
            self.counter.emitted.append(value)

    def note(self, weights_E: Tensor) -> None:
        """Give the weights (..., E) of its experts in this pass to whoever records them."""
        if self.counter.routing is not None:
            self.counter.routing.add(self.matrix_name, self.counter.tokens(weights_E))

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """(B (O, R), A (R, I)) with ΔW = B A, the scale included; None where ΔW is no such product."""
        return None

    def factor_scale(self) -> float:
        """The scale s that `factors` has in B; 1 where there is none."""
        return 1.0

    def components(self) -> int:
        """The number of components of which `shrink` can drop any; 0 where there are none."""
        return 0

    def shrink(self, index_K: Tensor) -> dict[str, Any]:
        """Drop all components but these, in place, and return the hyperparameters of what is left.

        An adapter that is built with them has the shapes, and the scale, that this one has now. `index_K`
        ascends within `components()`. ValueError for an adapter without components.
        """
        raise ValueError(f"{self.name} has no components that could be dropped one by one")

    def coded(self) -> Factors | None:
        """The factors Aq, Bq of a start that has made the layer's codes, of W - s Bq Aq; None for others."""
        return None

    def law(self, W_OI: Tensor) -> None:
        """Assert what makes this variant itself (called by the conformance suite)."""


class Baseline(Variant, ABC):
    """Trains the model's own parameters, or none, and adapts no matrix."""

    count: ClassVar[str] = ""
    adapts: ClassVar[bool] = False
