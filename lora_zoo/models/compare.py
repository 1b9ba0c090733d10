"""The same question to two models: what an adapter's change of format or place did to the logits."""

from typing import Any

import torch


def batch(network: Any) -> dict[str, Any]:
    """Two rows of 16 token ids that depend on the vocabulary's size alone, as keyword arguments."""
    vocabulary = network.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(32).view(2, 16) * 7919 + 11) % vocabulary
    more = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def logits(network: Any, asked: dict[str, Any] | None = None) -> torch.Tensor:
    """The logits in float32, in evaluation mode, of `asked` or else of `batch(network)`."""
    with torch.no_grad():
        answered: torch.Tensor = network.eval()(**(batch(network) if asked is None else asked)).logits
    return answered.float()
