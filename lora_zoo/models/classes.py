"""The classes of transformers that load a base, and PEFT's task types."""

TASKS: dict[str, str | None] = {
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForImageClassification": None,
    "AutoModel": "FEATURE_EXTRACTION",
}
"""The class that loads a base -> PEFT's task type, None where PEFT has none."""
PROCESSORS = {"AutoModelForImageClassification": "AutoImageProcessor"}
"""The class that loads a base -> the one that loads what makes its inputs, where that is no tokenizer."""
