"""Exchange: adapters written for PEFT, and read from PEFT and loralib, with torch and safetensors alone."""
