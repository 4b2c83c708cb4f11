"""Settings of how many requests wait, and how long."""

from __future__ import annotations

from pydantic import BaseModel, Field

from service.settings.values import LONGEST_SECONDS


class DeadlineSettings(BaseModel):
    """How many requests wait, and how long each may take."""

    queue_limit: int = Field(
        default=64,
        ge=1,
        description="Most requests that wait or run at a time; one more gets 429 with Retry-After. Tenants have "
        "equal parts. Half as many adapters may be made without a client that waits.",
    )
    queue_seconds: float = Field(
        default=300.0,
        gt=0,
        le=LONGEST_SECONDS,
        description="Most seconds of work of all requests that wait or run, by their prices, for each worker; "
        "more gets 429 with Retry-After. While several tenants have work, each has an equal part.",
    )
    deadline_seconds: float = Field(
        default=300.0,
        gt=0,
        le=LONGEST_SECONDS,
        description="Longest time of a request, in seconds; a longer one gets 504, and a retry "
        "joins its adaptation. One that an idle worker would take over 1.5 times as long for gets 422.",
    )
    long_deadline_seconds: float = Field(
        default=6 * 3600.0,
        gt=0,
        le=LONGEST_SECONDS,
        description="Longest time of an adaptation that no client waits for (`wait_ms`), in seconds. One that "
        "an idle worker would take over 1.5 times as long for gets 422 at once.",
    )
    status_seconds: float = Field(
        default=24 * 3600.0,
        ge=0,
        le=LONGEST_SECONDS,
        description="Seconds for which the server can say how such an adaptation ended without an adapter.",
    )
    cancel_grace_seconds: float = Field(
        default=60.0,
        ge=0,
        le=LONGEST_SECONDS,
        description="Seconds that an adaptation continues after the deadline of every request for "
        "it, so that a retry can join it.",
    )
    drain_seconds: float = Field(
        default=45.0,
        ge=0,
        le=LONGEST_SECONDS,
        description="Seconds that running requests have to finish after the first SIGTERM.",
    )
