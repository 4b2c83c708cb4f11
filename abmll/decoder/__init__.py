"""A frozen decoder that takes low-rank changes: packed rows, attention, quantised layers."""
