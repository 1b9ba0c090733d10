"""Virtual tokens: what is trained stands before a model's input, and in no matrix.

Shapes: B sequences, L tokens, R virtual tokens.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Variant
from lora_zoo.core.caches import cache_of
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.seeding import generator
from lora_zoo.injection.backbone import backbone_of, without_first


class VirtualTokenHooks(AdapterHooks, ABC):
    """Hooks on the part of a model under its head: the head never sees the virtual tokens.

    Labels, losses and logits are those of the tokens that were sent; PEFT's loss also has the first of them,
    foretold by the last virtual one. An encoder's classifier of sequences reads the first position, in PEFT
    and here a virtual token. Later steps of a generation find the virtual tokens in the cache.
    """

    rank: int
    handles: tuple[Any, ...] = ()
    longer = 0

    @property
    def backbone(self) -> nn.Module:
        return backbone_of(self.model)

    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> nn.Module:
        model = hyper.pop("model")
        cls.check(backbone_of(model))
        return cls.made(model, like, seed, hyper)

    @classmethod
    def check(cls, backbone: Any) -> None:
        """ValueError for a model that cannot take such virtual tokens."""
        if "inputs_embeds" not in inspect.signature(backbone.forward).parameters:
            raise ValueError(
                f"a {type(backbone).__name__} takes no `inputs_embeds`: no prompt can be put there"
            )

    @classmethod
    @abstractmethod
    def made(cls, model: Any, like: Tensor, seed: int, hyper: Mapping[str, Any]) -> nn.Module:
        """The trained module, on the device and in the dtype of `like`: called, it gives (R, width)."""

    @classmethod
    @abstractmethod
    def sizes(cls, model: Any) -> dict[str, int]:
        """The width of a virtual token at each place, the layers and the heads, by PEFT's names."""

    @classmethod
    @abstractmethod
    def width(cls, model: Any) -> int:
        """The numbers of a virtual token at all of its places."""

    def virtual(self) -> Tensor:
        """The virtual tokens (R, width)."""
        assert self.common is not None
        P: Tensor = self.common()
        return P

    @abstractmethod
    def place(self, named: dict[str, Any], x: Tensor) -> None:
        """Put the virtual tokens into the backbone's arguments, of which `x` (B, L, …) is the input.

        The mask and the positions that were given make room for them already.
        """

    def switch(self, on: bool) -> None:
        for handle in self.handles:
            handle.remove()
        before, after = self.backbone.register_forward_pre_hook, self.backbone.register_forward_hook
        # The last of several hooks before is the first after.
        both = (before(self._before, with_kwargs=True), after(self._after, prepend=True)) if on else ()
        self.handles = both

    def _before(self, backbone: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        names = inspect.signature(backbone.forward).parameters
        named = {**dict(zip(names, given, strict=False)), **named}
        x = named["input_ids"] if named.get("inputs_embeds") is None else named["inputs_embeds"]
        cache = cache_of(named)
        past, self.longer = 0 if cache is None else cache.get_seq_length(), 0
        if (mask := named.get("attention_mask")) is not None:
            named["attention_mask"] = self._with_room(mask, past + x.shape[1] - (self.rank if past else 0))
        for key in ("position_ids", "cache_position"):
            if named.get(key) is not None:
                named[key] = named[key] + self.rank
        if not past:
            self.place(named, x)
        return (), named

    def _with_room(self, mask_BL: Tensor, length: int) -> Tensor:
        """The mask with R ones in front. ValueError for one that is not of `length` tokens."""
        if mask_BL.ndim != 2:
            raise ValueError(
                f"virtual tokens need an attention mask of each token, as (sequences, tokens); got "
                f"{tuple(mask_BL.shape)}: a static cache cannot be used with them"
            )
        if mask_BL.shape[1] != length:
            raise ValueError(
                f"the attention mask is of {mask_BL.shape[1]} tokens; input and cache hold {length} beside "
                f"the {self.rank} virtual ones: this cache is of another model"
            )
        return torch.cat([mask_BL.new_ones(len(mask_BL), self.rank), mask_BL], dim=1)

    def _after(self, backbone: Any, given: Any, output: Any) -> Any:
        return without_first(output, self.rank, self.longer) if self.longer else output


class VirtualTokens(Variant, ABC):
    """Trains virtual tokens, and adapts no matrix."""

    count: ClassVar[str] = ""
    adapts: ClassVar[bool] = False
    pointwise: ClassVar[bool] = False
    by_row: ClassVar[str] = "puts its virtual tokens before each row"
    identity_at_start: ClassVar[bool] = False

    @classmethod
    def virtual_tokens(cls, hyper: Mapping[str, Any]) -> int:
        return int(hyper["rank"])


class Stored(nn.Module):
    """Virtual tokens P (R, width) that train as they are."""

    def __init__(self, P: Tensor) -> None:
        super().__init__()
        self.P = nn.Parameter(P)

    def forward(self) -> Tensor:
        return self.P


def words(model: Any, rank: int, seed: int, tokens: Sequence[int]) -> Tensor:
    """The ids (R,) of `tokens`, repeated as often as needed, or of words drawn from the whole vocabulary."""
    vocabulary_VD = model.get_input_embeddings().weight
    if wrong := [token for token in tokens if not 0 <= token < len(vocabulary_VD)]:
        raise ValueError(f"tokens must lie between 0 and {len(vocabulary_VD) - 1}; got {wrong[0]}")
    drawn_R1 = torch.rand(rank, 1, generator=generator("init", seed, "shared", "words"), dtype=torch.float64)
    drawn = (drawn_R1[:, 0] * len(vocabulary_VD)).long().tolist()
    ids = [tokens[place % len(tokens)] for place in range(rank)] if tokens else drawn
    return torch.tensor(ids, device=vocabulary_VD.device)
