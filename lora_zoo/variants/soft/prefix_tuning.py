"""Prefix-tuning: Optimizing Continuous Prompts for Generation (Li and Liang, ACL 2021).

Shapes: B sequences, L tokens, R virtual tokens, n layers, H heads of keys, d the width of a head.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.init import is_blank
from lora_zoo.core.seeding import generator, normal
from lora_zoo.core.train_eval import in_mode
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.virtual_tokens import VirtualTokenFormat
from lora_zoo.injection.backbone import backbone_of, cache_key, causal, new_cache, without
from lora_zoo.variants.soft.networks import drawn
from lora_zoo.variants.soft.virtual_tokens import Stored, VirtualTokenHooks, VirtualTokens, words

NOT_RECOMPUTABLE = (
    "puts keys and values into the cache, which layers do not get where activations are recomputed: use "
    "trainer.gradient_checkpointing=false"
)


class Projected(nn.Module):
    """A prefix (R, 2 n H d) of a network: P' through a layer of `hidden` tanh units."""

    def __init__(self, P: Tensor, network: nn.Module, hidden: int) -> None:
        super().__init__()
        self.P, self.network, self.hidden = nn.Parameter(P), network, hidden

    def forward(self) -> Tensor:
        prefix: Tensor = self.network(self.P)
        return prefix


