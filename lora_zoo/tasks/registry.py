"""Task types by name."""

from lora_zoo.tasks.base import Kind
from lora_zoo.tasks.causal_lm import Generation
from lora_zoo.tasks.classification import Classification
from lora_zoo.tasks.multiple_choice import Choice
from lora_zoo.tasks.regression import Regression
from lora_zoo.tasks.seq2seq import Seq2Seq

KINDS: dict[str, type[Kind]] = {
    "classification": Classification,
    "regression": Regression,
    "choice": Choice,
    "generation": Generation,
    "seq2seq": Seq2Seq,
}
