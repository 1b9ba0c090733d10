"""Which architectures run which task types, end to end: tiny random models, tiny data, one sweep a task type.

python experiments/architectures/tasks.py FOLDER     # models, data and runs; prints the table

"-": transformers has no such class for the architecture.
"""

import functools
import json
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CLASSES = {
    **dict.fromkeys(("classification", "regression"), tf.AutoModelForSequenceClassification),
    **dict.fromkeys(("causal_lm", "instructions", "options", "language_modelling"), tf.AutoModelForCausalLM),
    "seq2seq": tf.AutoModelForSeq2SeqLM,
    "image_classification": tf.AutoModelForImageClassification,
    "audio_classification": tf.AutoModelForAudioClassification,
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TWO = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = TWO | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
PARTS = {
    **{f"{half}_layers": 2 for half in ("encoder", "decoder")},
    **{f"{half}_attention_heads": 2 for half in ("encoder", "decoder")},
    **{f"{half}_ffn_dim": 32 for half in ("encoder", "decoder")},
    **{"d_model": 16, "decoder_start_token_id": 2},
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "num_decoder_layers": 2}
VISION = {"image_size": 8, "patch_size": 4}
SPEECH = {
    **{"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 4), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8},
    **{"apply_spec_augment": False, "layerdrop": 0.0},
}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}
ALIKE: dict[str, dict[str, Any]] = {
    "gpt2 gpt_neox gpt_bigcode bloom falcon phi biogpt": {},
    "llama mistral qwen2 qwen3 gemma gemma2 olmo phi3 granite cohere stablelm starcoder2 glm smollm3": TWO,
    "mixtral gpt_oss": EXPERTS | {"num_local_experts": 3},
    "qwen3_moe olmoe": EXPERTS,
    "gptj": {"rotary_dim": 4},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "mpt": {"n_heads": 2, "expansion_ratio": 2},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "bert roberta xlm-roberta electra mpnet camembert deberta deberta-v2": {},
    "distilbert": {"hidden_dim": 32},
    "albert": {"embedding_size": 16},
    "modernbert": {"global_attn_every_n_layers": 2},
    "longformer": {"attention_window": 8},
    "t5 mt5 longt5 umt5": T5 | {"decoder_start_token_id": 0},
    "bart mbart pegasus marian blenderbot": PARTS,
    "vit dinov2 beit ijepa": VISION,
    "convnext resnet": STAGES,
    "wav2vec2 hubert wavlm unispeech": SPEECH,
    "audio-spectrogram-transformer": {"patch_size": 4, "max_length": 24, "num_mel_bins": 16},
}
ARCHITECTURES = {name: own for names, own in ALIKE.items() for name in names.split()}
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = ["red", "green", "blue", "one", "two", "three", "is", "the", "question", "add", "assistant"]
CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }} {{ eos_token }} {% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant {% endif %}"


@functools.cache
def tokenizer() -> tf.PreTrainedTokenizerFast:
    """Byte-level BPE, as most architectures' own tokenizers are."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIAL.values()], initial_alphabet=alphabet),
    )
    ends = [(word, made.token_to_id(word)) for word in ("<s>", "</s>")]
    of = {"single": "<s> $A </s>", "pair": "<s> $A </s> $B </s>"}
    made.post_processor = processors.TemplateProcessing(**of, special_tokens=ends)  # type: ignore[assignment]
    whole = tf.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **SPECIAL)
    whole.chat_template = CHAT
    return whole


def write_model(name: str, kind: str, folder: Path) -> None:
    """Save a tiny random model of the architecture, without a head for classes or numbers."""
    torch.manual_seed(0)
    words = {"vocab_size": len(tokenizer()), "max_position_embeddings": 80}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = tf.AutoConfig.for_model(name, **{**SIZES, **words, **ends, **ARCHITECTURES[name]})
    model = CLASSES[kind].from_config(config)
    (model.base_model if "classification" in kind or kind == "regression" else model).save_pretrained(folder)
    if kind == "image_classification":
        side = getattr(config, "image_size", 32)
        tf.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    elif name == "audio-spectrogram-transformer":
        tf.ASTFeatureExtractor(num_mel_bins=16, max_length=24).save_pretrained(folder)
    elif kind == "audio_classification":
        tf.Wav2Vec2FeatureExtractor(sampling_rate=16000, return_attention_mask=True).save_pretrained(folder)
    else:
        tokenizer().save_pretrained(folder)


def write_data(folder: Path) -> dict[str, list[str]]:
    """Write tiny data of every task type; return the overrides by which a run reads them."""
    colours = ["red", "green"]
    pairs = [(colour, number) for number in WORDS[3:6] for colour in colours]
    rows: dict[str, list[dict[str, Any]]] = {
        "classification": [{"text": f"the {c} is {n}", "label": c} for c, n in pairs],
        "regression": [{"text": f"the {c} is {n}", "label": 0.5 * i} for i, (c, n) in enumerate(pairs)],
        "causal_lm": [{"prompt": f"question {c} {n}", "target": c} for c, n in pairs],
        "instructions": [{"instruction": f"add {n} {c}", "input": "", "output": c} for c, n in pairs],
        "options": [{"prompt": f"{c} {n}", "options": colours, "label": c} for c, n in pairs],
    }
    rows["seq2seq"] = rows["causal_lm"]
    for kind, own in rows.items():
        (folder / f"{kind}.json").write_text("\n".join(json.dumps(row) for row in own * 2))
    (folder / "language_modelling.txt").write_text("\n".join(" ".join(WORDS) for _ in range(20)))
    rng = np.random.default_rng(0)
    for number in range(12):
        at = [folder / of / "train" / colours[number % 2] for of in ("images", "sounds")]
        for place in at:
            place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (9, 11, 3)).astype("uint8")
        Image.fromarray(pixels).save(at[0] / f"{number}.png")
        with wave.open(str(at[1] / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(rng.integers(-9999, 9999, 6000).astype("<i2").tobytes())

    def of(file: str) -> list[str]:
        every = ",".join(f"{split}:{file}" for split in ("train", "validation", "test"))
        reader = "text" if file.endswith(".txt") else "json"
        return [f"task.dataset={reader}", f"task.data_dir={folder}", f"task.data_files={{{every}}}"]

    told = {kind: of(f"{kind}.json") for kind in rows} | {"language_modelling": of("language_modelling.txt")}
    told["options"] += ["task.columns={prompt:prompt,options:options,label:label}"]
    for kind, name in (("image_classification", "images"), ("audio_classification", "sounds")):
        told[kind] = [f"task.data_dir={folder / name}", "task.validation_fraction=0.25"]
    for kind in ("instructions", "causal_lm", "seq2seq"):
        told[kind] += ["task.max_new_tokens=4"]
    for kind in told.keys() - {"image_classification", "audio_classification"}:
        told[kind] += ["task.max_length=48"]
    return told


def swept(kind: str, told: list[str], names: list[str], folder: Path) -> dict[str, str]:
    """Run the task type on the models: "ran", or the message of the refusal."""
    sweep = folder / "runs" / kind
    words = [f"task={kind}", *told, f"model={','.join(str(folder / kind / name) for name in names)}"]
    words += ["+variant=lora", "rank=2", "target_modules=[all-linear]", "steps=2", "task.batch_size=4"]
    words += ["threads=1", "tracking=none", f"hydra.sweep.dir={sweep}", f"out={folder / 'out'}"]
    command = [sys.executable, "-m", "lora_zoo.run", "-m", *words]
    subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL, check=False)
    found = dict.fromkeys(names, "no record")
    for path in sweep.glob("*/result.json"):
        record = json.loads(path.read_text())
        name = Path(record["config"]["model"]["path"]).name
        said = record.get("error", {}).get("message", record["state"])
        said = said.replace(str(folder / kind / name), "MODEL").replace(f"({name})", "(TYPE)")
        found[name] = "ran" if record["state"] == "done" else said
    return found


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    told, table = write_data(folder), dict[str, dict[str, str]]()
    for kind, classes in CLASSES.items():
        able = [n for n in ARCHITECTURES if tf.CONFIG_MAPPING[n] in classes._model_mapping]
        for name in able:
            write_model(name, kind, folder / kind / name)
        table[kind] = swept(kind, told[kind], able, folder)
    cells = [said for row in table.values() for said in row.values()]
    notes = [*dict.fromkeys(said for said in cells if said != "ran")]
    short = {"ran": "ran", "-": "-"} | {said: f"refused ({n})" for n, said in enumerate(notes, start=1)}
    print("| architecture |", " | ".join(CLASSES), "|")
    print("|" + "---|" * (len(CLASSES) + 1))
    for name in ARCHITECTURES:
        print(f"| {name} |", " | ".join(short[row.get(name, "-")] for row in table.values()), "|")
    print(f"\n{cells.count('ran')} of {len(cells)} ran, on {len(ARCHITECTURES)} architectures. Refused:\n")
    for number, said in enumerate(notes, start=1):
        print(f"{number}. {said}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
