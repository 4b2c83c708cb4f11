"""The identity of a base model, recorded with everything that was trained or adapted on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from model_store.pretrained.catalogue import Quantisation


@dataclass(frozen=True)
class BaseIdentity:
    """Identity of a base model. Two bases with equal identity have equal weights.

    `revision` is the commit of a hub model, else `sha256:<digest>` of what the weights were made
    from.
    """

    id: str
    revision: str
    quantisation: Quantisation

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Invert `to_json`."""
        return cls(id=values["id"], revision=values["revision"], quantisation=values["quantisation"])
