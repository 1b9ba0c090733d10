"""Task types by name: classes under `lora_zoo/tasks/`, which import torch when one of them is asked for."""

from typing import Any

from lora_zoo.core.registry import Registry

TASK_TYPES: Registry[Any] = Registry("task type", "lora_zoo.tasks", attribute="name")
"""Subclasses of `lora_zoo.tasks.base.TaskType`, a room above this one."""
