"""nginx with our file, in front of servers that only say their name."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from abmll_client.affinity import AFFINITY_HEADER
from tests.deployment.tools import DOCKER, ROOT, render, tool

CONFIGURATION = (DOCKER / "balancer/nginx.conf").read_text()
SENT = {
    ("POST", "/v1/predict"): 3,
    ("POST", "/v1/adapters"): 3,
    ("POST", "/v1/chat/completions"): 3,
    ("POST", "/v2/models/tickets/versions/3/infer"): 3,
    ("GET", "/v1/adapters"): 3,
    ("PUT", "/v1/names/tickets"): 1,
    ("POST", "/v1/names/tickets/rollback"): 1,
    ("POST", "/v1/batches"): 1,
    ("POST", "/v1/files"): 1,
    ("POST", "/v1/adapters/adp_1/calibrate"): 1,
    ("POST", "/v1/adapters/adp_1/feedback"): 1,
}
"""How many of three servers that all fail are asked, by method and path."""
ADAPTERS = [f"adp_{n:032x}" for n in range(120)]


class Named(ThreadingHTTPServer):
    """Answers every request with its port; 503 while it drains, and not at all while it is cutting
    connections.
    """

    daemon_threads = True
    draining = cutting = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.seen: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        assert isinstance(self.server, Named)
        self.server.seen.append(self.path)
        if self.server.cutting:
            self.close_connection = True
            return
        text = str(self.server.server_address[1]).encode()
        self.send_response(503 if self.server.draining else 200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.do_POST()

    def do_PUT(self) -> None:
        self.do_POST()

    def log_message(self, *_: object) -> None:
        pass


def configured(ports: list[int], listen: int) -> str:
    """Return our file with these servers, on this port, and with nothing outside its folder."""
    text = re.sub(r"(\n +server) abmll-serve-\d[^ ]+", r"\1 <server>", CONFIGURATION)
    for port in ports:
        text = text.replace("<server>", f"127.0.0.1:{port}", 1)
    assert "<server>" not in text
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{listen};")
    text = text.replace("http {", "http {\naccess_log off;\n" + "".join(
        f"{kind}_temp_path {kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    ), 1)  # fmt: skip
    return f"daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\n{text}"


@contextmanager
def balancer(folder: Path, servers: list[Named]) -> Iterator[httpx.Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = free.getsockname()[1]
    file = folder / "nginx.conf"
    file.write_text(configured([server.server_address[1] for server in servers], listen))
    command = [tool("nginx"), "-p", folder, "-c", file, "-e", "stderr"]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx,
        httpx.Client(base_url=f"http://127.0.0.1:{listen}", trust_env=False) as client,
    ):
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                try:
                    client.get("/metrics")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield client
        finally:
            nginx.kill()


@pytest.fixture
def servers() -> Iterator[list[Named]]:
    made = [Named() for _ in range(3)]
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def homes(client: httpx.Client) -> dict[str, str]:
    """Return which server answers for each adapter."""
    found = {}
    for adapter in ADAPTERS:
        answer = client.post("/v1/predict", json={"inputs": ["a"]}, headers={AFFINITY_HEADER: adapter})
        assert answer.status_code == 200
        found[adapter] = answer.text
    return found


def test_an_adapter_stays_on_its_server_and_a_server_that_drains_or_dies_gives_its_own_away(
    tmp_path: Path, servers: list[Named]
) -> None:
    with balancer(tmp_path, servers) as client:
        first = homes(client)
        assert set(first.values()) == {str(server.server_address[1]) for server in servers}
        assert homes(client) == first
        left = str(servers[0].server_address[1])
        for leave in (lambda: setattr(servers[0], "draining", True), servers[0].server_close):
            leave()
            then = homes(client)
            assert left not in then.values()
            assert [a for a in ADAPTERS if then[a] != first[a]] == [a for a in ADAPTERS if first[a] == left]


def test_requests_without_an_adapter_go_to_every_server_and_metrics_to_none(
    tmp_path: Path, servers: list[Named]
) -> None:
    with balancer(tmp_path, servers) as client:
        assert len({client.post("/v1/decide", json={}).text for _ in range(60)}) == 3
        assert client.get("/metrics").status_code == 404


@pytest.mark.parametrize("fault", ["draining", "cutting"])
def test_only_what_may_be_done_twice_is_sent_again(
    tmp_path: Path, servers: list[Named], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.deployment.test_balancer.CONFIGURATION", CONFIGURATION.replace("max_fails=2", "max_fails=0")
    )
    for server in servers:
        setattr(server, fault, True)
    asked = {}
    with balancer(tmp_path, servers) as client:
        for method, path in SENT:
            for server in servers:
                server.seen.clear()
            answer = client.request(method, path, json={}, headers={AFFINITY_HEADER: "a"})
            assert answer.status_code in {502, 503}
            asked[method, path] = sum(len(server.seen) for server in servers)
    assert asked == SENT


def test_the_servers_are_pods_of_the_chart() -> None:
    made = render()
    pods, named = made["StatefulSet"]["metadata"]["name"], made["HeadlessService"]
    (port,) = (entry["port"] for entry in named["spec"]["ports"])
    names = re.findall(r"^ +server ([^ {]+) ", CONFIGURATION, re.MULTILINE)
    assert names == [f"{pods}-{n}.{named['metadata']['name']}:{port}" for n in range(3)]


def test_the_wait_is_longer_than_the_longest_answer() -> None:
    from service.settings import Settings

    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", CONFIGURATION)
    assert int(seconds) > Settings.model_fields["deadline_seconds"].default
    assert (ROOT / "docs/scaling.md").read_text().count("docker/balancer/nginx.conf")
