"""Ids of adapters: digests of all that determines an adapter, the same on any machine.

The ids of a tenant are keyed with a secret of its own. So equal supports of two tenants have two
ids, and nobody who knows a support can tell from an id whether another tenant has it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abmll.text.questions import TypedQuestion
from abmll.text.tasks import Example

if TYPE_CHECKING:
    from abmll.adaptation.settings import AdaptSettings
    from service.executors.contract import ServedModel


def adapter_id(
    support: Sequence[Example],
    settings: AdaptSettings,
    seed: int,
    served: ServedModel,
    *,
    truncate: bool,
    folds: int = 0,
    questions: Sequence[TypedQuestion] = (),
    key: bytes = b"",
) -> str:
    """Return `adp_` and the first 128 bits of the digest, in hexadecimal.

    `folds` is the number of folds that choose the adapter's temperature. `questions` are the
    adapter's own: it is found by their names, so they are part of what it is. `key` is the
    tenant's; with none, that of the default tenant, the digest itself is the id.
    """
    determining = {
        "base": served.base.to_json(),
        "posterior": served.posterior_digest,
        "template": dict(served.template),
        "support": support_digest(support),
        "settings": asdict(settings),
        "seed": seed,
        "truncate": truncate,
        **({"calibration_folds": folds} if folds else {}),
        **({"questions": [typed.to_json() for typed in questions]} if questions else {}),
    }
    digest = _digest(determining)
    if key:
        digest = hmac.digest(key, digest.encode(), "sha256").hex()
    return f"adp_{digest[:32]}"


def support_digest(support: Sequence[Example]) -> str:
    """Return the hexadecimal SHA-256 of the examples, in their order."""
    return _digest([list(example.to_json().values()) for example in support])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
