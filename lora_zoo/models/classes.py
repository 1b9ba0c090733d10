"""The classes of transformers that load a base, and PEFT's task types."""

from typing import NamedTuple

TASKS: dict[str, str | None] = {
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForImageClassification": None,
    "AutoModelForAudioClassification": None,
    "AutoModel": "FEATURE_EXTRACTION",
}
"""The class that loads a base -> PEFT's task type, None where PEFT has none."""


class Processor(NamedTuple):
    """The class that loads what makes inputs, and what people call it."""

    auto_class: str
    words: str


PROCESSORS = {
    "AutoModelForImageClassification": Processor("AutoImageProcessor", "image processor"),
    "AutoModelForAudioClassification": Processor("AutoFeatureExtractor", "feature extractor"),
}
"""The class that loads a base -> the one that loads what makes its inputs, where that is no tokenizer."""
