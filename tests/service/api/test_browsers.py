"""Pages in a browser: requests from other origins, the documentation without a network, a path in
front.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from service.settings.loading import load_settings
from service.settings.values import SettingsError
from tests.service.conftest import Server

PAGE = "https://app.example.org"
BODY = {"support": [{"input": "a", "output": "b"}], "inputs": ["x"]}
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}

# ---- other origins -------------------------------------------------------------------------------


@pytest.mark.parametrize("origins", [PAGE, f"http://localhost:3000, {PAGE}", "*"])
@pytest.mark.parametrize(
    "path", ["/v1/predict", "/v1/chat/completions", "/v1/classify", "/v2/models/m/infer"]
)
def test_a_page_of_a_named_origin_may_call_every_surface(tmp_path: Path, origins: str, path: str) -> None:
    server = Server(tmp_path, cors_origins=origins)

    async def scenario(client: httpx.AsyncClient) -> None:
        allowed = await client.options(path, headers=PREFLIGHT)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] in {PAGE, "*"}
        assert "POST" in allowed.headers["access-control-allow-methods"]
        for header in PREFLIGHT["access-control-request-headers"].split(","):
            assert header in allowed.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in allowed.headers

    server.run(scenario)


def test_a_page_reads_answers_errors_and_streams(tmp_path: Path) -> None:
    server = Server(tmp_path, cors_origins=PAGE)

    async def scenario(client: httpx.AsyncClient) -> None:
        for body in (BODY, {**BODY, "stream": True}, {**BODY, "samples": -1}, {"inputs": 7}):
            answer = await client.post("/v1/predict", json=body, headers={"origin": PAGE})
            assert answer.headers["access-control-allow-origin"] == PAGE
            exposed = answer.headers["access-control-expose-headers"]
            assert {"x-request-id", "retry-after"} <= set(exposed.split(", "))
        server.worker.fail = RuntimeError("broken")
        failed = await client.post("/v1/predict", json={**BODY, "seed": 1}, headers={"origin": PAGE})
        assert (failed.status_code, failed.headers["access-control-allow-origin"]) == (500, PAGE)

    server.run(scenario)


@pytest.mark.parametrize("origins", [None, "", "https://other.example.org"])
def test_no_other_page_may(tmp_path: Path, origins: str | None) -> None:
    server = Server(tmp_path, cors_origins=origins)

    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await client.options("/v1/predict", headers=PREFLIGHT)
        assert refused.status_code in {400, 405}
        answer = await client.post("/v1/predict", json=BODY, headers={"origin": PAGE})
        for response in (refused, answer):
            assert "access-control-allow-origin" not in response.headers

    server.run(scenario)


@pytest.mark.parametrize(
    "origin", ["https://app.example.org/", "https://a.org/b", "app.example.org", "https://*.a.org"]
)
def test_what_no_browser_sends_as_an_origin_is_refused(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"cors_origins: .*is not an origin.*https://app\.example\.org"):
        load_settings(cors_origins=f"https://good.org,{origin}")


# ---- the documentation ---------------------------------------------------------------------------


@pytest.mark.parametrize("root_path", ["", "/abmll", "/team/abmll"])
@pytest.mark.parametrize("removed", [True, False], ids=["removed", "left"])
def test_the_documentation_needs_this_server_only(tmp_path: Path, root_path: str, removed: bool) -> None:
    server = Server(tmp_path, root_path=root_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        async with behind_a_proxy(client, root_path, removed=removed) as outside:
            for page in ("/docs", "/redoc"):
                shown = await outside.get(root_path + page)
                assert shown.status_code == 200
                needed = re.findall(r'(?:src|href)="([^"]+)"', shown.text)
                needed += re.findall(r'url: "([^"]+)"', shown.text.replace("'", '"'))
                assert len(needed) >= 2
                assert [address for address in needed if not address.startswith(f"{root_path}/")] == []
                for address in needed:
                    assert (await outside.get(address)).status_code == 200
            document = (await outside.get(f"{root_path}/openapi.json")).json()
            assert [s["url"] for s in document.get("servers", [])] == ([root_path] if root_path else [])

    server.run(scenario)


@asynccontextmanager
async def behind_a_proxy(
    client: httpx.AsyncClient, root_path: str, *, removed: bool
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sees the server below `root_path`, which the proxy removes or leaves."""

    async def forward(request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode()
        assert path.startswith(f"{root_path}/")
        if removed:
            path = path.removeprefix(root_path)
        answer = await client.request(
            request.method, path, content=request.content, headers={"content-type": "application/json"}
        )
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    transport = httpx.MockTransport(forward)
    async with httpx.AsyncClient(transport=transport, base_url="http://outside") as outside:
        yield outside


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "left"])
def test_surfaces_below_a_path_answer_and_refuse_in_their_own_shapes(tmp_path: Path, removed: bool) -> None:
    server = Server(tmp_path, root_path="/abmll")

    async def scenario(client: httpx.AsyncClient) -> None:
        async with behind_a_proxy(client, "/abmll", removed=removed) as outside:
            assert (await outside.post("/abmll/v1/predict", json=BODY)).status_code == 200
            shapes = {}
            for path in (
                "/v1/predict",
                "/v1/chat/completions",
                "/v1/classify",
                "/v1/decisions",
                "/v1/systemone",
                "/v2/models/m/infer",
            ):
                refused = await outside.post(f"/abmll{path}", content=json.dumps([]))
                shapes[path] = (refused.status_code, sorted(refused.json()))
            assert shapes == {
                "/v1/predict": (422, ["error"]),
                "/v1/chat/completions": (400, ["error"]),
                "/v1/classify": (400, ["id", "message"]),
                "/v1/decisions": (400, ["error"]),
                "/v1/systemone": (422, ["detail"]),
                "/v2/models/m/infer": (400, ["error"]),
            }
            assert (await outside.get("/abmll/livez")).status_code == 200

    server.run(scenario)


@pytest.mark.parametrize(
    ("given", "path"), [("/abmll/", "/abmll"), ("/", ""), ("", ""), ("/a/b.c-d", "/a/b.c-d")]
)
def test_a_root_path_may_end_with_a_slash(given: str, path: str) -> None:
    assert load_settings(root_path=given).root_path == path


@pytest.mark.parametrize("given", ["abmll", "https://a.org/abmll", "/a b", "//a", "/a?b"])
def test_what_is_no_path_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match=r"root_path: .* is not a path such as /abmll"):
        load_settings(root_path=given)
