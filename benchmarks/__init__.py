"""Measurements, one command each: `python -m benchmarks.NAME`.

Results are in `benchmarks/results/`.
"""

import os

# Set before torch is first imported, for the reason that service/cli/main.py gives.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
