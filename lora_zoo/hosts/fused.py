"""Layouts of fused matrices (O, I): the rows of q, k, v, gate and up.

Each order is that of the architecture's own forward pass in transformers 5.23 (ChatGLM: of its published
code); gate is the part that goes through the activation. Layouts that are not listed are not guessed.
"""

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_zoo.core.host import Rows

Layout = Callable[[int, Any], dict[str, Rows]]
"""(number of rows, config) -> role -> rows; {} where the layout does not fit."""


Count = int | str
"""A number, or the attribute of the config that holds it."""


def interleaved(times: Count, **parts: Count) -> Layout:
    """`times` blocks of equal height, each with `parts` in this order and in these proportions."""

    def layout(features: int, config: Any) -> dict[str, Rows]:
        blocks, *shares = (_number(count, config) for count in (times, *parts.values()))
        if min(blocks, *shares) < 1 or features % (blocks * sum(shares)):
            return {}
        unit = features // (blocks * sum(shares))
        bounds = pairwise(accumulate((unit * share for share in shares), initial=0))
        if blocks == 1:
            return {role: slice(*bound) for role, bound in zip(parts, bounds, strict=True)}
        rows = torch.arange(features).view(blocks, -1)
        return {role: rows[:, slice(*bound)].flatten() for role, bound in zip(parts, bounds, strict=True)}

    return layout


def concatenated(**parts: Count) -> Layout:
    """`parts` in this order and in these proportions, each in one piece."""
    return interleaved(1, **parts)


def _number(count: Count, config: Any) -> int:
    return count if isinstance(count, int) else int(getattr(config, count, None) or 0)


THIRDS = concatenated(q=1, k=1, v=1)
GROUPED = concatenated(q="num_attention_heads", k="num_key_value_heads", v="num_key_value_heads")
PER_HEAD = interleaved("num_attention_heads", q=1, k=1, v=1)
HALVES = concatenated(gate=1, up=1)


def _gpt2(features: int, config: Any) -> dict[str, Rows]:
    own = concatenated(q="hidden_size", k="hidden_size", v="hidden_size")
    cross = concatenated(k="hidden_size", v="hidden_size")  # its q is a layer of its own, q_attn
    return own(features, config) or cross(features, config)


def _gpt_bigcode(features: int, config: Any) -> dict[str, Rows]:
    if config.multi_query:
        return concatenated(q="num_attention_heads", k=1, v=1)(features, config)
    return PER_HEAD(features, config) if features == 3 * config.hidden_size else {}


