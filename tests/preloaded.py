"""Built before `tests.processes` forks: what libraries and the project build at their first use."""

import os

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from lora_zoo.config import command_line, compose
from lora_zoo.runs.identity import specify

os.fsync = lambda fd: None
get_checkpoint_conversion_mapping("llama")  # a thousand regular expressions for all architectures
for settings in compose.check(command_line.rewritten(["variant=lora"]), multirun=False):
    specify(settings)  # the digests of the sources, and Hydra's plugins
