"""Adaptation: K gradient steps on phi from theta, for many tasks at once."""
