"""A transport that gives answers in turn, without a server."""

from __future__ import annotations

import httpx


def transport(
    *answers: httpx.Response | Exception,
) -> httpx.MockTransport:
    """Return a transport that gives `answers` in turn, then the last one again.

    Its `requests` are those that came.
    """
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        answer = answers[min(len(requests), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    mock = httpx.MockTransport(handle)
    mock.requests = requests  # type: ignore[attr-defined]
    return mock


def refusal(status: int, code: str = "some_code", **headers: str) -> httpx.Response:
    body = {"error": {"code": code, "message": "said", "param": None, "request_id": "r1", "x": 1}}
    return httpx.Response(status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
