"""Adapters on disk: their manifests and tensors, their diagnoses, and the journals of their gates."""
