"""What is loaded: base models, posterior artifacts, and the durable store of adapted posteriors."""
