"""Every figure of a GPU that this project wants to claim, from one run of eight minutes.

`python -m benchmarks.gpu` needs a CUDA device. `--device cpu --quick` goes through every section
with tiny sizes and writes to the folder of quick runs; it says nothing about a GPU.

`report.py` runs sections and writes the page after each, `subjects.py` has the models and their
inputs, `speed.py`, `experiments.py` and `agreement.py` have the sections.
"""
