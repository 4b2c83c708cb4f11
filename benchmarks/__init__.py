"""Measurements, one command each: `python -m benchmarks.NAME`; results go to `benchmarks/results/`."""

import os

# As `abmll` itself does, before torch is first imported: see service/cli/main.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
