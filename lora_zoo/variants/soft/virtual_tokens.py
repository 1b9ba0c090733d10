"""Virtual tokens: what is trained stands before a model's input, and in no matrix.

Shapes: B sequences, L tokens, R virtual tokens, D the width of an embedding.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Variant
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.seeding import generator

OF_SEQUENCES = ("ForSequenceClassification", "ForMultipleChoice")
"""The ends of the names of transformers' models with one answer a sequence."""


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
        cache = named.get("cache", named.get("past_key_values"))
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


class Prompted(VirtualTokenHooks):
    """Puts a prompt P (R, D), what `common()` gives, before the tokens' embeddings."""

    @classmethod
    def sizes(cls, model: Any) -> dict[str, int]:
        config = model.config.get_text_config()
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        return {"token_dim": cls.width(model), "num_layers": layers, "num_attention_heads": heads}

    @classmethod
    def width(cls, model: Any) -> int:
        return int(model.get_input_embeddings().weight.shape[1])

    def place(self, named: dict[str, Any], x: Tensor) -> None:
        words_BLD = self.model.get_input_embeddings()(x) if x.ndim == 2 else x  # type: ignore[operator]
        P_RD = self.prompt().to(words_BLD)
        named["inputs_embeds"] = torch.cat([P_RD.expand(len(x), -1, -1), words_BLD], dim=1)
        named["input_ids"] = None
        if (types_BL := named.get("token_type_ids")) is not None:
            named["token_type_ids"] = nn.functional.pad(types_BL, (self.rank, 0))
        for key in ("position_ids", "cache_position"):
            if (places := named.get(key)) is not None:
                first = torch.arange(self.rank, device=places.device).expand(*places.shape[:-1], -1)
                named[key] = torch.cat([first, places], dim=-1)
        if not self._read_first:
            self.longer = self.rank + x.shape[1]

    def prompt(self) -> Tensor:
        """P (R, D)."""
        assert self.common is not None
        P_RD: Tensor = self.common()
        return P_RD

    @property
    def _read_first(self) -> bool:
        """True where the head reads the first position, whatever stands there."""
        return type(self.model).__name__.endswith(OF_SEQUENCES) and not causal(self.backbone)

    @torch.no_grad()
    def law(self) -> None:
        """What stands under the head is the base's, of an input with P before its embeddings."""
        embed: Any = self.model.get_input_embeddings()
        ids_BL = torch.arange(6, device=embed.weight.device).view(2, 3)
        found = self.backbone(input_ids=ids_BL).last_hidden_state
        self.switch(False)
        whole_BND = torch.cat([self.prompt().to(embed.weight.dtype).expand(2, -1, -1), embed(ids_BL)], dim=1)
        expected = self.backbone(inputs_embeds=whole_BND).last_hidden_state
        self.switch(True)
        torch.testing.assert_close(found, expected[:, expected.shape[1] - found.shape[1] :])
        assert found.shape[1] == (3 + self.rank if self._read_first else 3)


def backbone_of(model: Any) -> nn.Module:
    """The part of a model of transformers' under its head. ValueError for any other model."""
    config = getattr(model, "config", None)
    if not (hasattr(model, "base_model") and hasattr(model, "get_input_embeddings")):
        raise ValueError(
            f"virtual tokens are put before the embeddings of a model of transformers', and a "
            f"{type(model).__name__} is none"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"a {type(model).__name__} has an encoder and a decoder: virtual tokens go into one part alone"
        )
    backbone: nn.Module = model.base_model
    return backbone


def causal(backbone: nn.Module) -> bool:
    """True where a token sees those before it alone."""
    return any(getattr(module, "is_causal", False) for module in backbone.modules())


def without_first(output: Any, rank: int, length: int) -> Any:
    """A model's output without the first positions of all states (B, `length`, …) in it."""
    if isinstance(output, Tensor):
        return output[:, rank:] if output.ndim == 3 and output.shape[1] == length else output
    if isinstance(output, dict):  # transformers' ModelOutput, whose items are its attributes
        for key, value in list(output.items()):
            output[key] = without_first(value, rank, length)
    elif isinstance(output, tuple):
        return tuple(without_first(value, rank, length) for value in output)
    return output


def words(model: Any, rank: int, seed: int, tokens: Sequence[int]) -> Tensor:
    """The ids (R,) of `tokens`, repeated as often as needed, or of words drawn from the whole vocabulary."""
    vocabulary_VD = model.get_input_embeddings().weight
    if wrong := [token for token in tokens if not 0 <= token < len(vocabulary_VD)]:
        raise ValueError(f"tokens must lie between 0 and {len(vocabulary_VD) - 1}; got {wrong[0]}")
    drawn_R1 = torch.rand(rank, 1, generator=generator("init", seed, "shared", "words"), dtype=torch.float64)
    drawn = (drawn_R1[:, 0] * len(vocabulary_VD)).long().tolist()
    ids = [tokens[place % len(tokens)] for place in range(rank)] if tokens else drawn
    return torch.tensor(ids, device=vocabulary_VD.device)
