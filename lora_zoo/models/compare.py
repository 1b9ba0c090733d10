"""Compare two models' logits on a fixed batch."""

import math
from typing import Any

import torch

OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")


def batch(network: Any) -> dict[str, Any]:
    """Two rows of 16 token ids that depend on vocabulary and end token alone, two images or sounds: keywords.

    Each row has its end token at its end and nowhere else: there some heads read (T5's, BART's).
    """
    if network.main_input_name == "pixel_values":
        size, channels = network.config.image_size, getattr(network.config, "num_channels", 3)
        height, width = (size, size) if isinstance(size, int) else size
        return {
            "pixel_values": torch.arange(2 * channels * height * width).sin().view(2, channels, height, width)
        }
    if network.main_input_name == "input_values":  # a wave, or the spectrogram of one
        bins = getattr(network.config, "num_mel_bins", None)
        shape = (network.config.max_length, bins) if bins else (16000,)
        return {"input_values": torch.arange(2 * math.prod(shape)).sin().view(2, *shape)}
    vocabulary, end = network.get_input_embeddings().weight.shape[0], network.config.eos_token_id
    ids = (torch.arange(32).view(2, 16) * 7919 + 11) % vocabulary
    if isinstance(end, int) and 0 <= end < vocabulary:
        ids[ids == end] = (end + 1) % vocabulary
        ids[:, -1] = end
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
