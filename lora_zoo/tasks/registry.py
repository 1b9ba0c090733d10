"""Task types by name."""

from lora_zoo.tasks.base import TaskType
from lora_zoo.tasks.causal_lm import CausalLM
from lora_zoo.tasks.classification import Classification
from lora_zoo.tasks.multiple_choice import MultipleChoice
from lora_zoo.tasks.regression import Regression
from lora_zoo.tasks.seq2seq import Seq2Seq

TASK_TYPES: dict[str, type[TaskType]] = {
    "classification": Classification,
    "regression": Regression,
    "choice": MultipleChoice,
    "generation": CausalLM,
    "seq2seq": Seq2Seq,
}
