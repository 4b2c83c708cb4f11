"""The server process: it listens before the model is loaded, and drains at a signal."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.service.conftest import Server

BODY = {
    "support": [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}],
    "options": ["yes", "no"],
    "inputs": ["fine"],
}


def test_draining_keeps_listening_until_what_is_in_flight_has_finished(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.worker.adapt_gate.clear()
    answers: list[httpx.Response] = []
    with server.listening() as running:
        url = running.url
        working = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/predict", json=BODY)))
        working.start()
        running.wait_for(lambda: len(server.worker.adapted) == 1)
        running.uvicorn.should_exit = True
        running.wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        refused = httpx.post(f"{url}/v1/predict", json={**BODY, "seed": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["connection"] == "close"
        assert httpx.get(f"{url}/livez").status_code == 200
        server.worker.adapt_gate.set()
        working.join()
    # The client of an answer may send its next request at once, and this server ends then.
    assert (answers[0].status_code, answers[0].headers["connection"]) == (200, "close")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez")


def test_a_drain_ends_after_its_time(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.worker.adapt_gate.clear()
    answers: list[httpx.Response] = []
    with server.listening(drain_seconds=0.1) as running:
        working = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{running.url}/v1/predict", json=BODY))
        )
        working.start()
        running.wait_for(lambda: len(server.worker.adapted) == 1)
    working.join(5)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "draining")
    server.worker.adapt_gate.set()


def test_a_client_that_goes_away_frees_its_place(tmp_path: Path) -> None:
    server = Server(tmp_path, queue_limit=1)
    with server.listening() as running:
        adapter = httpx.post(
            f"{running.url}/v1/adapters", json={k: BODY[k] for k in ("support", "options")}
        ).json()["id"]
        server.worker.predict_gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{running.url}/v1/predict", json={"adapter_id": adapter, "inputs": ["x"]}, timeout=0.3
            )
        running.wait_for(lambda: server.engine.in_flight == 0)
        server.worker.predict_gate.set()
        again = httpx.post(f"{running.url}/v1/predict", json={"adapter_id": adapter, "inputs": ["x"]})
        assert again.status_code == 200


def test_a_model_that_does_not_exist_ends_the_server_with_status_1_and_its_reason(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from service.cli.main import app; app()",
        "serve",
        "--model",
        "no/such model",
    ]
    ended = subprocess.run(
        [*command, "--port", "0", "--data-dir", str(tmp_path), "--posterior", "untrained"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert "no base model 'no/such model'" in ended.stderr
    assert Settings().model not in ended.stdout


def test_a_hangup_starts_the_workers_again_and_the_first_signal_to_end_still_drains(tmp_path: Path) -> None:
    """A real process with one worker: SIGHUP, then SIGTERM. What a worker imports is little."""
    program = """
import sys

def main():
    import os, signal, threading, time, urllib.error, urllib.request
    from pathlib import Path
    from service.executors.process import process_executor
    from service.metrics import Metrics
    from service.server import serve
    from service.settings import Settings
    from tests.service.executors.fake import load

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    executor = process_executor([load], early=True)

    def is_ready(url):
        try:
            return urllib.request.urlopen(url + "/readyz").status == 200
        except urllib.error.HTTPError:
            return False

    def send(url):
        while not is_ready(url):  # before, a SIGHUP has no effect
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGHUP)
        while [(w.state, w.restarts) for w in executor.workers()] != [("up", 1)]:
            time.sleep(0.05)
        print("restarted", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    settings = Settings(data_dir=Path(sys.argv[1]), port=0, drain_seconds=5)
    begin = lambda url: threading.Thread(target=send, args=(url,), daemon=True).start()
    sys.exit(serve(settings, executor, Metrics(), begin))

if __name__ == "__main__":
    main()
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    ended = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "data")],
        check=False, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, "restarted\n"), ended.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_the_server_speaks_https_with_a_certificate(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    server = Server(tmp_path / "data", ssl_certfile=cert, ssl_keyfile=key)
    with server.listening() as running:
        url = running.url.replace("http://", "https://")
        trusted = ssl.create_default_context(cafile=cert)
        assert httpx.get(f"{url}/readyz", verify=trusted).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{running.url}/readyz")


def test_the_data_folder_says_where_its_server_listens_while_it_does(tmp_path: Path) -> None:
    """In this thread, since the first SIGTERM ends it."""
    from service.address_file import running_server
    from service.executors.inline import inline_executor
    from service.metrics import Metrics
    from service.server import serve
    from tests.service.fakes import FakeWorker

    seen = []

    def on_ready(url: str) -> None:
        seen.append((url, running_server(tmp_path)))
        os.kill(os.getpid(), signal.SIGTERM)

    metrics = Metrics()
    settings = Settings(data_dir=tmp_path, port=0)
    assert serve(settings, inline_executor(FakeWorker().load, metrics), metrics, on_ready) == 0
    ((url, found),) = seen
    assert found is not None
    assert (found.url, found.differs(settings)) == (url, [])
    assert found.differs(settings.model_copy(update={"posterior": "untrained"})) == ["posterior"]
    assert running_server(tmp_path) is None
    assert not (tmp_path / "server.json").exists()
