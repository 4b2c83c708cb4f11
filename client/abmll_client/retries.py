"""When a request is sent again.

Repeating is safe: adapters are named by their content, so a repeated request joins the first. What
points a name to an adapter makes one more version.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import Any

from tenacity import (
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_random_exponential,
)

from abmll_client.errors import ClientError, NotFoundError, StatusError

log = logging.getLogger(__name__)

_backoff = wait_random_exponential(multiplier=0.5)


@dataclass(frozen=True)
class Retries:
    """At most `max_retries`, each after a wait.

    The wait is `Retry-After`, but at most `longest_wait_seconds`, and up to half as long again, so
    that clients that were refused together do not come back together. Without `Retry-After` it is
    exponential back-off with full jitter.
    """

    max_retries: int
    longest_wait_seconds: float = 60.0

    def wait_seconds(self, state: RetryCallState) -> float:
        """How long to wait after the attempt that `state` is about."""
        error = state.outcome.exception() if state.outcome else None
        retry_after = error.retry_after_seconds if isinstance(error, ClientError) else None
        if retry_after is None:
            return min(self.longest_wait_seconds, _backoff(state))
        spread = random.uniform(1.0, 1.5)  # noqa: S311 - no secret
        return min(self.longest_wait_seconds, retry_after) * spread

    def arguments(self) -> dict[str, Any]:
        """Arguments for tenacity's `Retrying` and `AsyncRetrying`.

        Both keep state, so each request makes its own.
        """
        return {
            "stop": stop_after_attempt(self.max_retries + 1),
            "wait": self.wait_seconds,
            "retry": retry_if_exception(_retryable),
            "before_sleep": _log_failure,
            "reraise": True,
        }


def polling(seconds: float, every_seconds: float = 0.5) -> dict[str, Any]:
    """Arguments as of `Retries.arguments`, to ask again and again for `seconds`."""
    return {
        "stop": stop_after_delay(seconds),
        "wait": wait_fixed(every_seconds),
        "retry": retry_if_exception(_retryable),
        "reraise": True,
    }


def waiting(seconds: float) -> dict[str, Any]:
    """Arguments as of `Retries.arguments`, to ask for `seconds` for what is being made.

    The server says after how long to ask again (`Retry-After`).
    """
    retries = Retries(0)

    def wait_seconds(state: RetryCallState) -> float:
        left = seconds - (state.seconds_since_start or 0.0)
        return max(0.0, min(left, retries.wait_seconds(state)))

    return {
        "stop": stop_after_delay(seconds),
        "wait": wait_seconds,
        "retry": retry_if_exception(lambda error: _retryable(error) or _being_made(error)),
        "reraise": True,
    }


def _being_made(error: BaseException) -> bool:
    return isinstance(error, NotFoundError) and error.retry_after_seconds is not None


def _retryable(error: BaseException) -> bool:
    return isinstance(error, ClientError) and error.retryable


def _log_failure(state: RetryCallState) -> None:
    # Only the error's code is logged: its message can repeat what was sent.
    error = state.outcome.exception() if state.outcome else None
    what = error.code if isinstance(error, StatusError) else type(error).__name__
    log.info("attempt %d failed (%s); again in %.1f s", state.attempt_number, what, state.upcoming_sleep)
