"""How fast and how small the adapters are, beside PEFT's and the frozen model: see `lora_zoo.bench`."""
