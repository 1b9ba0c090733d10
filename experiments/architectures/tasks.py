"""Task kinds on architectures, by the command line: `python experiments/architectures/tasks.py FOLDER`.

Writes tiny random models and data to the folder, makes a run of two steps for each pair that transformers has
a class for ("-": it has none), and prints the table and the reason of each refusal.
"""

import contextlib
import io
import json
import string
import sys
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lora_zoo import run
from lora_zoo.config.task_types import TASK_TYPES

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1}
TWO = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = TWO | {"num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2}
EXPERTS |= {"moe_intermediate_size": 8, "intermediate_size_mlp": 32, "interleave_moe_layer_step": 1}
HALF = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}
PARTS = {f"{half}_{key}": n for half in ("encoder", "decoder") for key, n in HALF.items()} | {"d_model": 16}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "num_decoder_layers": 2}
VISION = {"image_size": 8, "patch_size": 4}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "window_size": 4}
SPEECH = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 4), "num_feat_extract_layers": 2}
SPEECH |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
ALIKE: dict[str, dict[str, Any]] = {
    "gpt2 gpt_neox gpt_bigcode bloom falcon phi biogpt": {},
    "llama mistral qwen2 qwen3 gemma gemma2 olmo phi3 granite cohere stablelm starcoder2 glm smollm3": TWO,
    "mixtral gpt_oss qwen3_moe olmoe llama4_text": EXPERTS,
    "gptj": {"rotary_dim": 4},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "mpt": {"n_heads": 2, "expansion_ratio": 2},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "bert roberta xlm-roberta electra mpnet camembert": {},
    "deberta deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "distilbert": {"hidden_dim": 32},
    "albert": {"embedding_size": 16},
    "modernbert": {"global_attn_every_n_layers": 2},
    "longformer": {"attention_window": 8},
    "t5 mt5 longt5 umt5": T5 | {"decoder_start_token_id": 0},
    "bart mbart pegasus marian blenderbot": PARTS | {"decoder_start_token_id": 2},
    "whisper": PARTS | {"max_source_positions": 8, "num_mel_bins": 4, "decoder_start_token_id": 1},
    "vit dinov2 beit ijepa": VISION,
    "clip": {"vision_config": SIZES | VISION, "text_config": SIZES},
    "swin": SWIN | {"num_attention_heads": [2, 2]},
    "convnext resnet": {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8},
    "wav2vec2 hubert wavlm unispeech": SPEECH,
    "audio-spectrogram-transformer": {"patch_size": 4, "max_length": 24, "num_mel_bins": 4},
}
ARCHITECTURES = {name: own for names, own in ALIKE.items() for name in names.split()}
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = {word: n for n, word in enumerate((*SPECIAL.values(), *string.ascii_lowercase))}
"""Each is one character: in Qwen2's folder transformers reads any vocabulary as one of byte pairs."""
CHAT = "{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}"
RATE = 2560
"""Samples of a sound in a second: 16 frames of the tiny Whisper."""
FILES = "task.data_files={train: rows.json, validation: rows.json, test: rows.json}"
TEXT = ("task.dataset=json", FILES, "task.max_length=16", "task.max_new_tokens=3")
KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("classification", "causal_lm", "instructions", "language_modelling", "seq2seq"), TEXT),
    "regression": (*TEXT, "task.columns={text: text, label: score}", "task.metrics=[pearson]"),
    "options": (*TEXT, "task.columns={prompt: prompt, options: options, label: target}"),
    "boolq": (*TEXT, "task.columns={prompt: prompt, passage: text, label: label}", "task.labels=[y,n]"),
    **dict.fromkeys(("image_classification", "audio_classification"), ()),
}
RUN = "+variant=lora rank=2 target_modules=all-linear steps=2 batch_size=4 tracking=none threads=1"


