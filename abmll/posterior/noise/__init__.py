"""Noise families: how a posterior becomes what an adapter adds to a layer's output."""
