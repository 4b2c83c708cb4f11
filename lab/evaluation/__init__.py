"""Evaluation: methods on held-out tasks, item by item, and what their answers are worth.

It needs the extra `lab`.
"""
