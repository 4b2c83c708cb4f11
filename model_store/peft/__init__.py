"""Exchange with the PEFT library: posteriors as LoRA adapters, and LoRA adapters as posteriors."""
