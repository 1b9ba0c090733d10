"""A LoRA for each task, chosen by the task's name: the bound of all methods that must guess the task."""

import torch
from torch import Tensor

from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import register
from lora_zoo.variants.continual.task_loras import TaskLoRAs, ToldOfTasks


@register("task_lora")
class TaskLoRA(TaskLoRAs):
    """The rows of a task go through its LoRA, those of a task that has none through the base alone.

    Where nobody tells of the task, the newest one is meant.
    """

    title = "LoRA per task"
    paper = "arXiv:2106.09685"
    equation = "W' x = W x + s B_t A_t x, t the task that is told"
    count = "R * (O + I)"
    hooks = ToldOfTasks

    def branch(self, x: Tensor, dropped: Tensor, host: LayerHost) -> Tensor:
        told = self.tasks[-1] if self.told is None else self.told
        if told not in self.tasks:
            return x.new_zeros(())
        return self.one(self.tasks.index(told), dropped, host)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Of all tasks' factors, the last are those that train, with the scale."""
        B_TOR, A_TRI = self.stacked()
        assert len(A_TRI) == len(self.tasks)
        torch.testing.assert_close(B_TOR[-1] @ A_TRI[-1], self.scale * self.B_OR @ self.A_RI)
