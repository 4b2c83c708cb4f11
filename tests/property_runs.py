"""How many examples a property test tries.

In the suite it tries a few, always the same ones. With the variable `EXAMPLES` it tries that many,
others each time:

    EXAMPLES=20000 pytest --timeout=0 tests/service/api/test_any_json.py \\
        tests/service/api/test_openapi.py
    EXAMPLES=100000 pytest --timeout=0 tests/abmll/text/test_files.py -k rows_or_one_line
    EXAMPLES=100000 pytest --timeout=0 tests/abmll/text/test_tokens.py -k joint_text
    EXAMPLES=10000 pytest --timeout=0 tests/service/engine/test_interleavings.py
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_EXAMPLES = os.environ.get("EXAMPLES")


def examples(usual: int) -> int:
    """Return how many examples to try; `usual` in the suite."""
    return int(_EXAMPLES or usual)


def tries(usual: int) -> settings:
    """Return settings for a property test that tries `usual` examples in the suite."""
    return settings(
        max_examples=examples(usual),
        derandomize=_EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
