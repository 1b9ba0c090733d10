"""The suite that every variant passes, also one from outside: needs `pip install lora_zoo[test]`.

    pytest --pyargs lora_zoo.conformance --variant ./mylora.py

Without `--variant` it tests every registered variant, none of which it names.
"""
