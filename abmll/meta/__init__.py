"""Meta-training: the global posterior theta is learnt from many tasks."""
