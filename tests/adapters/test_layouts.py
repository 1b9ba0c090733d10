"""What each row of a projection does, measured on tiny models, against what layouts and roles say it is.

Values: where the tokens that an attention sees are all equal, v's rows alone move its output. Queries: one
position of the output depends on q at one position, on k and v at several. Gate and up: the output is linear
in up's rows, not in gate's, and row i of either moves it along column i of down.
"""

import contextlib
import functools
import itertools
import re
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from torch import nn
from torch.nn import functional as F

from lora_zoo.hosts.fused import concatenated, interleaved, parts_of, register_fused, stack_of
from lora_zoo.injection.roles import ROLES, fused, of_head, role_of


@dataclass
class Case:
    """A tiny model, and how many attentions and MLPs it has."""

    cls: object
    config: dict
    inputs: dict = field(default_factory=dict)
    read: str = ""
    """The module whose output has positions, where the model's own has none."""
    attentions: int = 1
    mlps: int = 1


def modeling(name):
    return import_module(f"transformers.models.{name}.modeling_{name}")


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)


IDS = torch.randint(3, 37, (1, 6), generator=torch.Generator().manual_seed(1))
IMAGE, LARGER = {"pixel_values": noise(1, 3, 8, 8)}, {"pixel_values": noise(1, 3, 16, 16)}
PATCHES = {"hidden_states": noise(16, 12), "grid_thw": torch.tensor([[1, 4, 4]])}

