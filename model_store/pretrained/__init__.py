"""Pretrained models: base models, sentence encoders and entailment models, by name; fetched, checked, quantised, cached."""
