"""Task types by name: classes under `lora_zoo/tasks/`, which import torch when one of them is asked for."""

from typing import TYPE_CHECKING

from lora_zoo.core.registry import Registry

if TYPE_CHECKING:
    from lora_zoo.tasks.base import TaskType

TASK_TYPES: "Registry[type[TaskType]]" = Registry("task type", "lora_zoo.tasks", attribute="name")
