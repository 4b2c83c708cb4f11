"""Amortized Bayesian Meta-Learning for LoRA (arXiv 2508.14285): adapt a task posterior, sample it, measure it."""
