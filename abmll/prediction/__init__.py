"""Prediction: Monte Carlo distributions over options or written answers, and their uncertainty."""
