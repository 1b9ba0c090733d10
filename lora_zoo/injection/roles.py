"""Roles (q, k, v, o, gate, up, down, embed, head) of layers, from their names alone.

The patterns are those of transformers 5.23 and of torch. A name that different models use for different
things, or that no forward pass calls (T5's and BART's `shared`), plays no role.
"""

import re

ROLES: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down", "embed", "head")

_HEADS = r"""lm_head | lm_heads\.\d+ | generator_lm_head | embed_out | output_projection | lm_loss
    | score | (?!pre_)\w*classifier | classification_head | qa_outputs | vocab_projector | logits_proj"""

PRESETS: dict[str, tuple[str, ...]] = {
    "lora_query": ("q",),
    "lora_key": ("k",),
    "lora_value": ("v",),
    "lora_projection": ("o",),
    "lora_mlp": ("gate", "up", "down"),
    "lora_head": ("head",),
}
"""The switches of LitGPT (finetune/lora.py of Lightning-AI/litgpt), as targets: the roles of each."""


def roles_in(target: str) -> tuple[str, ...]:
    """The roles that a target means by its name alone: itself, a switch's, or none."""
    return (target,) if target in ROLES else PRESETS.get(target, ())


# Each pattern matches the end of a name; the first role that matches wins.
_PATTERNS = {
    "head": rf"""
        {_HEADS}
        | (?: {_HEADS} )\.(?: out_proj | decoder )
        | (?: predictions | head )\.decoder | pred_layer\.proj
        | discriminator_predictions\.dense_prediction
        | ^proj_out                                       # Whisper
        | (?: ^ | (?<= transformer\. ) ) output_layer      # ChatGLM""",
    "": rf"""                                             # what belongs to a head
        (?: {_HEADS} | head | (?![qkv]_)\w+_head | cls | \w*pooler | \w*predictions | pred_layer | vocab_\w+
          | pre_classifier | sequence_summary
          | ^(?: projector | project_hid | project_q | quantizer ) ) (?: \..* )?    # wav2vec2's""",
    "embed": r"""
        embed_tokens | word_embeddings? | embed_in | tok(?:en)?_embeddings? | tokens_embed
        | input_embeds_layer
        | (?<! encoder\. ) wte                            # DecisionTransformer's is idle
        | ^embeddings | (?: backbone | model | transformer )\.embeddings     # Mamba, XLM""",
    "q": r"""
        (?: q | query )_proj (?: \.linear )? | (?<=\.)query | q_lin | linear_q | to_q | Wq | q_head | q
        | q_attn | q_b_proj | projection_query""",
    "k": r"""
        (?: k | key )_proj (?: \.linear )? | (?<=\.)(?<!feed_forward\.)key | k_lin | linear_k | to_k | Wk
        | k_head | k | projection_key""",
    "v": r"""
        (?: v | value )_proj (?: \.linear )? | (?<=\.)(?<!feed_forward\.)value | v_lin | linear_v | to_v | Wv
        | v_head | v | projection_value""",
    "o": r"""
        o_proj (?: \.linear )? | out_lin | (?<= attn\. ) linear_out | to_out (?: \.0 )? | o
        | (?<! mlp\. )(?<! conv\. )(?<! mamba\. )(?<! mixer\. )(?<! projector\. ) out_proj
        | (?<! bottleneck\. ) \w*att(?:entio)?n\.(?: dense | proj | projection(?:_layer)? | post_proj | c_proj
          | Wo | output | output_proj )
        | \w*att\w*\.output\.dense""",
    "gate": r"(?<! attn\. ) gate_proj (?: \.linear )? | wi_0 | (?: feed_forward | experts\.\d+ )\.w1",
    "up": r"""
        up_proj (?: \.linear )? | fc1 | lin1 | intermediate(?:_query)?\.dense | intermediate_dense
        | dense_h_to_4h | wi | wi_1 | (?: feed_forward | experts\.\d+ )\.w3
        | \w*mlp\.(?: c_fc | fc_in | linear_fc1 | dense1 | proj_in | in_proj )
        | (?<! projection\. )(?<! aligner\. )(?<! norm\. ) linear1 | ffn\.linear_1
        | albert_layers\.\d+\.ffn""",
    "down": r"""
        down_proj (?: \.linear )? | fc2 | lin2 | output(?:_query)?\.dense | output_dense
        | dense_4h_to_h | wo | (?: feed_forward | experts\.\d+ )\.w2
        | \w*mlp\.(?: c_proj | fc_out | linear_fc2 | dense2 | proj_out | out_proj | Wo | output_linear )
        | (?<! projection\. )(?<! aligner\. )(?<! norm\. ) linear2 | ffn\.linear_2
        | albert_layers\.\d+\.ffn_output""",
}
_ROLES = {role: re.compile(f"(?:.*\\.)?(?:{ends}\n)", re.VERBOSE) for role, ends in _PATTERNS.items()}
# Routers of experts or tokens, with projections of their own.
_ASIDE = re.compile(r"(?:.*\.)?(?:\w*router\w*|gate|indexer|compressor)\..*")
_FUSED = re.compile(r"(?:.*\.)?(?:c_attn|query_key_value|[Ww]?qkv(?:_\w+)?|W_pack|att_proj)")


def role_of(name: str) -> str:
    """The role of the layer called `name`, or "" where it plays none."""
    if _ASIDE.fullmatch(name):
        return ""
    return next((role for role, pattern in _ROLES.items() if pattern.fullmatch(name)), "")


def of_head(name: str) -> bool:
    """True if the layer called `name` is a head or a part of one."""
    return bool(_ROLES["head"].fullmatch(name) or _ROLES[""].fullmatch(name))


def fused(name: str) -> bool:
    """True if a layer called `name` usually holds q, k and v in one matrix."""
    return bool(_FUSED.fullmatch(name))
