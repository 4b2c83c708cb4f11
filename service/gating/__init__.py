"""The gate: the rule that answers or abstains, its certificate, and the outcomes behind it."""
