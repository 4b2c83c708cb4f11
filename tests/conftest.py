"""No test reaches for a model hub: set before anything imports its client."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
