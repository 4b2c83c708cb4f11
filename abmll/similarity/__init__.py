"""Likeness of an input to an adapter's examples: a Gaussian process beside the adapter."""
