"""Frozen decoder with adapters: packed rows, attention, low-rank updates, quantised layers."""
