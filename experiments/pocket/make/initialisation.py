"""Initial weights with copying built in: heads that find the current word earlier on, and what followed it.

Random initial weights did not learn to copy within a budget of minutes. Letters: O outputs, I inputs (both
the width of the model), D width of a head, H heads.
"""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

EMBEDDING_STD = 0.1
CONSTANT = 4.0
"""The first coordinate of each embedding, in units of EMBEDDING_STD: something to attend by position with."""
POSITION_GAIN = 6.0
MATCH_GAIN = 2.0
PREVIOUS_GAIN = 0.1
COPY_GAIN = 0.4


@torch.no_grad()
def initialise(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    """Writes all weights in place: small noise, then a purpose for two heads each of layers 0, 1 and 2."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, EMBEDDING_STD if "embed" in name else 0.02, generator=generator)
    model.model.embed_tokens.weight[:, 0] = CONSTANT * EMBEDDING_STD
    width, head = model.config.hidden_size, model.config.head_dim
    read_HDI = _orthonormal_rows(4 * head, width, generator).view(4, head, width)
    write_HDI = _orthonormal_rows(2 * head, width, generator).view(2, head, width)
    for index in (0, 1):
        _previous_token(model, index, read_HDI[index], write_HDI[index])
        for layer in (1, 2):
            value_DI = read_HDI[2 * (layer - 1) + index]
            attention = model.model.layers[layer].self_attn
            _copy_what_followed(attention, index, read_HDI[index], write_HDI[index], value_DI)


def _orthonormal_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Rows that do not read or write the constant coordinate."""
    square = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=generator))[0]
    padded = torch.cat([torch.zeros(width - 1, 1), square], dim=1)
    return torch.cat([padded, torch.zeros(1, width)])[:rows]


def _frequencies(model: LlamaForCausalLM) -> Tensor:
    return model.model.rotary_emb.inv_freq.float().cpu()


def _previous_token(model: LlamaForCausalLM, index: int, read_DI: Tensor, write_DI: Tensor) -> None:
    """Attends one position back: rotation makes the score a sum of cosines of (distance - 1) x frequency."""
    attention = model.model.layers[0].self_attn
    frequency = _frequencies(model)
    half, head = len(frequency), 2 * len(frequency)
    start = index * head
    query_OI, key_OI = attention.q_proj.weight, attention.k_proj.weight
    query_OI[start : start + head], key_OI[start : start + head] = 0.0, 0.0
    gain = POSITION_GAIN / CONSTANT
    query_OI[start : start + half, 0] = gain * frequency.cos()
    query_OI[start + half : start + head, 0] = -gain * frequency.sin()
    key_OI[start : start + half, 0] = gain
    attention.v_proj.weight[start : start + head] = read_DI
    attention.o_proj.weight[:, start : start + head] = PREVIOUS_GAIN * write_DI.T


def _copy_what_followed(
    attention: LlamaAttention, index: int, read_DI: Tensor, write_DI: Tensor, value_DI: Tensor
) -> None:
    """Matches this word with the word before earlier positions, on the slow frequencies, and copies."""
    half, head = read_DI.shape[0] // 2, read_DI.shape[0]
    slow = [dim for dim in range(head) if dim % half >= half // 2]
    rows = [index * head + dim for dim in slow]
    attention.q_proj.weight[rows] = MATCH_GAIN * read_DI[slow]
    attention.k_proj.weight[rows] = MATCH_GAIN * write_DI[slow]
    span = slice(index * head, (index + 1) * head)
    attention.v_proj.weight[span] = value_DI
    attention.o_proj.weight[:, span] = COPY_GAIN * value_DI.T
