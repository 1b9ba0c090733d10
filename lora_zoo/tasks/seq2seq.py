"""Generation by an encoder-decoder."""

from torch import Tensor, nn

from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import on_device
from lora_zoo.tasks.causal_lm import CausalLM
from lora_zoo.tasks.cutting import Example, Fitted, fitted_target


@TASK_TYPES.register("seq2seq")
class Seq2Seq(CausalLM):
    """An encoder reads the prompt, a decoder writes the target; each has `task.max_length` tokens."""

    auto_class = "AutoModelForSeq2SeqLM"

    def fitted_input(self, example: Example) -> Fitted:
        inputs, cut = super().fitted_input(example)
        return Fitted({name: inputs[name] for name in ("input_ids", "attention_mask")}, cut)

    def fitted(self, example: Example) -> Fitted:
        inputs, cut = self.fitted_input(example)
        ids = self.tokenizer(text_target=self._body(example["target"]), verbose=False)["input_ids"]
        body = ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids
        target, short = fitted_target(body, self.end, self.task.max_length)
        return Fitted(inputs | {"labels": target}, cut or short)

    def _forced(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = on_device(batch, model)
        return model(**inputs).logits, inputs["labels"]  # from the labels it makes the decoder's inputs

    def _texts(self, model: nn.Module, rows: list[Example]) -> list[str]:
        batch = self.collate([self.fitted_input(row).inputs for row in rows])
        return self._generated(model, batch, start=1)
