"""Run `abmll serve` in a process of its own, for benchmarks over HTTP, and make requests for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from service.schemas import demo


class Server:
    """Server process with its address and the seconds that it took to be ready.

    A second server on the same `data` finds the adapters of the first. `environment` is added to
    ours. `prefix` is a command that runs the one after it. Raises `SystemExit` where the server
    ends or is not ready in time.
    """

    def __init__(
        self,
        data: Path,
        options: Sequence[str] = (),
        *,
        ready_within_seconds: float = 600,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        abmll = str(Path(sys.executable).parent / "abmll")
        command = [*prefix, abmll, "serve", "--port", str(port), "--data-dir", str(data), *options]
        started = time.perf_counter()
        self.log = data.parent / f"{data.name}.log"
        env = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            self._wait_until_ready(started + ready_within_seconds)
        except BaseException:
            self.__exit__()
            raise
        self.ready_seconds = time.perf_counter() - started

    def _wait_until_ready(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                raise SystemExit(f"the server ended while starting, with status {self._process.returncode}")
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise SystemExit("the server did not become ready")

    @property
    def pid(self) -> int:
        """The id of the server's process."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while the server runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server, not to its workers."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the server and its children as `kill -9` does."""
        processes = self.processes()
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes)
        self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """Return the server and all its children."""
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """Return the workers: children that `multiprocessing` spawned, not its resource tracker."""
        found = []
        for process in self.processes()[1:]:
            try:
                if "spawn_main" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:  # it has ended meanwhile
                continue
        return found

    def resident_bytes(self) -> list[int]:
        """Return the resident memory of the server and of each of its children."""
        found = []
        for process in self.processes():
            try:
                found.append(process.memory_info().rss)
            except psutil.Error:
                continue
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Send SIGTERM, and after 60 s SIGKILL."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def adapter_body(number: int, *, shots: int = 16, steps: int | None = None) -> dict[str, Any]:
    """Return a request for adapter `number`: the support of the demo, and `number` as seed."""
    rows = [{"input": text, "output": label} for text, label in demo.SUPPORT[:shots]]
    body: dict[str, Any] = {"support": rows, "options": demo.OPTIONS, "seed": number}
    return body if steps is None else {**body, "adapt": {"steps": steps}}


def predict_body(adapter_id: str, number: int, *, inputs: int = 1, samples: int = 8) -> dict[str, Any]:
    """Return a predict request whose texts depend on `number`."""
    texts = [
        f"{demo.INPUTS[(number + i) % len(demo.INPUTS)]} My reference is {1000 + (number + i) % 997}."
        for i in range(inputs)
    ]
    return {"adapter_id": adapter_id, "inputs": texts, "samples": samples, "seed": 0}
