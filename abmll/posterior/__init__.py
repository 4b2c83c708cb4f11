"""Gaussians over a decoder's updates: the global posterior theta and the task posterior phi."""
