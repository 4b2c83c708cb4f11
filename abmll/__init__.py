"""Amortized Bayesian Meta-Learning for LoRA (arXiv 2508.14285).

A posterior is adapted to a few examples, sampled for predictions, and checked on held-out answers.
"""
