"""Compare two models' logits on a fixed batch."""

from typing import Any

import torch


def batch(network: Any) -> dict[str, Any]:
    """Two rows of 16 token ids that depend on vocabulary and end token alone, as keyword arguments.

    Each row has its end token at its end and nowhere else: there some heads read (T5's, BART's).
    """
    vocabulary, end = network.get_input_embeddings().weight.shape[0], network.config.eos_token_id
    ids = (torch.arange(32).view(2, 16) * 7919 + 11) % vocabulary
    if isinstance(end, int) and 0 <= end < vocabulary:
        ids[ids == end] = (end + 1) % vocabulary
        ids[:, -1] = end
    more = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def logits(network: Any, inputs: dict[str, Any] | None = None) -> torch.Tensor:
    """The logits in float32, in evaluation mode, of `inputs` or else of `batch(network)`."""
    with torch.no_grad():
        output: torch.Tensor = network.eval()(**(batch(network) if inputs is None else inputs)).logits
    return output.float()
