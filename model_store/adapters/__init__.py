"""Adapters on disk: manifests and tensors, diagnoses, and the journals of their gates."""
