"""The native surface."""