def write_data(folder: Path) -> None:
    """Sixteen rows for all kinds of text, and as many images and sounds, in two classes."""
    rng, rows = np.random.default_rng(0), []
    for number in range(16):
        first, second, label = *rng.choice([*"abcdefgh"], 2, replace=False), "yn"[number % 2]
        row = {"text": f"{first} {second} a b", "label": label, "score": number, "prompt": f"{first} q"}
        rows.append(row | {"target": second, "options": [first, second]})
        rows[-1] |= {"instruction": first, "output": second}
        for split in ("train", "test"):
            place = folder / split / label / str(number)
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16, 3)).astype("uint8")).save(f"{place}.png")
            with wave.open(f"{place}.wav", "wb") as sound:
                sound.setparams((1, 2, RATE, 0, "NONE", ""))
                sound.writeframes(rng.integers(-9999, 9999, RATE).astype("<i2").tobytes())
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))


def write_model(name: str, folder: Path) -> Any:
    """Save the tiny model with a tokenizer or processor, and return its configuration."""
    config = tf.AutoConfig.for_model(name, **{**SIZES, "eos_token_id": 2, **ARCHITECTURES[name]})
    wholes = (tf.AutoModelForSeq2SeqLM, tf.AutoModelForSpeechSeq2Seq, tf.AutoModelForCausalLM)
    torch.manual_seed(0)
    whole = next((one for one in wholes if type(config) in one._model_mapping), tf.AutoModel)
    whole.from_config(config).save_pretrained(folder)
    made = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if config.is_encoder_decoder:
        made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    reads = {"chat_template": CHAT, "model_input_names": ["input_ids", "attention_mask"]}
    tf.PreTrainedTokenizerFast(tokenizer_object=made, **reads, **SPECIAL).save_pretrained(folder)
    side, sounds = getattr(config, "image_size", 8), {"sampling_rate": RATE}
    makers = {
        "audio-spectrogram-transformer": tf.ASTFeatureExtractor(num_mel_bins=4, max_length=24, **sounds),
        "whisper": tf.WhisperFeatureExtractor(feature_size=4, chunk_length=1, **sounds),
        **{n: tf.Wav2Vec2FeatureExtractor(**sounds) for n, own in ARCHITECTURES.items() if own is SPEECH},
    }
    images = tf.ViTImageProcessor(size={"height": side, "width": side})
    makers.get(name, images).save_pretrained(folder)
    return config


def outcome(words: Sequence[str], out: Path) -> str:
    """`ran`, if a run leaves an adapter and its metrics in `out`; else why not."""
    printed, code = io.StringIO(), None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            run.main([*RUN.split(), *words, f"out={out}"])
        except SystemExit as end:
            code = end.code
    records: list[dict[str, Any]] = [json.loads(path.read_text()) for path in out.glob("*/result.json")]
    record = records[0] if records else {}
    if code == 0 and record["metrics"]["test"] and any(out.rglob("*.safetensors")):
        return "ran"
    return record["error"]["message"] if "error" in record else printed.getvalue().splitlines()[-1]


def row(name: str, folder: Path) -> Iterator[str]:
    """The outcome of every kind."""
    model = folder / "models" / name
    config = write_model(name, model)
    for kind, keys in KINDS.items():
        auto_class = TASK_TYPES["multiple_choice" if kind == "boolq" else kind].auto_class
        if type(config) not in getattr(tf, auto_class)._model_mapping:
            yield "-"
            continue
        decoder_alone = auto_class == "AutoModelForCausalLM" and config.is_encoder_decoder
        words = ["exclude_modules=['.*encoder_attn.*']"] if decoder_alone else []  # which it does not use
        words += [f"model={model}", f"task={kind}", f"task.data_dir={folder / 'data'}", *keys]
        yield outcome(words, folder / "runs" / name / kind).replace(f"{model}", "…")


def main(folder: Path) -> None:
    write_data(folder / "data")
    print(f"| architecture | {' | '.join(KINDS)} |\n{'|---' * (len(KINDS) + 1)}|")
    every, refusals = list[str](), dict[str, list[str]]()
    for name in ARCHITECTURES:
        cells = list(row(name, folder))
        for cell in {*cells} - {"ran", "-"}:
            refusals.setdefault(cell, []).append(name)
        print(f"| {name} | {' | '.join(c if c in ('ran', '-') else 'refused' for c in cells)} |", flush=True)
        every += [cell for cell in cells if cell != "-"]
    print("\n" + "\n".join(f"- {', '.join(names)}: {why}" for why, names in refusals.items()))
    print(f"\n{every.count('ran')} of {len(every)} ran, of {len(ARCHITECTURES)} architectures.")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
