"""The keys of a run. Types are enforced when the configuration is composed, the rest by `validate`.

Hydra merges `conf/` into these classes, so that a wrong key or type is caught before torch is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from lora_zoo.config.quantization import SCHEMES
from lora_zoo.config.task_types import TASK_TYPES

# What a run is called, where it goes, who is told of it, how fast it is computed, and what is left of it when
# it dies change no result.
INERT = (
    *("out", "tracking", "threads", "eval_before_training", "merge", "eval_splits", "dry_run"),
    *("resume", "save_minutes", "forgetting_text", "experiment"),
    *("seeds", "rates", "search"),  # the plans of sweeps that add seeds or search: see `sweeps`
    *("files", "variant_file"),  # whose content stands in the identity, not where they lie; once, one alone
)
INERT_TASK = ("likelihood",)
INERT_TRAINER = (
    *("save_steps", "save_total_limit", "save_strategy", "dataloader_num_workers", "dataloader_pin_memory"),
    *("dataloader_prefetch_factor", "dataloader_persistent_workers", "run_name", "push_to_hub", "hub_token"),
)
SPLITS = ("train", "validation", "test")
FOLDERS = ("imagefolder", "audiofolder")
"""Readers of folders of classes, which give one class after the other."""
_SEEDS, _COUNT, _LONGEST = 2**32 - 1, 2**31 - 1, 2**20


def key(
    default: Any,
    says: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    among: Sequence[str] = (),
    filled: bool = False,
) -> Any:
    """A key with its help text and what it may hold: a range, words `among` these, a list that is `filled`.

    Of a list or dictionary, each value must be in the range or among the words.
    """
    about: dict[str, Any] = {"help": says, "above": above, "least": least, "below": below, "most": most}
    about |= {"among": tuple(among), "filled": filled}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    return field(default=default, metadata=about)


@dataclass
class Model:
    name: str = key(MISSING, "how runs call the model")
    path: str = key(MISSING, "a folder in Hub format, or a name on the Hub")
    dtype: str = key(
        "float32",
        "float32, bfloat16, float16 or auto (the checkpoint's own)",
        among=("float32", "bfloat16", "float16", "auto"),
    )
    revision: str | None = key(None, "branch, tag or commit on the Hub")
    attn_implementation: str | None = key(None, "eager, sdpa, flash_attention_2, …")
    device_map: str | None = key(
        None,
        "device on which the weights are loaded (cuda:0, auto); default: the CPU, then the run's device",
    )
    trust_remote_code: bool = key(False, "run code that a Hub repository brings")
    ignore_mismatched_sizes: bool = key(
        False, "a head of another size than the checkpoint's is initialised again, and fully trained"
    )
    quantization: str | None = key(
        None,
        "quantise the linear layers as they are loaded: nf4, fp4, int8 (bitsandbytes), torchao_int8, …, or "
        "reference_nf4, reference_int4, … in plain torch, for research on any machine",
        among=tuple(SCHEMES),
    )
    bnb_4bit_use_double_quant: bool = key(False, "nf4, fp4, reference_nf4: quantise the scales as well")
    bnb_4bit_compute_dtype: str | None = key(
        None, "nf4, fp4: dtype of the layers' products (float32)", among=("float32", "bfloat16", "float16")
    )
    bnb_4bit_quant_storage: str | None = key(
        None,
        "nf4, fp4: dtype in which codes are stored (uint8)",
        among=("uint8", "float32", "bfloat16", "float16"),
    )
    llm_int8_threshold: float | None = key(
        None, "int8: inputs above it are not rounded (6.0); 0: all are", least=0
    )
    group_size: int | None = key(
        None,
        "torchao_intx, of 4 bits, and reference_int4: weights that share a scale (32)",
        least=1,
        most=65536,
    )


@dataclass
class Task:
    name: str = key(MISSING, "how runs call the task")
    type: str = key(MISSING, ", ".join(TASK_TYPES), among=tuple(TASK_TYPES))
    dataset: str = key(
        MISSING,
        "csv, json, parquet, text, imagefolder, audiofolder, a name on the Hub, or a generator (pocket-sql…)",
    )
    config_name: str | None = key(None, "the data set's configuration on the Hub")
    data_dir: str | None = key(None, "the folder in which data_files lie, or all its files without them")
    data_files: dict[str, str] = key({}, "split: file, for local data")
    options: dict[str, Any] = key(
        {},
        "further arguments: of datasets.load_dataset (delimiter, …), or of a generated data set (difficulty)",
    )
    splits: dict[str, str] = key(
        {}, "train/validation/test: the split's name in the data set; it then has no other role"
    )
    validation_fraction: float = key(
        0.1, "part of train held out where there is no validation split", above=0, below=1
    )
    sizes: dict[str, int] = key(
        {}, "split: the most examples; a table gives its first, a folder of classes some at random", least=1
    )
    columns: dict[str, str] = key({}, "text, text_pair and label, prompt and target, …: the data's columns")
    template: str = key("{prompt}", "the model's input, from the data's columns in braces")
    chat_template: str | None = key(
        None, "for instructions: a file with a Jinja chat template; default: the tokenizer's own"
    )
    labels: list[str] | None = key(
        None, "the label set; its order gives the label ids (f1 counts the second)", filled=True
    )
    by_heart: bool = key(False, "memorisation: the train split is also the validation and the test split")
    stop: str | None = key(None, "what ends a target; default: the tokenizer's end-of-sequence token")
    group_references: bool = key(False, "examples with the same prompt are several references of one item")
    groups: str | None = key(
        None, "a column: results are also given for each of its values, such as the tasks of a sequence"
    )
    metrics: list[str] = key(MISSING, "evaluate modules; the first is the one that counts", filled=True)
    metric_arguments: dict[str, Any] = key({}, "metric: its own arguments (f1: {average: macro})")
    likelihood: bool = key(
        True,
        "also measure the likelihood of references; false saves a task that generates one pass over the data",
    )
    max_length: int = key(
        256,
        "tokens of input and target; longer prompts lose their start, longer texts and targets their end",
        least=2,
        most=_LONGEST,
    )
    max_new_tokens: int = key(64, "tokens to generate at most", least=1, most=_LONGEST)
    num_beams: int = key(1, "beams of the search that generates", least=1, most=1000)
    lr: float = key(MISSING, "learning rate that suits LoRA on this task", above=0)
    steps: int | None = key(None, "default number of optimiser steps", least=1, most=_COUNT)
    epochs: float | None = key(
        None, "default number of epochs, where steps is not given", above=0, most=_COUNT
    )
    batch_size: int = key(16, "default batch size", least=1, most=_COUNT)
    eval_batch_size: int = key(64, "batch size of evaluation and generation", least=1, most=_COUNT)


@dataclass
class Tracking:
    backend: str = key("wandb", "wandb or none", among=("wandb", "none"))
    project: str = key("lora_zoo", "W&B project")
    entity: str | None = key(None, "W&B team or user")
    mode: str = key(
        "auto",
        "auto (online when logged in, else offline), online, offline or disabled",
        among=("auto", "online", "offline", "disabled"),
    )
    log_adapter: bool = key(True, "upload the adapter as an artifact")
    tags: list[str] = key([], "W&B tags")
    notes: str | None = key(None, "W&B notes")


@dataclass
class Settings:
    rank: int = key(8, "rank of each update", least=1, most=65536)
    alpha: Any = key(
        "auto",
        "scale of the update before division by the rank; 2r: twice the rank that is used; auto: the paper's",
        above=0,
    )
    init: str = key("auto", "kaiming, gaussian, orthogonal, pissa, milora, olora, …; auto: the variant's own")
    calibration_examples: int = key(
        128,
        "training examples for an init that needs data (eva, lora_ga)",
        least=1,
        most=_COUNT,
    )
    lora_dropout: float = key(0.0, "dropout on the adapter branch's input", least=0, below=1)
    target_modules: Any = key(
        "auto",
        "roles (q k v o gate up down embed head), all-linear, switches of LitGPT (lora_query, lora_mlp, …), "
        "names, a regex; auto: q, v or the paper's own",
        filled=True,
    )
    exclude_modules: Any = key([], "targets that are not adapted, in the same words")
    layers: Any = key(
        None,
        "layers to adapt: 3, 0-5, 8-, -1 (the last), random:4 (drawn by seed), a list of these; default: all",
        filled=True,
    )
    rank_pattern: dict[str, Any] = key(
        {},
        "ranks of some targets, e.g. rank_pattern={q:4}; 4-12: 4 in the first layer, 12 in the last",
        least=1,
        most=65536,
    )
    alpha_pattern: dict[str, Any] = key({}, "alphas of some targets, e.g. alpha_pattern={q:32}", above=0)
    budget: Any = key(None, "trainable parameters of the adapters (300k, 1.5M): finds the rank")
    prior: list[str] | None = key(
        None,
        "frozen adapters that stay active under the new one: folders of runs, ours or PEFT's",
        filled=True,
    )
    start_from: str | None = key(
        None,
        "an adapter to train further: a run's folder, ours or PEFT's, with this variant and rank",
        filled=True,
    )
    replay: float = key(
        0.0,
        "fraction of the training examples of start_from's and prior's runs that are trained on again",
        least=0,
        most=1,
    )
    modules_to_save: Any = key(
        "auto", "fully trained modules; auto: heads that the checkpoint lacks; all-norms, all-embeddings"
    )
    branch_dtype: str | None = key(
        None,
        "dtype of the adapter's products on a bfloat16 base; default: bfloat16 if the device supports it",
        among=("float32", "bfloat16"),
    )
    lr: float = key(MISSING, "learning rate", above=0)
    steps: int | None = key(None, "optimiser steps", least=1, most=_COUNT)
    epochs: float | None = key(None, "epochs, instead of steps", above=0, most=_COUNT)
    batch_size: int = key(16, "examples per step, of all processes together", least=1, most=_COUNT)
    processes: int | None = key(
        None, "processes that train the run together; torchrun --nproc-per-node sets it", least=1, most=_COUNT
    )
    fsdp: bool = key(
        False,
        "processes divide the frozen base among them (FSDP2), each with a part of every weight: the same "
        "results in less memory; accelerate launch --use_fsdp sets it",
    )
    padding_free: bool = key(
        False,
        "examples of a step in one row without padding, attention within each: the same training (decoders)",
    )
    packing: bool = key(
        False,
        "whole examples fill rows of task.max_length tokens, attention within each; batch_size counts rows",
    )
    seed: int = key(0, "seed of initialisation, dropout and new heads", least=0, most=_SEEDS)
    data_seed: int = key(0, "seed of the data order", least=0, most=_SEEDS)
    eval_splits: list[str] = key(
        ["validation", "test"], "splits that are evaluated at the end", among=SPLITS, filled=True
    )
    forgetting_text: str | None = key(
        "auto",
        "loss on another text, before and after training: pocket (its own), a text file, null (none), or "
        "auto: that of the pocket model, whose text is known",
    )
    eval_before_training: bool = key(True, "also evaluate the model before training")
    resume: bool | None = key(
        None,
        "true: continue where this run stopped; false: start again; default: true in a sweep, false in a run",
    )
    save_minutes: float = key(
        5.0, "minutes between checkpoints, in addition to trainer.save_steps; 0: none", least=0
    )
    early_stopping_patience: int | None = key(
        None,
        "stop after this number of evaluations (trainer.eval_steps) without a better value of "
        "trainer.metric_for_best_model, and keep the best adapter; default: train to the end",
        least=1,
        most=_COUNT,
    )
    early_stopping_threshold: float = key(
        0.0, "the smallest improvement that counts for early stopping", least=0
    )
    on_nonfinite: str = key(
        "stop", "when loss or gradients are NaN or Inf: stop, or skip the step", among=("stop", "skip")
    )
    dropbp: float = key(
        0.0,
        "DropBP: probability that a sub-layer's backward pass is dropped, with any variant; 0: never",
        least=0,
        below=1,
    )
    dropbp_warmup: float = key(0.0, "fraction of the run in which nothing is dropped", least=0, below=1)
    dropbp_uniform: bool = key(
        False, "one rate for all sub-layers; false: rates by their sensitivity, from a tenth of the run on"
    )
    trial: bool = key(False, "a run that only serves to choose settings, as lr=auto does: no table counts it")
    dry_run: bool = key(False, "only list what would be adapted; needs only the model's config.json")
    merge: bool = key(False, "also write the merged model, in Hub format")
    threads: int | None = key(None, "CPU threads; default: by the size of a step", least=1, most=1024)
    out: str = key("runs", "folder for the run folders")
    experiment: dict[str, Any] = key({}, "the entries of conf/experiment/ about the run's sweep")
    variant: dict[str, Any] = key({}, "the variant's own hyperparameters")
    program: dict[str, Any] = key({}, "the program's own hyperparameters, where program= chooses one")
    files: list[str] = key([], "Python files of your own: variant=, init= and program=FILE.py set them")
    model: Model = field(default_factory=Model)
    task: Task = field(default_factory=Task)
    trainer: dict[str, Any] = key({}, "arguments of transformers.TrainingArguments")
    tracking: Tracking = field(default_factory=Tracking)


KEYS = tuple(f.name for f in fields(Settings))


def register() -> None:
    """Make the schema known to Hydra under the name `schema`, and the resolvers of interpolations.

    `${mul:FACTOR,…}` is a product; `${pick:WORD,{WORD: VALUE, …},DEFAULT}` a value by a word (a task's name).
    """
    ConfigStore.instance().store(name="schema", node=Settings)
    OmegaConf.register_new_resolver("mul", lambda *factors: _product(factors), replace=True)
    OmegaConf.register_new_resolver(
        "pick", lambda word, table, default: table.get(word, default), replace=True
    )


def _product(factors: Any) -> float:
    result = 1.0
    for factor in factors:
        result *= float(factor)
    return result


def file_of(task: Task, name: str) -> Path:
    """The path of a local data file."""
    return Path(task.data_dir or ".").expanduser() / name
