"""What part of a limit a tenant may have, where several share it."""

from __future__ import annotations


def has_room(own: int, total: int, limit: int, *, shared: bool) -> bool:
    """Return whether a tenant may have `own` of `total`, both counted with what is to come.

    A limit that tenants share is never used up by one of them: each has at most as much as is left
    free, so alone half of it, and beside another one a third. One more is allowed, so that a limit
    of 1 is one.
    """
    return total <= limit and (not shared or own <= limit - total + 1)


def part(limit: int, setting: str, *, shared: bool) -> str:
    """Return the limit as messages name it; nothing in it tells what other tenants have."""
    of_one = "; with keys, a tenant has at most as much as is left free" if shared else ""
    return f"the limit is {limit} (setting {setting}){of_one}"
