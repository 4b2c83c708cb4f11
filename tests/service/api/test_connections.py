"""Connections as they are: closed halfway, slow, idle, and asked for the head only."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import time
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.service.conftest import Listening, Server

HEAD = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def connect(running: Listening) -> socket.socket:
    port = int(running.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def statuses(running: Listening, route: str) -> dict[str, float]:
    """How many requests of the route ended with which status, by the metrics."""
    text = httpx.get(f"{running.url}/metrics").text
    pattern = rf'abmll_requests_total{{route="{re.escape(route)}",status="(\d+)"}} (\S+)'
    return {status: float(count) for status, count in re.findall(pattern, text)}


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/predict", "/v1/predict"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/classify", "/v1/classify"),
        ("/v1/decisions", "/v1/decisions"),
        ("/v1/systemone", "/v1/systemone"),
        ("/v2/models/m/infer", "/v2/models/{name:path}/infer"),
    ],
)
@pytest.mark.parametrize(
    "body", [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"]
)
def test_an_upload_that_the_client_closes_is_no_error_of_the_server(
    server: Server, caplog: pytest.LogCaptureFixture, path: str, route: str, body: bytes
) -> None:
    caplog.set_level(logging.INFO)
    with server.listening() as running:
        for _ in range(5):
            with connect(running) as upload:
                upload.sendall(HEAD % path.encode() + body)
                time.sleep(0.02)
        running.wait_for(lambda: statuses(running, route) == {"499": 5.0})
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]
    assert logged == []
    lines = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert sum(f"POST {route} 499" in line for line in lines) == 5


@pytest.mark.parametrize("drip", [b"", b" "])
def test_a_body_that_does_not_come_is_ended_with_an_answer_and_its_connection(
    tmp_path: Path, drip: bytes
) -> None:
    server = Server(tmp_path, body_seconds=0.4)
    with server.listening() as running, connect(running) as upload:
        upload.sendall(HEAD % b"/v1/predict" + b"content-length: 100\r\n\r\n{")
        begun, received = time.monotonic(), b""
        upload.settimeout(0.05)
        while time.monotonic() < begun + 10:
            try:
                piece = upload.recv(4096)
            except TimeoutError:
                with contextlib.suppress(ConnectionError):  # what was sent before is still read
                    upload.sendall(drip)
                continue
            except ConnectionResetError:  # a drip came after the server had closed
                break
            if not piece:
                break
            received += piece
        assert 0.3 < time.monotonic() - begun < 5
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nconnection: close\r\n" in received
        assert (
            b'"code":"body_timeout","message":"the body did not arrive within 0.4 s (setting body_seconds)"'
            in received
        )
        running.wait_for(lambda: statuses(running, "/v1/predict") == {"408": 1.0})


@pytest.mark.parametrize(
    ("path", "begin"),
    [
        ("/v1/chat/completions", b'{"error":{"message":"the body did not arrive'),
        ("/v1/classify", b'{"message":"the body did not arrive'),
        ("/v1/decisions", b'{"error":{"message":"the body did not arrive'),
        ("/v1/systemone", b'{"detail":"the body did not arrive'),
        ("/v2/models/m/infer", b'{"error":"the body did not arrive'),
    ],
)
def test_a_body_that_does_not_come_gets_the_error_of_its_surface(
    tmp_path: Path, path: str, begin: bytes
) -> None:
    server = Server(tmp_path, body_seconds=0.2)
    with server.listening() as running, connect(running) as upload:
        upload.sendall(HEAD % path.encode() + b"content-length: 100\r\n\r\n")
        received = b"".join(iter(lambda: upload.recv(4096), b""))
        assert received.partition(b"\r\n\r\n")[2].startswith(begin)


@pytest.mark.parametrize("before", [b"", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"], ids=["first", "second"])
@pytest.mark.parametrize("head", [b"G", b"POST /v1/predict HTTP/1.1\r\nhost: x\r\n"])
@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_head_that_does_not_come_ends_its_connection(
    tmp_path: Path, before: bytes, head: bytes, drip: bytes
) -> None:
    server = Server(tmp_path, body_seconds=0.4)
    with server.listening() as running, connect(running) as slow:
        slow.sendall(before)
        answer = b""
        while before and not answer.endswith(b'{"status":"alive"}'):
            answer += slow.recv(4096)
        slow.sendall(head)
        begun = time.monotonic()
        slow.settimeout(0.05)
        while time.monotonic() < begun + 10:
            try:
                assert slow.recv(4096) == b""
                break
            except TimeoutError:
                slow.sendall(drip)
            except ConnectionError:
                break
        assert 0.3 < time.monotonic() - begun < 5
        assert httpx.get(f"{running.url}/livez").status_code == 200


def test_a_connection_without_a_word_is_closed_and_one_between_requests_is_kept(tmp_path: Path) -> None:
    server = Server(tmp_path, body_seconds=0.3)
    with server.listening() as running, connect(running) as silent, httpx.Client() as client:
        assert client.get(f"{running.url}/livez").status_code == 200
        assert silent.recv(1) == b""
        time.sleep(0.5)
        (kept,) = running.uvicorn.server_state.connections
        assert client.get(f"{running.url}/livez").status_code == 200
        assert set(running.uvicorn.server_state.connections) == {kept}


def test_work_may_take_longer_than_a_body(tmp_path: Path) -> None:
    server = Server(tmp_path, body_seconds=0.2)
    server.worker.adapt_gate.clear()
    body = {"support": [{"input": "a", "output": "b"}], "inputs": ["x"]}
    with server.listening() as running:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/v1/predict", json=body, timeout=0.6)
        server.worker.adapt_gate.set()
        assert httpx.post(f"{running.url}/v1/predict", json=body).status_code == 200
        running.wait_for(lambda: statuses(running, "/v1/predict") == {"499": 1.0, "200": 1.0})


@pytest.mark.parametrize(("seconds", "open_after"), [(75, True), (1, False)])
def test_an_idle_connection_stays_open_as_long_as_the_setting_says(
    tmp_path: Path, seconds: int, open_after: bool
) -> None:
    server = Server(tmp_path, keep_alive_seconds=seconds)
    with server.listening() as running, connect(running) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"alive"}'):
            answer += connection.recv(4096)
        connection.settimeout(2)
        try:
            is_open = connection.recv(1) != b""
        except TimeoutError:
            is_open = True
        assert is_open == open_after


def test_connections_are_kept_longer_than_the_proxies_usual_minute() -> None:
    assert Settings().keep_alive_seconds == 75


READABLE = ["/livez", "/readyz", "/metrics", "/v1/limits", "/v1/models", "/v1/adapters", "/v2", "/v2/health/ready",
            "/openapi.json", "/docs"]  # fmt: skip


@pytest.mark.parametrize("path", READABLE)
def test_head_is_answered_as_get_without_the_body(server: Server, path: str) -> None:
    with server.listening() as running:
        read, asked = httpx.get(running.url + path), httpx.head(running.url + path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-type"] == read.headers["content-type"]
    if path != "/metrics":  # which counts the first
        assert asked.headers["content-length"] == read.headers["content-length"]


def test_head_says_that_the_server_is_not_ready_and_what_is_not_there(server: Server) -> None:
    server.worker.load_gate.clear()

    async def scenario(client: httpx.AsyncClient) -> None:
        found = {
            path: (await client.head(path)).status_code for path in ("/livez", "/readyz", "/v2/health/ready")
        }
        assert found == {"/livez": 200, "/readyz": 503, "/v2/health/ready": 503}
        server.worker.load_gate.set()
        assert (await client.head("/nope")).status_code == 404
        refused = await client.head("/v1/predict")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")

    server.run(scenario, ready=False)


def test_the_log_and_the_metrics_say_that_it_was_head(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with server.listening() as running:
        httpx.head(f"{running.url}/v1/adapters/adp_0")
        running.wait_for(lambda: statuses(running, "/v1/adapters/{adapter_id}") == {"404": 1.0})
    assert any("HEAD /v1/adapters/{adapter_id} 404" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("path", ["/nothing", "/v1/predict"])
@pytest.mark.parametrize("pause", [0, 0.1], ids=["at once", "after the answer"])
def test_a_chunk_that_is_none_leaves_no_traceback(
    server: Server, caplog: pytest.LogCaptureFixture, path: str, pause: float
) -> None:
    """A path that does not exist is answered before its body, as a request without a key is."""
    with server.listening() as running, connect(running) as upload:
        upload.sendall(HEAD % path.encode() + b"transfer-encoding: chunked\r\n\r\n")
        time.sleep(pause)
        upload.sendall(b"zz\r\nabc\r\n")
        received = b"".join(iter(lambda: upload.recv(4096), b""))
        assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))
        assert httpx.get(f"{running.url}/livez").status_code == 200
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []
