"""Meta-training: learning the global posterior theta from many tasks."""
