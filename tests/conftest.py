"""No test reaches for a model hub: set before anything imports its client."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `abmll` itself does: see service/cli/main.py
