"""The kill benchmark against a server in a few lines, whose worker is a sleeping process: it must find what goes wrong."""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from benchmarks.mixed_load import kill_workers

OPTIONS = argparse.Namespace(kills=2, clients=2, kill_pause_seconds=0.2)


class Fake:
    """Answers 503 while its worker is dead, and brings it back at the next request. Bad behaviour can be asked for."""

    def __init__(self, *, wrong_after_kill: bool = False, forgets: bool = False) -> None:
        self.wrong_after_kill, self.forgets = wrong_after_kill, forgets
        self.kills, self.adapters, self.lock = 0, set[str](), threading.Lock()
        self.start()

    def start(self) -> None:
        self.worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def workers(self) -> list[psutil.Process]:
        return [] if self.worker.poll() is not None else [psutil.Process(self.worker.pid)]

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            if self.worker.poll() is not None:
                self.kills += 1
                if self.forgets:
                    self.adapters.clear()
                self.start()
                return httpx.Response(503)
        time.sleep(0.01)  # or the clients leave no processor time to the others
        path = request.url.path
        if request.method == "GET":
            return httpx.Response(200 if path.rpartition("/")[2] in self.adapters else 404)
        body = json.loads(request.content)
        if path == "/v1/adapters":
            self.adapters.add(f"a{body['seed']}")
            return httpx.Response(201, json={"id": f"a{body['seed']}"})
        p = 0.5 if self.wrong_after_kill and self.kills else 0.7
        rows = [{"probability": p}, {"probability": 1 - p}]
        return httpx.Response(200, json={"predictions": [{"distribution": rows}]})


@pytest.fixture
def fakes() -> Iterator[list[Fake]]:
    made: list[Fake] = []
    yield made
    for fake in made:
        fake.worker.kill()
        fake.worker.wait()


def run(fake: Fake, fakes: list[Fake]) -> dict[str, object]:
    fakes.append(fake)
    with httpx.Client(transport=httpx.MockTransport(fake.answer), base_url="http://server") as http:
        return kill_workers(fake, http, OPTIONS)


def test_a_server_that_recovers_passes(fakes: list[Fake]) -> None:
    found = run(fake := Fake(), fakes)
    assert found["kills"] == fake.kills == 2
    assert found["of these not served afterwards"] == 0
    assert found["acknowledged adapters"] == len(fake.adapters) >= 4


def test_a_wrong_answer_after_a_kill_is_found(fakes: list[Fake]) -> None:
    with pytest.raises(SystemExit, match="outputs differ"):
        run(Fake(wrong_after_kill=True), fakes)


def test_a_lost_adapter_is_found(fakes: list[Fake]) -> None:
    with pytest.raises(SystemExit, match="not served any more"):
        run(Fake(forgets=True), fakes)
