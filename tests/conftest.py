"""No test reaches for a model hub: set before anything imports its client."""

import os

from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `abmll` itself does: see service/cli/main.py

# Property tests with `--hypothesis-profile=long` try this many examples; see their files.
settings.register_profile(
    "long", max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
