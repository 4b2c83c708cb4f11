"""Tasks and prompts: examples and queries as data and as tokens."""
