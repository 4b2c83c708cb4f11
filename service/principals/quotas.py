"""What tenants have used of their limits: buckets that fill up again within a minute."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from service.errors import QuotaExceededError, RateLimitedError
from service.principals.records import Limits

_SECONDS = 60.0
LIMIT_HEADERS = [
    f"x-ratelimit-{what}-{name}" for name in ("requests", "units") for what in ("limit", "remaining", "reset")
]


@dataclass
class _Bucket:
    """At most `size` at once, and as much a minute. Used amounts come back evenly."""

    used: float = 0.0
    at: float = 0.0

    def remaining(self, size: float, now: float) -> float:
        """Return how much is left at `now`."""
        self.used = max(0.0, self.used - size * (now - self.at) / _SECONDS)
        self.at = now
        return size - self.used

    def take(self, amount: float, size: float, now: float) -> float:
        """Take `amount`, and return 0; or take nothing, and return the seconds until there is as
        much.

        More than `size` can be taken of a full bucket: what one request needs is not refused for
        ever.
        """
        missing = min(amount, size) - self.remaining(size, now)
        if missing > 1e-9:
            return missing * _SECONDS / size
        self.used += amount
        return 0.0

    def reset_seconds(self, size: float) -> int:
        """Return the seconds until the bucket is full, rounded up."""
        return math.ceil(self.used * _SECONDS / size)


class Meter:
    """Owns what one tenant has used. Used from one event loop; it is new with each start."""

    def __init__(self) -> None:
        self._requests, self._work = _Bucket(), _Bucket()

    def take_request(self, limits: Limits) -> None:
        """Count a request. Raises `RateLimitedError`."""
        if (size := limits.requests_per_minute) is not None:
            wait = self._requests.take(1, size, time.monotonic())
            if wait:
                raise _too_many(f"{size} requests a minute", wait)

    def take_work(self, limits: Limits, seconds: float) -> None:
        """Count the price of a request. Raises `RateLimitedError`."""
        if (size := limits.work_seconds_per_minute) is not None and seconds > 0:
            wait = self._work.take(seconds, size, time.monotonic())
            if wait:
                raise _too_many(f"{size:g} seconds of work a minute", wait)

    def headers(self, limits: Limits) -> dict[str, str]:
        """Return the headers that tell what is left. Units are seconds of work, rounded down."""
        now, shown = time.monotonic(), dict[str, str]()
        for name, bucket, size in (
            ("requests", self._requests, limits.requests_per_minute),
            ("units", self._work, limits.work_seconds_per_minute),
        ):
            if size is not None:
                shown[f"x-ratelimit-limit-{name}"] = f"{size:.12g}"  # not 1e+06
                shown[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.remaining(size, now))))
                shown[f"x-ratelimit-reset-{name}"] = f"{bucket.reset_seconds(size)}s"
        return shown


def check_room(limits: Limits, adapters: int, stored_bytes: int) -> None:
    """Raise `QuotaExceededError` where a tenant that has these may not have one more adapter."""
    for name, has, most in (
        ("adapters", adapters, limits.adapters),
        ("stored_bytes", stored_bytes, limits.stored_bytes),
    ):
        if most is not None and has >= most:
            raise QuotaExceededError(
                f"this tenant has {has} {name.replace('_', ' ')}; its limit is {most} (`{name}` in the keys "
                "file): delete adapters that are no longer needed"
            )


def _too_many(limit: str, wait_seconds: float) -> RateLimitedError:
    message = f"this tenant's limit is {limit} (in the keys file)"
    return RateLimitedError(message, None, max(1, math.ceil(wait_seconds)))
