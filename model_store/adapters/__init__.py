"""Adapters on disk: manifests and tensors, diagnoses, names, and the journals of gates."""
