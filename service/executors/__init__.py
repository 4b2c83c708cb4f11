"""How model work is carried out: one contract (`contract.py`), one transport a module.

A Ray executor would be one more module beside `inline.py` and `process.py`: a `Port` (`pool.py`) whose actor runs a `WorkerLoop`.
"""
