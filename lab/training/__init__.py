"""Meta-training runs: from one configuration file to a posterior artifact."""
