"""Stage programs, one file each: see `lora_zoo.core.program`."""
