"""Distributions over a decoder's weights: the global posterior theta and the task posterior phi."""