def _falcon(features: int, config: Any) -> dict[str, Rows]:
    heads = config.num_attention_heads
    if config.new_decoder_architecture:
        return interleaved("num_kv_heads", q=heads // config.num_kv_heads, k=1, v=1)(features, config)
    return (concatenated(q=heads, k=1, v=1) if config.multi_query else PER_HEAD)(features, config)


def _chatglm(features: int, config: Any) -> dict[str, Rows]:
    groups = "multi_query_group_num"
    shared = concatenated(q="num_attention_heads", k=groups, v=groups)
    return (shared if getattr(config, "multi_query_attention", False) else PER_HEAD)(features, config)


# (model types, the module's last name) -> layout
_LISTED: dict[tuple[str, str], Layout] = {
    ("gpt2 imagegpt decision_transformer", "c_attn"): _gpt2,
    ("openai-gpt", "c_attn"): THIRDS,
    ("gpt_bigcode", "c_attn"): _gpt_bigcode,
    ("semantic coarse_acoustics fine_acoustics", "att_proj"): THIRDS,  # Bark's three models
    ("bloom gpt_neox gpt_neox_japanese persimmon", "query_key_value"): PER_HEAD,
    ("falcon", "query_key_value"): _falcon,
    ("chatglm", "query_key_value"): _chatglm,
    ("chatglm", "dense_h_to_4h"): concatenated(gate="ffn_hidden_size", up="ffn_hidden_size"),  # not ChatGLM 1
    ("mpt", "Wqkv"): concatenated(q="hidden_size", k="hidden_size", v="hidden_size"),
    ("dbrx", "Wqkv"): GROUPED,
    ("modernbert", "Wqkv"): THIRDS,
    ("modernbert modernbert-decoder", "Wi"): HALVES,
    ("phi3 phi4_multimodal", "qkv_proj"): GROUPED,
    ("codegen", "qkv_proj"): interleaved(4, q=1, v=1, k=1),  # v before k, four parts for four TPU cores
    ("deberta", "in_proj"): PER_HEAD,
    ("jetmoe", "kv_proj"): concatenated(k=1, v=1),
    ("evolla granite_speech_encoder granite_speech_plus_encoder", "to_kv"): concatenated(k=1, v=1),
    ("layoutlmv2", "qkv_linear"): THIRDS,
    ("exaone4_5_vision", "qkv"): GROUPED,
    (
        """blip_vision_model blip_2_vision_model cohere_compass_vision deepseek_ocr2_sam_vision_model
        dots3_note_vision_encoder ernie4_5_vl_moe_vision florence_vision glm4v_vision glm4v_moe_vision
        glm5_next_vision glm_image_vision glm_ocr_vision got_ocr2_vision hiera instructblip_vision_model
        instructblipvideo_vision_model mgp-str pp_chart2table_vision pp_formulanet_vision pp_ocrv5_mobile_rec
        pp_ocrv5_server_rec pp_ocrv6_small_rec qwen2_vl_vision qwen2_5_vl_vision qwen3_vl_vision
        qwen3_vl_moe_vision qwen3_5_vision qwen3_5_moe_vision qwen3_omni_moe_vision_encoder qwen4_exp_vision
        sam_vision_model sam_hq_vision_model sam2_hiera_det_model seggpt slanext_vision timesformer
        unlimited_ocr_sam_vision_model vitdet""",
        "qkv",
    ): THIRDS,
    (
        """phi3 phi4_multimodal glm glm4 glm4v_text glm_image_text glm_ocr_text dia_encoder dia_decoder
        dots3_note_audio_encoder esmfold2 minimax_m3_vl_text zamba2""",
        "gate_up_proj",
    ): HALVES,
    ("phi4_multimodal_audio", "gate_up_proj"): concatenated(up=1, gate=1),
    ("granitemoeshared granitemoehybrid granitemoe_swa", "input_linear"): HALVES,
    ("moonshine moonshine_streaming", "fc1"): concatenated(up="intermediate_size", gate="intermediate_size"),
    ("*", "kv_b_proj"): interleaved("num_attention_heads", k="qk_nope_head_dim", v="v_head_dim"),  # MLA
    ("*", "in_proj_weight"): THIRDS,  # nn.MultiheadAttention
}


_LAYOUTS = {(kind, last): layout for (kinds, last), layout in _LISTED.items() for kind in kinds.split()}


def register_fused(model_type: str, last_name: str, layout: Layout) -> None:
    """Register the layout of the layers called `….last_name` in models of `config.model_type` `model_type`.

    "*" is every model without a layout of its own: register_fused("*", "qkv", concatenated(q=1, k=1, v=1)).
    """
    _LAYOUTS[model_type, last_name] = layout


def parts_of(name: str, features: int, config: Any) -> dict[str, Rows]:
    """Role -> rows of the fused layer called `name`; {} where it is not fused, or its layout is unknown.

    `features` is the number of its rows, `config` that of the nearest module around it that has one.
    """
    last, kind = name.rpartition(".")[2], str(getattr(config, "model_type", ""))
    layout = _LAYOUTS.get((kind, last)) or _LAYOUTS.get(("*", last))
    return layout(features, config) if layout else {}


class ExpertLayout(NamedTuple):
    """Layout of a 3-D parameter of experts: each matrix as (O, I), or as (I, O) where `transposed`."""

    transposed: bool
    parts: dict[str, Rows]
    """Role -> rows of the (O, I) matrix."""


# (model type, the end of the parameter's name) -> (transposed, layout)
_STACKS: dict[tuple[str, str], tuple[bool, Layout]] = {
    ("llama4_text", "experts.gate_up_proj"): (True, HALVES),
    ("llama4_text", "experts.down_proj"): (True, concatenated(down=1)),
    ("jetmoe", "mlp.input_linear.weight"): (False, HALVES),
    ("jetmoe", "mlp.output_linear.weight"): (False, concatenated(down=1)),
    ("jetmoe", "experts.input_linear.weight"): (False, concatenated(q=1)),  # its attention has experts too
    ("jetmoe", "experts.output_linear.weight"): (False, concatenated(o=1)),
}


def stack_of(name: str, shape: tuple[int, int, int], module: nn.Module, config: Any) -> ExpertLayout | None:
    """The layout of experts in the parameter `name` of `shape` and `module`; None if it is unknown."""
    ends = (end for kind, end in _STACKS if kind == getattr(config, "model_type", None))
    listed = next((end for end in ends if name.endswith(f".{end}")), None)
    known = _STACKS[config.model_type, listed] if listed else _as_marked(name.rpartition(".")[2], module)
    if not known:
        return None
    transposed, layout = known
    return ExpertLayout(transposed, layout(shape[2] if transposed else shape[1], config))


def _as_marked(parameter: str, module: nn.Module) -> tuple[bool, Layout] | None:
    """The layout from the marks that transformers' `use_experts_implementation` sets on experts."""
    marks = [getattr(module, mark, None) for mark in ("is_transposed", "has_gate", "is_concatenated")]
    if None in marks:
        return None
    transposed, gated, adjacent = marks
    whole = {"down_proj": concatenated(down=1)} | ({} if gated else {"up_proj": concatenated(up=1)})
    fused = {"gate_up_proj": HALVES if adjacent else _alternating} if gated else {}
    layout = (whole | fused).get(parameter)
    return (bool(transposed), layout) if layout else None


def _alternating(features: int, config: Any) -> dict[str, Rows]:
    return interleaved(features // 2, gate=1, up=1)(features, config)
