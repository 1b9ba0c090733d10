"""Compare two models' logits on a fixed batch."""

from typing import Any

import torch

OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")


def batch(network: Any) -> dict[str, Any]:
    """Two rows of 16 token ids that depend on the vocabulary's size alone, as keyword arguments."""
    vocabulary = network.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(32).view(2, 16) * 7919 + 11) % vocabulary
    more = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def logits(network: Any, inputs: dict[str, Any] | None = None) -> torch.Tensor:
    """The outputs in float32, in evaluation mode, of `inputs` or else of `batch(network)`: logits if any.

    An extractive reader's logits of start and end are stacked; a model without a head has hidden states.
    """
    with torch.no_grad():
        output = network.eval()(**(batch(network) if inputs is None else inputs))
    found = [output[key] for key in OUTPUTS if key in output]
    return (torch.stack(found) if "start_logits" in output else found[0]).float()
