"""Prompts: virtual tokens that are embeddings before those of the input.

Shapes: B sequences, L tokens, R virtual tokens, N of both, D the width of an embedding.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.injection.backbone import causal
from lora_zoo.variants.soft.virtual_tokens import VirtualTokenHooks

OF_SEQUENCES = ("ForSequenceClassification", "ForMultipleChoice")
"""The ends of the names of transformers' models with one answer a sequence."""


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
        model: Any = self.model
        words_BLD = model.get_input_embeddings()(x) if x.ndim == 2 else x
        P_RD = self.virtual().to(words_BLD)
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

    @property
    def _read_first(self) -> bool:
        """True where the head reads the first position, whatever stands there."""
        return type(self.model).__name__.endswith(OF_SEQUENCES) and not causal(self.backbone)

    @torch.no_grad()
    def law(self) -> None:
        """Equal the base under its head, of an input with P before its embeddings."""
        model: Any = self.model
        embed = model.get_input_embeddings()
        ids_BL = torch.arange(6, device=embed.weight.device).view(2, 3)
        found = self.backbone(input_ids=ids_BL).last_hidden_state
        self.switch(False)
        whole_BND = torch.cat([self.virtual().to(embed.weight.dtype).expand(2, -1, -1), embed(ids_BL)], dim=1)
        expected = self.backbone(inputs_embeds=whole_BND).last_hidden_state
        self.switch(True)
        torch.testing.assert_close(found, expected[:, expected.shape[1] - found.shape[1] :])
        assert found.shape[1] == (3 + self.rank if self._read_first else 3)
