"""Paths that no route has, as clients with a wrong base address send them."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN_CHARS = 100


def explain(path: str, templates: Iterable[str]) -> str:
    """Return what is wrong with a path that no route has, with the route that is meant, if any.

    It is the one of `templates`, such as `/v1/adapters/{adapter_id}`, with the longest common end.
    So `/v1/v1/predict`, `/predict`, `/V1/predict/` and `/api/v1/predict` mean `/v1/predict`.
    """
    parts = _parts(path)
    common, _, meant = max(
        ((_common_end(parts, _parts(t)), -len(t), t) for t in templates), default=(0, 0, "")
    )
    hint = f"do you mean {meant} ?" if common else "/docs lists them; the probes are /livez and /readyz"
    return f"there is no such route: {path[:_SHOWN_CHARS]!a}; {hint}"


def _parts(path: str) -> list[str]:
    return [part for part in path.lower().split("/") if part]


def _common_end(parts: list[str], template: list[str]) -> int:
    """Return how many parts at the end are the same; 0 where only parameters of the template are."""
    count = literal = 0
    for part, other in zip(reversed(parts), reversed(template), strict=False):
        if part != other and not other.startswith("{"):
            break
        count += 1
        literal += part == other
    return count if literal else 0