class PrefixHooks(VirtualTokenHooks):
    """Puts keys and values of virtual tokens into the cache of every layer, before any token's."""

    cache: Any = None
    returned = False

    def __init__(
        self,
        adapters: Mapping[str, Any],
        *,
        rank: int = 8,
        start: Literal["auto", "words", "normal"] = "auto",
        projection: bool = False,
        hidden: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(adapters)
        self.rank = rank
        if projection and start == "words":
            raise ValueError(
                "prefix_tuning: start=words is of keys and values, and projection=true of a network"
            )
        if hidden != "auto" and (hidden < 1 or not projection):
            raise ValueError(f"prefix_tuning: hidden={hidden} must be 1 or more, and needs projection=true")

    @classmethod
    def check(cls, backbone: Any) -> None:
        if not cache_key(backbone):
            raise ValueError(f"a {type(backbone).__name__} takes no cache of keys and values to fill")

    @classmethod
    def sizes(cls, model: Any) -> dict[str, int]:
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return {"token_dim": heads * d, "num_layers": config.num_hidden_layers, "num_attention_heads": heads}

    @classmethod
    def width(cls, model: Any) -> int:
        sizes = cls.sizes(model)
        return 2 * sizes["num_layers"] * sizes["token_dim"]

    @classmethod
    def made(cls, model: Any, like: Tensor, seed: int, hyper: Mapping[str, Any]) -> nn.Module:
        rank, wide, narrow = hyper["rank"], cls.width(model), cls.sizes(model)["token_dim"]
        P = like.new_zeros(rank, narrow if hyper["projection"] else wide)
        if not is_blank():
            P.copy_(normal(len(P), P.shape[1], 1.0, generator("init", seed, "shared", "P")))
        if hyper["projection"]:
            hidden = narrow if hyper["hidden"] == "auto" else hyper["hidden"]
            layers = nn.Linear(narrow, hidden, device="meta"), nn.Linear(hidden, wide, device="meta")
            network = drawn(nn.Sequential(layers[0], nn.Tanh(), layers[1]), like, seed)
            return Projected(P, network, hidden)
        if hyper["start"] == "normal" or is_blank():
            return Stored(P)
        return Stored(P.copy_(of_words(model, words(model, rank, seed, ()))))

    def place(self, named: dict[str, Any], x: Tensor) -> None:
        if any(getattr(module, "gradient_checkpointing", False) for module in self.backbone.modules()):
            raise ValueError(f"prefix_tuning {NOT_RECOMPUTABLE}")
        key, mask_BN = cache_key(self.backbone), named.get("attention_mask")
        default = getattr(self.model.config, "use_cache", True)
        asked = default if named.get("use_cache") is None else named["use_cache"]
        self.returned = (asked and causal(self.backbone)) or named.get(key) is not None
        self.cache = named[key] = filled(self.model, self.virtual(), len(x), named.get(key))
        if mask_BN is not None and not causal(self.backbone):
            weight: Any = self.model.get_input_embeddings().weight  # type: ignore[operator]
            none_BHLN = weight.new_zeros(len(x), 1, x.shape[1], mask_BN.shape[1])
            lowest = torch.finfo(weight.dtype).min
            named["attention_mask"] = none_BHLN.masked_fill(mask_BN[:, None, None] == 0, lowest)

    def _after(self, backbone: Any, given: Any, output: Any) -> Any:
        """Take out a cache that nobody asked for. ValueError where the layers have left it as it was."""
        cache, self.cache = self.cache, None
        if cache is not None and cache.get_seq_length() == self.rank:
            raise ValueError(f"a {type(backbone).__name__} leaves its cache as it was: no prefix reaches it")
        return output if cache is None or self.returned else without(output, cache)

    @torch.no_grad()
    def law(self) -> None:
        """Be a set: in any order, these keys and values in the base's cache give the same."""
        P, key = self.virtual(), cache_key(self.backbone)
        ids_BL = torch.arange(6, device=P.device).view(2, 3)
        found = self.backbone(input_ids=ids_BL).last_hidden_state
        self.switch(False)
        cache = filled(self.model, P.flip(0), 2)
        expected = self.backbone(input_ids=ids_BL, **{key: cache}).last_hidden_state
        self.switch(True)
        assert found.shape[1] == 3 and len(P) == self.rank
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@register("prefix_tuning")
class PrefixTuning(VirtualTokens):
    """§4: keys and values P of R = `rank` virtual tokens train in every layer: 2 n R H d parameters.

    They start as those of words that are drawn from the vocabulary (§7.4), or from PEFT's N(0, 1).
    `projection` is §4.3: P is what a network of `hidden` tanh units makes of R trained rows as wide as a
    layer's keys; PEFT's files, and what is read of them, hold P alone.
    """

    title = "Prefix-tuning"
    paper = "arXiv:2101.00190"
    equation = "W' = W, keys [P_K; K] and values [P_V; V] in each layer, P (R, 2 n H d) trained"
    hooks = PrefixHooks
    not_recomputable = NOT_RECOMPUTABLE
    peft = VirtualTokenFormat(
        "PREFIX_TUNING",
        "prefix_tuning",
        fields={"projection": "prefix_projection", "hidden": "encoder_hidden_size"},
    )

    @classmethod
    def trainable_beside(cls, model: Any, hyper: Mapping[str, Any]) -> int:
        R, wide, narrow = hyper["rank"], PrefixHooks.width(model), PrefixHooks.sizes(model)["token_dim"]
        if not hyper["projection"]:
            return int(R * wide)
        hidden = narrow if hyper["hidden"] == "auto" else hyper["hidden"]
        return int(R * narrow + hidden * (narrow + 1) + wide * (hidden + 1))


def filled(model: Any, P: Tensor, sequences: int, cache: Any = None) -> Any:
    """`cache`, or a new one, with the keys and values P (R, 2 n H d) for so many sequences."""
    cache = new_cache(model) if cache is None else cache
    sizes, like = PrefixHooks.sizes(model), model.get_input_embeddings().weight
    heads = sizes["num_attention_heads"]
    both = P.to(like).view(len(P), 2 * sizes["num_layers"], heads, -1).permute(1, 2, 0, 3)
    for layer, (K_HRd, V_HRd) in enumerate(zip(both[::2], both[1::2], strict=True)):
        cache.update(*(one.expand(sequences, -1, -1, -1) for one in (K_HRd, V_HRd)), layer)
    return cache


@torch.no_grad()
def of_words(model: Any, words_R: Tensor) -> Tensor:
    """The keys and values (R, 2 n H d) that a model has for these words at its first positions."""
    backbone, cache = backbone_of(model), new_cache(model)
    with in_mode(model, training=False):
        backbone(input_ids=words_R[None], **{cache_key(backbone): cache})
    both = torch.cat([states for layer in cache.layers for states in (layer.keys, layer.values)])
    return both.permute(2, 0, 1, 3).flatten(1)
