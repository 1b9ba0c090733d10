"""Built before `tests.processes` forks: what libraries and the project build at their first use."""

import os
import sys
from importlib import import_module

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from lora_zoo.config import command_line, compose
from lora_zoo.config.schema import register
from lora_zoo.runs.identity import specify
from lora_zoo.tasks import forgetting

forgetting.BLOCKS = 1  # of 32: a third of a short run's time would be two losses on held-out text
os.fsync = lambda fd: None
sys.modules["debugpy"] = None  # each kernel would import a debugger, for half a second
for module in ("merge", "report.writing", "run", "spectra", "training.dry_run", "training.runner"):
    import_module(f"lora_zoo.{module}")
get_checkpoint_conversion_mapping("llama")  # a thousand regular expressions for all architectures
register()
for settings in compose.check(command_line.rewritten(["variant=lora"]), multirun=False):
    specify(settings)  # the digests of the sources, and Hydra's plugins
