"""How many examples property tests try: some in the suite, always the same; in a long run as many as told, always others.

EXAMPLES=20000 pytest --timeout=0 tests/service/api/test_any_json.py tests/service/api/test_openapi.py
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("EXAMPLES")


def tries(usual: int) -> settings:
    """Settings of a property test that tries `usual` examples in the suite."""
    return settings(
        max_examples=int(EXAMPLES or usual),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