SIZE = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=4, vocab_size=37)
GQA = {**SIZE, "num_key_value_heads": 2}
WIDE = {**GQA, "head_dim": 6, "pad_token_id": 0}  # more in the heads than in the hidden state
GPT2 = dict(vocab_size=37, n_embd=16, n_layer=1, n_head=4, n_inner=20)
FALCON = dict(vocab_size=37, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, ffn_hidden_size=20)
DEBERTA = {**SIZE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_position_embeddings": 16}
MODERNBERT = {**SIZE, **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}}
T5 = dict(vocab_size=37, d_model=16, d_kv=4, d_ff=20, num_layers=1, num_heads=4, decoder_start_token_id=0)
HALF = dict(layers=1, attention_heads=4, ffn_dim=20)
BART = {f"{half}_{key}": value for half in ("encoder", "decoder") for key, value in HALF.items()}
BART = {**BART, "vocab_size": 37, "d_model": 16, "max_position_embeddings": 16}
MOE = {**GQA, "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 10}
MLA = dict(q_lora_rank=6, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=6)
DEEPSEEK = {**MOE, **MLA, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
DEEPSEEK = {**DEEPSEEK, "first_k_dense_replace": 0, "topk_method": "greedy"}
BARK = dict(hidden_size=16, num_layers=1, num_heads=4, input_vocab_size=37, output_vocab_size=37)
FUNNEL = dict(
    vocab_size=37, d_model=16, n_head=4, d_head=4, d_inner=20, block_sizes=[1], num_decoder_layers=0
)
DECISION = dict(hidden_size=16, n_layer=1, n_head=4, n_inner=20, state_dim=3, act_dim=2, max_ep_len=16)
EPISODE = {"states": noise(1, 3, 3), "actions": noise(1, 3, 2), "returns_to_go": noise(1, 3, 1)}
EPISODE = {**EPISODE, "timesteps": torch.tensor([[0, 1, 2]]), "attention_mask": torch.ones(1, 3)}
NEMOTRON = {**MOE, "layers_block_type": ["attention", "moe"], "num_hidden_layers": 2, "n_group": 1}
NEMOTRON = {**NEMOTRON, "n_routed_experts": 4, "topk_group": 1, "moe_shared_expert_intermediate_size": 12}
PHI4_AUDIO = {
    key: 16 for key in ("nemo_conv_channels", "depthwise_separable_out_channel", "ext_pw_out_channel")
}
PHI4_AUDIO = {**PHI4_AUDIO, "num_blocks": 1, "input_size": 80}
CHATGLM = dict(
    model_type="chatglm", is_encoder_decoder=False, hidden_size=16, num_attention_heads=4, kv_channels=6
)
VIT = {**SIZE, "image_size": 8, "patch_size": 4}
SAM = dict(hidden_size=16, output_channels=8, num_hidden_layers=1, num_attention_heads=4, image_size=8)
SAM = {**SAM, "patch_size": 2, "window_size": 0, "global_attn_indexes": [0], "mlp_dim": 20}
QWEN_VL = dict(depth=1, embed_dim=16, hidden_size=16, num_heads=4, intermediate_size=20, mlp_ratio=2)
QWEN_VL = {**QWEN_VL, "patch_size": 2, "temporal_patch_size": 1, "spatial_merge_size": 2, "in_channels": 3}
QWEN_VL = {**QWEN_VL, "out_hidden_size": 16, "image_size": 8, "window_size": 8, "fullatt_block_indexes": [0]}
QWEN_VL = {**QWEN_VL, "num_position_embeddings": 16, "deepstack_visual_indexes": []}
HIERA = dict(embed_dim=16, image_size=[16, 16], patch_size=[3, 3], patch_stride=[4, 4], patch_padding=[1, 1])
HIERA = {**HIERA, "depths": [1], "num_heads": [4], "num_query_pool": 0, "masked_unit_size": [2, 2]}
SAM2 = dict(hidden_size=16, num_attention_heads=4, image_size=[16, 16], blocks_per_stage=[1])
SAM2 = {**SAM2, "embed_dim_per_stage": [16], "num_attention_heads_per_stage": [4], "num_query_pool_stages": 0}
SAM2 = {**SAM2, "window_size_per_stage": [2], "global_attention_blocks": []}
SAM2 = {**SAM2, "window_positional_embedding_background_size": [4, 4]}
AUDIO = dict(conv_dim=[8], conv_kernel=[4], conv_stride=[4], num_conv_pos_embeddings=4)
WHISPER = dict(max_source_positions=6, num_mel_bins=4, pad_token_id=0, bos_token_id=1, eos_token_id=2)
MOONSHINE = {f"{half}_{key}": SIZE[key] for half in ("encoder", "decoder") for key in list(SIZE)[2:4]}

CASES = {
    "llama": Case(tf.LlamaForCausalLM, GQA),
    "mistral": Case(tf.MistralForCausalLM, GQA),
    "qwen2": Case(tf.Qwen2ForCausalLM, GQA),
    "qwen3": Case(tf.Qwen3ForCausalLM, WIDE),
    "gemma": Case(tf.GemmaForCausalLM, WIDE),
    "gemma2": Case(tf.Gemma2ForCausalLM, WIDE),
    "phi": Case(tf.PhiForCausalLM, GQA),
    "phi3": Case(tf.Phi3ForCausalLM, WIDE),
    "stablelm": Case(tf.StableLmForCausalLM, GQA),
    "olmo": Case(tf.OlmoForCausalLM, GQA),
    "olmo2": Case(tf.Olmo2ForCausalLM, GQA),
    "starcoder2": Case(tf.Starcoder2ForCausalLM, GQA),
    "glm": Case(tf.GlmForCausalLM, WIDE),
    "glm4": Case(tf.Glm4ForCausalLM, WIDE),
    "lfm2": Case(tf.Lfm2ForCausalLM, {**GQA, "layer_types": ["full_attention"]}),
    "persimmon": Case(tf.PersimmonForCausalLM, SIZE),
    "gpt2": Case(tf.GPT2LMHeadModel, GPT2),
    "gpt2_cross": Case(
        tf.GPT2LMHeadModel,
        {**GPT2, "n_embd": 24, "add_cross_attention": True},  # 2 x 24 rows are thirds as well
        {"input_ids": IDS, "encoder_hidden_states": noise(1, 5, 24)},
        attentions=2,
    ),
    "openai_gpt": Case(tf.OpenAIGPTLMHeadModel, GPT2),
    "imagegpt": Case(tf.ImageGPTForCausalImageModeling, GPT2),
    "decision_transformer": Case(tf.DecisionTransformerModel, DECISION, EPISODE),
    "gpt_neo": Case(
        tf.GPTNeoForCausalLM,
        dict(vocab_size=37, hidden_size=16, num_layers=1, attention_types=[[["global"], 1]]),
    ),
    "gptj": Case(tf.GPTJForCausalLM, {**GPT2, "rotary_dim": 2}),
    "gpt_neox": Case(tf.GPTNeoXForCausalLM, SIZE),
    "gpt_neox_japanese": Case(tf.GPTNeoXJapaneseForCausalLM, SIZE),
    "bigcode_multi_query": Case(tf.GPTBigCodeForCausalLM, {**GPT2, "multi_query": True}),
    "bigcode_per_head": Case(tf.GPTBigCodeForCausalLM, {**GPT2, "multi_query": False}),
    "bloom": Case(tf.BloomForCausalLM, dict(vocab_size=37, hidden_size=16, n_layer=1, n_head=4)),
    "falcon_new": Case(tf.FalconForCausalLM, {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_multi_query": Case(tf.FalconForCausalLM, {**FALCON, "multi_query": True}),
    "falcon_per_head": Case(tf.FalconForCausalLM, {**FALCON, "multi_query": False, "alibi": True}),
    "mpt": Case(tf.MptForCausalLM, dict(vocab_size=37, d_model=16, n_layers=1, n_heads=4)),
    "codegen": Case(tf.CodeGenForCausalLM, {**GPT2, "n_head": 8, "n_embd": 32, "rotary_dim": 2}),
    "opt": Case(tf.OPTForCausalLM, {**SIZE, "ffn_dim": 20, "word_embed_proj_dim": 16}),
    "bark": Case(modeling("bark").BarkSemanticModel, BARK),
    "bert": Case(tf.BertForMaskedLM, SIZE),
    "bert_cross": Case(
        tf.BertLMHeadModel,
        {**SIZE, "is_decoder": True, "add_cross_attention": True},
        {"input_ids": IDS, "encoder_hidden_states": noise(1, 5, 16)},
        attentions=2,
    ),
    "roberta": Case(tf.RobertaForMaskedLM, SIZE),
    "distilbert": Case(
        tf.DistilBertForMaskedLM, dict(vocab_size=37, dim=16, n_layers=1, n_heads=4, hidden_dim=20)
    ),
    "albert": Case(tf.AlbertForMaskedLM, {**SIZE, "embedding_size": 8}),
    "electra": Case(tf.ElectraForMaskedLM, {**SIZE, "embedding_size": 8}),
    "mpnet": Case(tf.MPNetForMaskedLM, SIZE),
    "deberta": Case(tf.DebertaForMaskedLM, DEBERTA),
    "deberta_v2": Case(tf.DebertaV2ForMaskedLM, DEBERTA),
    "modernbert": Case(tf.ModernBertModel, MODERNBERT),
    "modernbert_decoder": Case(tf.ModernBertDecoderModel, MODERNBERT),
    "funnel": Case(tf.FunnelForMaskedLM, FUNNEL),
    "xlm": Case(tf.XLMWithLMHeadModel, dict(n_words=37, emb_dim=16, n_layers=1, n_heads=4)),
    "dbrx": Case(
        tf.DbrxForCausalLM,
        dict(
            **dict(vocab_size=37, d_model=16, n_heads=4, n_layers=1),
            attn_config=dict(kv_n_heads=2, clip_qkv=1e9, rope_theta=1e4),
            ffn_config=dict(ffn_hidden_size=10, moe_num_experts=3),
        ),
        mlps=0,  # its experts lie in 2-D parameters
    ),
    "mixtral": Case(tf.MixtralForCausalLM, MOE),
    "qwen2_moe": Case(tf.Qwen2MoeForCausalLM, {**MOE, "shared_expert_intermediate_size": 12}, mlps=2),
    "qwen3_moe": Case(tf.Qwen3MoeForCausalLM, MOE),
    "afmoe": Case(tf.AfmoeForCausalLM, {**MOE, "pad_token_id": 0}),  # its attention has a gate_proj too
    "olmoe": Case(tf.OlmoeForCausalLM, MOE),
    "phimoe": Case(tf.PhimoeForCausalLM, MOE),
    "gpt_oss": Case(tf.GptOssForCausalLM, MOE),
    "openai_privacy_filter": Case(tf.OpenAIPrivacyFilterForTokenClassification, {**MOE, "pad_token_id": 0}),
    "deepseek_v2": Case(tf.DeepseekV2ForCausalLM, DEEPSEEK, mlps=2),
    "deepseek_v3": Case(tf.DeepseekV3ForCausalLM, DEEPSEEK, mlps=2),
    "llama4": Case(
        tf.Llama4ForCausalLM, {**MOE, "intermediate_size": 10, "intermediate_size_mlp": 20}, mlps=2
    ),
    "granitemoe": Case(tf.GraniteMoeForCausalLM, MOE),
    "granitemoeshared": Case(tf.GraniteMoeSharedForCausalLM, {**MOE, "shared_intermediate_size": 12}, mlps=2),
    "nemotron_h": Case(tf.NemotronHForCausalLM, NEMOTRON, mlps=2),
    "jetmoe": Case(tf.JetMoeForCausalLM, {**MOE, "kv_channels": 4}),
    "aria_text": Case(
        modeling("aria").AriaTextForCausalLM, {**MOE, "moe_num_experts": 4, "moe_topk": 1}, mlps=2
    ),
    "t5": Case(tf.T5ForConditionalGeneration, T5, attentions=3, mlps=2),
    "t5_gated": Case(
        tf.T5ForConditionalGeneration, {**T5, "feed_forward_proj": "gated-gelu"}, attentions=3, mlps=2
    ),
    "bart": Case(tf.BartForConditionalGeneration, BART, attentions=3, mlps=2),
    "whisper": Case(
        tf.WhisperForConditionalGeneration,
        {**BART, **WHISPER, "decoder_start_token_id": 1},
        {"input_features": noise(1, 4, 12), "decoder_input_ids": IDS},
        attentions=3,
        mlps=2,
    ),
    "moonshine": Case(
        tf.MoonshineForConditionalGeneration,
        {**GQA, **MOONSHINE},
        {"input_values": noise(1, 2000), "decoder_input_ids": IDS},
        attentions=3,
        mlps=2,
    ),
    "wav2vec2": Case(
        tf.Wav2Vec2ForCTC,
        {**SIZE, **AUDIO, "num_conv_pos_embedding_groups": 2},
        {"input_values": noise(1, 32)},
    ),
    "phi4_audio": Case(
        modeling("phi4_multimodal").Phi4MultimodalAudioModel,
        {**SIZE, **PHI4_AUDIO},
        {"hidden_states": noise(1, 32, 80), "mask": None},
        read="encoders.0.self_attn",
        mlps=2,
    ),
    "clip_text": Case(tf.CLIPTextModel, {**SIZE, "bos_token_id": 1, "eos_token_id": 2}),
    "clip_vision": Case(tf.CLIPVisionModel, VIT, IMAGE),
    "siglip_vision": Case(tf.SiglipVisionModel, VIT, IMAGE),
    "vit": Case(tf.ViTModel, VIT, IMAGE),
    "deit": Case(tf.DeiTModel, VIT, IMAGE),
    "beit": Case(tf.BeitModel, VIT, IMAGE),
    "dinov2": Case(tf.Dinov2Model, VIT, IMAGE),
    "dinov2_swiglu": Case(tf.Dinov2Model, {**VIT, "use_swiglu_ffn": True}, IMAGE),
    "swin": Case(
        tf.SwinModel,
        dict(image_size=16, patch_size=4, embed_dim=16, depths=[1], num_heads=[4], window_size=2),
        LARGER,
    ),
    "timesformer": Case(
        tf.TimesformerModel,
        {**VIT, "num_frames": 2, "attention_type": "space_only"},
        {"pixel_values": noise(1, 2, 3, 8, 8)},
        read="encoder.layer.0",
    ),
    "vitdet": Case(tf.VitDetModel, {**VIT, "pretrain_image_size": 8}, IMAGE, read="encoder.layer.0.mlp"),
    "hiera": Case(tf.HieraModel, HIERA, LARGER),
    "mgp_str": Case(tf.MgpstrModel, {**VIT, "image_size": [8, 8]}, IMAGE),
    "blip": Case(tf.BlipVisionModel, VIT, IMAGE),
    "blip_2": Case(modeling("blip_2").Blip2VisionModel, VIT, IMAGE),
    "instructblip": Case(modeling("instructblip").InstructBlipVisionModel, VIT, IMAGE),
    "instructblipvideo": Case(modeling("instructblipvideo").InstructBlipVideoVisionModel, VIT, IMAGE),
    "sam": Case(tf.SamVisionModel, {**SAM, "num_pos_feats": 4}, IMAGE, read="vision_encoder.layers.0"),
    "sam_hq": Case(modeling("sam_hq").SamHQVisionModel, SAM, IMAGE, read="vision_encoder.layers.0"),
    "got_ocr2": Case(modeling("got_ocr2").GotOcr2VisionEncoder, SAM, IMAGE, read="layers.0"),
    "sam2": Case(modeling("sam2").Sam2HieraDetModel, SAM2, LARGER),
    "qwen2_vl": Case(modeling("qwen2_vl").Qwen2VisionTransformerPretrainedModel, QWEN_VL, PATCHES),
    "qwen2_5_vl": Case(modeling("qwen2_5_vl").Qwen2_5_VisionTransformerPretrainedModel, QWEN_VL, PATCHES),
    "qwen3_vl": Case(modeling("qwen3_vl").Qwen3VLVisionModel, QWEN_VL, PATCHES),
    "qwen3_5": Case(modeling("qwen3_5").Qwen3_5VisionModel, QWEN_VL, PATCHES),
    "glm4v": Case(modeling("glm4v").Glm4vVisionModel, QWEN_VL, PATCHES, read="blocks.0", mlps=2),
    "glm_ocr": Case(modeling("glm_ocr").GlmOcrVisionModel, QWEN_VL, PATCHES, read="blocks.0", mlps=2),
    "exaone4_5": Case(
        modeling("exaone4_5").Exaone4_5_VisionModel, {**QWEN_VL, "num_key_value_heads": 2}, PATCHES
    ),
}


class ChatGLM(nn.Module):
    """ChatGLM's attention and MLP as its published code splits them; not in transformers."""

    config_class = SimpleNamespace

    def __init__(self, config):
        super().__init__()
        self.config, heads, width = config, config.num_attention_heads, config.kv_channels
        self.shared = getattr(config, "multi_query_attention", False)
        self.groups = config.multi_query_group_num if self.shared else heads
        self.gated = hasattr(config, "ffn_hidden_size")
        attention = {
            "query_key_value": nn.Linear(16, (heads + 2 * self.groups) * width),
            "dense": nn.Linear(heads * width, 16),
        }
        mlp = {"dense_h_to_4h": nn.Linear(16, 40 if self.gated else 20), "dense_4h_to_h": nn.Linear(20, 16)}
        layer = nn.ModuleDict({"self_attention": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)})
        self.transformer = nn.ModuleDict(
            {
                "embedding": nn.ModuleDict({"word_embeddings": nn.Embedding(37, 16)}),
                "encoder": nn.ModuleDict({"layers": nn.ModuleList([layer])}),
                "output_layer": nn.Linear(16, 37),
            }
        )
        self.get_input_embeddings = lambda: self.transformer.embedding.word_embeddings
        self.get_output_embeddings = lambda: self.transformer.output_layer

    def forward(self, input_ids):
        config, layer = self.config, self.transformer.encoder.layers[0]
        heads, width = config.num_attention_heads, config.kv_channels
        x = self.transformer.embedding.word_embeddings(input_ids)
        mixed = layer.self_attention.query_key_value(x)
        if self.shared:
            sizes = [heads * width, self.groups * width, self.groups * width]
            q, k, v = (part.unflatten(-1, (-1, width)) for part in mixed.split(sizes, dim=-1))
        else:
            q, k, v = mixed.view(*mixed.shape[:-1], heads, 3 * width).chunk(3, dim=-1)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixture = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + layer.self_attention.dense(mixture.transpose(1, 2).flatten(2))
        h = layer.mlp.dense_h_to_4h(x)
        h = F.silu(h.chunk(2, dim=-1)[0]) * h.chunk(2, dim=-1)[1] if self.gated else F.gelu(h)
        return {"logits": self.transformer.output_layer(x + layer.mlp.dense_4h_to_h(h))}


class TorchEncoder(nn.Module):
    """Torch's own layer; no projection of its attention is a module that is called."""

    config_class = SimpleNamespace

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(37, 16)
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(16, 4, 20, batch_first=True, activation=torch.tanh)]
        )
        self.get_input_embeddings, self.get_output_embeddings = (lambda: self.embed_tokens), (lambda: None)

    def forward(self, input_ids):
        return {"last_hidden_state": self.layers[0](self.embed_tokens(input_ids))}


CASES |= {
    "chatglm_grouped": Case(
        ChatGLM, {**CHATGLM, "multi_query_attention": True, "multi_query_group_num": 2, "ffn_hidden_size": 20}
    ),
    "chatglm_per_head": Case(ChatGLM, {**CHATGLM, "multi_query_attention": False, "ffn_hidden_size": 20}),
    "chatglm_1": Case(ChatGLM, CHATGLM),
    "torch_encoder": Case(TorchEncoder, {"is_encoder_decoder": False}, attentions=0),
}


@functools.cache
def built(name):
    """The model in double precision, with weights that leave nothing in it near zero."""
    case = CASES[name]
    config = case.cls.config_class(**case.config, attn_implementation="eager", experts_implementation="eager")
    model = case.cls(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.copy_(draw * 0.3 if p.ndim > 1 else p + draw * 0.1)
            if parameter_name.endswith("sinks"):  # GPT-OSS: else k decides how much of v is heard
                p.fill_(-1e9)
    return model


@dataclass
class Part:
    """Rows of a weight, and the role that the package gives them; `view` is (O, I) or (experts, O, I)."""

    role: str
    name: str
    module: nn.Module
    tensor: nn.Parameter
    view: torch.Tensor
    rows: torch.Tensor
    whole: str

    @contextlib.contextmanager
    def times(self, factor, row=slice(None), expert=slice(None)):
        """These rows (or one of them, of one expert) times `factor`."""
        view = self.view[expert] if self.view.ndim == 3 else self.view
        kept = view.detach().clone()
        with torch.no_grad():
            view[..., self.rows[row], :] *= factor
        yield
        with torch.no_grad():
            view.copy_(kept)


def parts(model):
    """Every 2-D weight and every stack of experts, as the package takes them apart."""
    configs = {}
    for name, module in model.named_modules():
        config = configs[name] = getattr(module, "config", None) or configs.get(name.rpartition(".")[0])
        for parameter_name, p in module.named_parameters(recurse=False):
            if type(module).__name__ == "NonDynamicallyQuantizableLinear":
                continue  # nn.MultiheadAttention's, which is never called
            if p.ndim == 2 and parameter_name == "weight":
                view = p.T if type(module).__name__ == "Conv1D" else p
                found = {} if isinstance(module, nn.Embedding) else parts_of(name, view.shape[0], config)
                known = found or {role_of(name): slice(None)}
            elif p.ndim == 3 and (stack := stack_of(f"{name}.{parameter_name}", (*p.shape,), module, config)):
                view, known = p.mT if stack.transposed else p, stack.parts
            else:
                continue
            for role, rows in known.items():
                numbers = torch.arange(view.shape[-2])[rows]
                yield Part(role, name, module, p, view, numbers, f"{name}.{parameter_name}")


def with_role(name, role):
    return [part for part in parts(built(name)) if part.role == role]


def holders(some):
    """The modules of these parts by name, each once."""
    return list({part.name: part.module for part in some}.items())


def run(name, modules, *, equal=False, inputs=False):
    """The model's output, and by name that of `modules` (or their input); `equal` gives them one token."""
    model, caught = built(name), {}

    def catch(module, args, out, key):
        caught[key] = args[0] if inputs else out[0] if isinstance(out, tuple) else out

    def level(module, args):
        return args[0].reshape(-1, args[0].shape[-1])[0].expand_as(args[0]), *args[1:]

    hooks = [m.register_forward_hook(functools.partial(catch, key=key)) for key, m in modules]
    hooks += [m.register_forward_pre_hook(level) for key, m in modules if equal and key != CASES[name].read]
    ids = (
        {"input_ids": IDS, "decoder_input_ids": IDS}
        if model.config.is_encoder_decoder
        else {"input_ids": IDS}
    )
    with contextlib.ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        out = model(**(CASES[name].inputs or ids))
    return {"last_hidden_state": out} if isinstance(out, torch.Tensor) else out, caught


def effects(name, *, equal):
    """By module, how much (positions, rows) of its output moves one position of the model's, at most 1.

    An encoder's modules are looked at in what the encoder puts out.
    """
    modules, read = holders(part for role in "qkv" for part in with_role(name, role)), CASES[name].read
    out, caught = run(
        name, modules + ([(read, built(name).get_submodule(read))] if read else []), equal=equal
    )
    last = caught.pop(read) if read else out.get("logits", out.get("last_hidden_state"))
    inner = out.get("encoder_last_hidden_state")
    found = {}
    for y, encoder in ((last, False), (inner, True)):
        mine = [n for n in caught if (inner is not None and bool(re.search(r"\bencoder\.", n))) == encoder]
        if mine:
            picked = noise(3, y.shape[-1]) @ y.flatten(0, -2)[-1].double()
            grads = [torch.autograd.grad(p, [caught[n] for n in mine], retain_graph=True) for p in picked]
            sizes = [torch.stack(of_one).abs().amax(0).flatten(0, -2) for of_one in zip(*grads, strict=True)]
            scale = max(size.max() for size in sizes)
            found |= {n: size / scale for n, size in zip(mine, sizes, strict=True)}
    return found


@pytest.mark.parametrize("name", CASES)
def test_q_k_and_v_do_what_they_are_called(name):
    mixed, level = effects(name, equal=False), effects(name, equal=True)
    for role in "qkv":
        found = with_role(name, role)
        assert len(found) == CASES[name].attentions
        for part in found:
            positions, reach = (mixed[part.name] > 0).sum(0)[part.rows], level[part.name].amax(0)[part.rows]
            assert ((reach > 1e-3) == (role == "v")).all(), part.name  # a softmax in float32 leaves 1e-6
            assert ((positions == 1) if role == "q" else (positions > 1)).all(), part.name


def moved(name, reader, part, *, inputs=False, **where):
    """What `reader` gives (or takes) for -1, 0 and 1 times these rows."""
    at = []
    for factor in (-1, 0, 1):
        with part.times(factor, **where), torch.no_grad():
            at.append(run(name, [(reader.name, reader.module)], inputs=inputs)[1][reader.name].clone())
    return at


def linear(name, reader, part, *, inputs=False):
    """Whether what `reader` gives (or takes) is linear in these rows."""
    minus, zero, plus = moved(name, reader, part, inputs=inputs)
    bend, reach = (plus + minus - 2 * zero).abs().max(), (plus - zero).abs().max()
    assert reach > 1e-6 and not 1e-4 < bend / reach < 1e-2, "no clear answer"
    return bend < 1e-4 * reach


@pytest.mark.parametrize("name", CASES)
def test_o_takes_what_is_linear_in_the_values_alone(name):
    outs = with_role(name, "o")
    assert len(outs) == CASES[name].attentions
    for role in "qkv":
        for part, out in zip(with_role(name, role), outs, strict=True):
            assert linear(name, out, part, inputs=True) == (role == "v")


def mlps(name):
    """(up, gate or None, down) of each MLP; an MLP's gate and up are fused, or next to one another."""
    ups, downs = with_role(name, "up"), with_role(name, "down")
    gates = {part.name.rpartition(".")[0]: part for part in with_role(name, "gate")}
    assert len(ups) == len(downs) == CASES[name].mlps
    found = [(u, gates.pop(u.name.rpartition(".")[0], None), d) for u, d in zip(ups, downs, strict=True)]
    assert not gates
    return found


@pytest.mark.parametrize("name", CASES)
def test_an_mlp_is_linear_in_up_if_it_has_a_gate_but_never_in_its_gate(name):
    for up, gate, down in mlps(name):
        assert linear(name, down, up) == (gate is not None)
        assert linear(name, down, down)
        assert gate is None or not linear(name, down, gate)


@pytest.mark.parametrize("name", CASES)
def test_a_row_of_up_or_gate_goes_through_the_same_column_of_down(name):
    for up, gate, down in mlps(name):
        experts = down.view.flatten(0, -3).shape[0] if down.view.ndim == 3 else 1
        for part in filter(None, (up, gate)):
            assert len(part.rows) == down.view.shape[-1]
            reached = 0
            for row, expert in itertools.product((0, 1, -1), range(experts)):
                minus, _, plus = moved(name, down, part, row=row, expert=expert)
                change = (plus - minus).flatten(0, -2)
                column = (down.view[expert] if down.view.ndim == 3 else down.view)[:, row].detach()
                along = change @ column / column.square().sum()
                assert (change - along[:, None] * column).abs().max() <= 1e-4 * change.abs().max()
                reached += bool(change.abs().max() > 1e-6)
            assert reached >= 3  # to some experts no token is sent


@pytest.mark.parametrize("name", CASES)
def test_every_row_is_in_one_part(name):
    taken = list(parts(built(name)))
    for whole in {part.whole for part in taken}:
        mine = [part for part in taken if part.whole == whole]
        assert sorted(torch.cat([part.rows for part in mine]).tolist()) == list(range(mine[0].view.shape[-2]))
        assert fused(mine[0].name) or not {"q", "k"} <= {part.role for part in mine} or name == "deberta"


@pytest.mark.parametrize("name", CASES)
def test_what_has_a_role_is_called_and_matters(name):
    found = [part for role in ROLES for part in with_role(name, role)]
    out, called = run(name, holders(found))
    assert called.keys() == {part.name for part in found}
    floats = [t for t in out.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    grads = torch.autograd.grad(sum((t * noise(*t.shape)).sum() for t in floats), [p.tensor for p in found])
    assert not [p.name for p, grad in zip(found, grads, strict=True) if not grad.any()]


@pytest.mark.parametrize("name", CASES)
def test_embed_and_head_are_what_the_model_says(name):
    model = built(name)
    try:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:
        table = head = None
    embeds = [part.tensor for part in with_role(name, "embed")]
    if isinstance(table, nn.Embedding):
        assert embeds and all(tensor is table.weight for tensor in embeds)  # T5 and BART call copies of it
    else:
        assert not embeds
    if head:
        assert [part.module for part in with_role(name, "head")] == [head]


@pytest.mark.parametrize("role", "qkv")
def test_the_matrix_inside_torch_s_attention(role):
    """Its gradient tells: for equal tokens it is v's alone, for a query token of zeros it is not q's."""
    attention, grads = nn.MultiheadAttention(16, 4).double(), {}
    nn.init.normal_(attention.in_proj_bias)
    rows = parts_of("layers.0.self_attn.in_proj_weight", 48, None)[role]
    for kind in ("equal", "zero"):
        x = noise(1, 16).expand(5, 16) if kind == "equal" else torch.cat([noise(4, 16), torch.zeros(1, 16)])
        y = attention(x, x, x)[0][-1] @ noise(16)
        grads[kind] = torch.autograd.grad(y, attention.in_proj_weight)[0][rows].abs().amax(1)
    assert ((grads["equal"] > 1e-9) == (role == "v")).all()
    assert ((grads["zero"] > 1e-9) == (role != "q")).all()


@pytest.mark.parametrize("model_type", ["of_my_own", "*"])
def test_a_declared_layout_is_used(model_type):
    name, config = f"layers.0.{model_type.strip('*')}fused", SimpleNamespace(model_type="of_my_own", groups=2)
    assert parts_of(name, 24, config) == {}
    register_fused(model_type, name.rpartition(".")[2], interleaved("groups", v=1, q=2, k=1))
    rows = torch.arange(24).view(2, 4, 3)
    expected = {"v": rows[:, :1], "q": rows[:, 1:3], "k": rows[:, 3:]}
    for role, found in parts_of(name, 24, config).items():
        assert torch.equal(found, expected.pop(role).flatten())
    assert not expected


@pytest.mark.parametrize(
    "model_type", ["gpt2", "phi3", "bloom", "falcon", "mpt", "sam_vision_model", "unknown", None]
)
@pytest.mark.parametrize(
    "last", ["c_attn", "query_key_value", "Wqkv", "qkv_proj", "qkv", "in_proj", "q_proj"]
)
def test_what_does_not_fit_or_is_not_known_is_not_guessed(model_type, last):
    config = SimpleNamespace(
        model_type=model_type, hidden_size=16, num_attention_heads=4, num_key_value_heads=2
    )
    config.new_decoder_architecture = config.multi_query = False
    assert parts_of(f"layers.0.{last}", 50, config) == {}
    if model_type in {"unknown", None}:
        assert parts_of(f"layers.0.{last}", 48, config if model_type else None) == {}


def test_a_layout_of_one_s_own_comes_before_that_for_all():
    register_fused("*", "kv_of_all", concatenated(k=1, v=1))
    register_fused("of_my_own", "kv_of_all", concatenated(v=1, k=1))
    for model_type, first in (("of_my_own", "v"), ("of_others", "k")):
        found = parts_of("attn.kv_of_all", 8, SimpleNamespace(model_type=model_type))
        assert found[first] == slice(0, 4) and len(found) == 2


def test_gpt_bigcode_s_cross_attention_is_not_guessed():
    """It has k and v in 2 x 24 rows, and a forward pass that runs with one head only."""
    config = SimpleNamespace(
        model_type="gpt_bigcode", multi_query=False, hidden_size=24, num_attention_heads=4
    )
    assert parts_of("h.0.crossattention.c_attn", 48, config) == {}
    assert parts_of("h.0.attn.c_attn", 72, config).keys() == {"q", "k", "v"}


def test_a_stack_that_nobody_described_is_none():
    holder = nn.Module()
    holder.gate_up_proj = nn.Parameter(torch.zeros(2, 6, 4))
    for config in (None, SimpleNamespace(model_type="mixtral")):
        assert stack_of("layers.0.experts.gate_up_proj", (2, 6, 4), holder, config) is None


@pytest.mark.parametrize(
    "name", ["decoder", "shared", "query", "router.classifier", "mlp.gate.wg", "mixer.out_proj"]
)
def test_a_name_that_models_use_for_different_things_plays_no_role(name):
    """T5's decoder and ModernBERT's head; EoMT's embedding of queries; experts' choosers; Mamba's output."""
    assert role_of(name) == ""


HEADED = [
    *(
        f"{family}ForSequenceClassification"
        for family in ("Bert", "Roberta", "DistilBert", "Albert", "Electra")
    ),
    *(
        f"{family}ForSequenceClassification"
        for family in ("MPNet", "Deberta", "DebertaV2", "ModernBert", "XLM")
    ),
    *(
        f"{family}ForSequenceClassification"
        for family in ("Llama", "GPT2", "GPTNeoX", "OPT", "Bloom", "Falcon")
    ),
    *(
        f"{family}ForSequenceClassification"
        for family in ("Mpt", "Gemma", "Phi3", "Bart", "T5", "Wav2Vec2", "XLNet")
    ),
    *(f"{family}ForQuestionAnswering" for family in ("Bert", "DistilBert", "MPNet", "XLM", "Bart", "GPT2")),
    *(f"{family}ForTokenClassification" for family in ("Roberta", "DebertaV2", "T5", "Falcon", "Electra")),
    *(
        f"{family}ForMaskedLM"
        for family in ("Bert", "Roberta", "DistilBert", "Albert", "Electra", "DebertaV2")
    ),
    *(f"{family}ForPreTraining" for family in ("Bert", "Albert", "Electra", "Wav2Vec2")),
    *(f"{family}ForImageClassification" for family in ("ViT", "DeiT", "Beit", "Dinov2", "Swin")),
    *("DeiTForImageClassificationWithTeacher", "GPT2DoubleHeadsModel", "WhisperForAudioClassification"),
]
HEADS_WITHOUT_A_NAME = {"XLMForSequenceClassification", "XLMForQuestionAnswering", "Wav2Vec2ForPreTraining"}


@pytest.mark.parametrize("kind", HEADED)
def test_all_outside_the_base_model_is_a_head_or_a_part_of_one(kind):
    cls = getattr(tf, kind)
    with torch.device("meta"):
        model = cls(cls.config_class(num_hidden_layers=1))
    names = [
        n
        for n, m in model.named_modules()
        if isinstance(getattr(m, "weight", None), torch.Tensor) and m.weight.ndim > 1
    ]
    inside = [n for n in names if n.startswith((f"{model.base_model_prefix}.", "encoder."))]
    assert inside and not [n for n in inside if of_head(n) and "pooler" not in n]
    outside = [n for n in names if n not in inside]
    assert outside and all(of_head(n) and role_of(n) in {"head", ""} for n in outside)
    assert any(role_of(n) == "head" for n in outside) or kind in HEADS_WITHOUT_A_NAME
