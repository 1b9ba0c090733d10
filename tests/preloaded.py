"""Built before `tests.processes` forks: what the libraries build at their first use, once a process."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")  # a thousand regular expressions for all architectures
