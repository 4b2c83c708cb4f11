"""Tasks and prompts: what is asked, as data and as tokens."""
