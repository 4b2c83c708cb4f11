"""Executors carry out model work: one contract (`contract.py`), one module for each transport.

A transport, such as `inline.py` or `process.py`, is a `Port` (`ports.py`) to a `WorkerLoop`.
"""
