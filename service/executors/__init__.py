"""How model work is carried out: one contract (`contract.py`), one transport a module."""
