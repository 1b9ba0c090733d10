"""The benchmark: speed and memory of the adapters, beside PEFT's and the frozen model. See `__main__`."""
