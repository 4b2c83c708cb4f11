"""Pretrained models by name: base models, sentence encoders, entailment models."""
