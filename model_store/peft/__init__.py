"""Exchange with the PEFT library: posteriors to LoRA adapters, LoRA adapters to posteriors."""
