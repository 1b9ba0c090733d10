"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al., EMNLP 2021)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from lora_zoo.core.init import is_blank
from lora_zoo.core.seeding import generator, normal, uniform
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.virtual_tokens import VirtualTokenFormat
from lora_zoo.variants.soft.prompted import Prompted
from lora_zoo.variants.soft.virtual_tokens import Stored, VirtualTokens, words

DRAWS = {"uniform": (uniform, 0.5), "normal": (normal, 1.0)}


class PromptTuningHooks(Prompted):
    def __init__(
        self,
        adapters: Mapping[str, Any],
        *,
        rank: int = 20,
        start: Literal["normal", "uniform", "vocabulary"] = "normal",
        tokens: Sequence[int] = (),
    ) -> None:
        super().__init__(adapters)
        self.rank = rank

    @classmethod
    def made(cls, model: Any, like: Tensor, seed: int, hyper: Mapping[str, Any]) -> Stored:
        rank, start, tokens = (hyper[key] for key in ("rank", "start", "tokens"))
        if tokens and start != "vocabulary":
            raise ValueError(f"prompt_tuning: tokens={list(tokens)} are words, and start={start} takes none")
        words_R, P = words(model, rank, seed, tokens), like.new_zeros(rank, cls.width(model))
        if is_blank():
            return Stored(P)
        if start == "vocabulary":
            return Stored(P.copy_(model.get_input_embeddings()(words_R).detach()))
        draw, size = DRAWS[start]
        return Stored(P.copy_(draw(len(P), P.shape[1], size, generator("init", seed, "shared", "P"))))


@register("prompt_tuning")
class PromptTuning(VirtualTokens):
    """§2: R = `rank` virtual tokens stand before the input, and their embeddings P train: R D parameters.

    They start from PEFT's N(0, 1), §2.1's U(-0.5, 0.5), or as words: drawn from the whole vocabulary (in the
    paper the 5,000 most common ones), or of `tokens`, ids that are repeated as often as needed (PEFT's text).
    """

    title = "Prompt tuning"
    paper = "arXiv:2104.08691"
    equation = "W' = W, the input [P; x], P (R, D) trained"
    hooks = PromptTuningHooks
    peft = VirtualTokenFormat(
        "PROMPT_TUNING",
        "prompt_tuning",
        idle=(
            "prompt_tuning_init",
            "prompt_tuning_init_text",
            "tokenizer_name_or_path",
            "tokenizer_kwargs",
        ),
    )

    @classmethod
    def trainable_beside(cls, model: Any, hyper: Mapping[str, Any]) -> int:
        return int(hyper["rank"]) * cls.hooks.width(model)
