"""The header by which a load balancer sends requests for one adapter to one server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

AFFINITY_HEADER = "x-abmll-adapter"

_MADE_FROM = ("support", "questions", "cases")


def affinity_of(path: str, body: Mapping[str, Any] | None) -> str | None:
    """Return what names the adapter of a request, in characters that a header may have.

    That is its id or its name, or a digest of the examples that it is made from. None where the
    request has no adapter. Servers do not read it.
    """
    parts = path.split("/")
    if parts[1:3] in (["v1", "adapters"], ["v1", "names"]) and len(parts) > 3:
        return parts[3]  # quoted already
    given = body or {}
    if given.get("adapter_id"):
        return quote(str(given["adapter_id"]), safe="")
    examples = {name: given[name] for name in _MADE_FROM if given.get(name) is not None}
    if "support" in examples or "cases" in examples:
        text = json.dumps(examples, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]
    return quote(str(given["model"]), safe="") if given.get("model") else None
