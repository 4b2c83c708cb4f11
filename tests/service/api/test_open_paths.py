"""What a path that needs no key opens: itself, and nothing of a tenant."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.api import authentication
from service.executors.contract import DEFAULT_TENANT
from service.gateway_metrics import Occupancy
from tests.service.api.test_keys import OPEN, Guarded, filled, routes


@pytest.mark.parametrize("path", ["/li%0Avez", "/metri%09cs", "/docs%3F/../v1/models", "/livez%23"])
def test_a_path_that_only_looks_like_an_open_one_needs_a_key(tmp_path: Path, path: str) -> None:
    """`request.url` leaves out line ends and tabs, and the router does not."""
    guarded = Guarded(tmp_path, open_metrics=True)

    async def work(client: httpx.AsyncClient) -> None:
        assert (await client.get(path)).status_code == 401

    guarded.play(work)


@pytest.mark.parametrize("host", ["x/livez?", "x/livez#", "x/docs/", "server\\", "a b", "[::1", ""])
def test_no_host_opens_a_path_or_breaks_an_answer(tmp_path: Path, host: str) -> None:
    guarded = Guarded(tmp_path)

    async def work(client: httpx.AsyncClient) -> None:
        for path in ("/metrics", "/v1/version", "/v1/models", "/v1/files", "/nothing"):
            answer = await client.get(path, headers={"host": host})
            assert answer.status_code == 401, (path, host)
            assert answer.headers["x-request-id"]

    guarded.play(work)


def test_what_the_middleware_lets_pass_by_mistake_is_refused_at_its_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "is_open", lambda request, settings: True)
    guarded = Guarded(tmp_path)

    async def work(client: httpx.AsyncClient) -> None:
        found = {(method, t) for method, t in routes(guarded) if t not in OPEN and not t.startswith("/docs")}
        for method, template in sorted(found):
            answer = await client.request(method, filled(template), json={})
            assert answer.status_code in {401, 400, 422}, (method, template)
            assert answer.status_code == 401 or method != "GET"
        assert (await client.get("/readyz")).status_code == 200

    guarded.play(work)


@pytest.mark.parametrize("is_open", [False, True])
def test_open_metrics_name_no_adapter(tmp_path: Path, *, is_open: bool) -> None:
    """Ids are for those who have a key; for them, a gateway's metrics name adapters."""
    guarded = Guarded(tmp_path, open_metrics=is_open)
    guarded.metrics.gateway.occupancy = lambda: Occupancy([f"adp_{DEFAULT_TENANT}"], ["adp_waits"])
    text = guarded.metrics.render().decode()
    assert ("adp_" in text) is not is_open
    assert "vllm:num_requests_waiting 1.0" in text
