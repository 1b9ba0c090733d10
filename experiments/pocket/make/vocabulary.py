"""The word-level tokenizer: one token for each word of the closed world."""

import random

import genres
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lora_zoo.pocket import grammar, nli, sql

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_SAMPLE = 4_000
"""Documents of each kind that are read for their words; rarer words come from the grammar's own lists."""


def words() -> list[str]:
    """All words of pretraining and tasks, sorted."""
    rng = random.Random("pocket vocabulary")
    texts = [genre(rng) for _, shares in genres.STAGES for genre in shares for _ in range(_SAMPLE // 10)]
    rows = sql.examples("train", _SAMPLE, 0) + nli.examples("train", _SAMPLE, 0)
    texts += [" ".join(row.values()) for row in rows]
    texts += grammar.FIRST + grammar.LAST + grammar.TITLE_HEAD + grammar.TITLE_TAIL
    texts += grammar.NUMBERS + grammar.YEARS
    texts += [*grammar.COUNTRY_OF, *grammar.CATEGORY_OF, *grammar.SEASON_OF, *nli.LABELS]
    return sorted({word for text in texts for word in text.split()})


def tokenizer() -> PreTrainedTokenizerFast:
    """Splits at whitespace, puts <s> first, and maps a word outside the closed world to <unk>."""
    ids = {word: index for index, word in enumerate(SPECIAL + words())}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=256, padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
