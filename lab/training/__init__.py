"""Meta-training runs: one configuration file to a posterior artifact."""
