"""A real S3 server, moto's, over HTTP in a thread of the test, with faults on order.

It answers one request at a time: moto compares a condition and writes in two steps, which only then
are one, as they are in S3.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server
from werkzeug.test import Client

BUCKET = "bucket"
ACCOUNT = "123456789012"
SECRET = "a-secret-that-no-log-may-have"
Respond = Callable[..., Any]
App = Callable[[dict[str, Any], Respond], Iterable[bytes]]
Fault = Callable[[App, dict[str, Any], Respond], Iterable[bytes]]


def answers_503(app: App, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
    """Answer as S3 does when it is asked too often, with nothing done."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    respond("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def cuts_before(app: App, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
    """Close the connection with nothing done."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def cuts_after(app: App, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
    """Do what is asked, and close the connection before the answer."""
    list(app(environ, lambda *_: None))
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def cuts_halfway(app: App, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
    """Answer with the first half of the body only."""
    body = b"".join(app(environ, respond))
    yield body[: len(body) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def slow(seconds: float) -> Fault:
    """Answer late."""

    def fault(app: App, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        time.sleep(seconds)
        return app(environ, respond)

    return fault


class S3Server:
    """The server: `faults` are of the next requests, one each; `always` is of all."""

    def __init__(self) -> None:
        self._app: App = DomainDispatcherApplication(create_backend_app)
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        Client(self._app).get("/")  # loads what the first request needs: 2 s
        s3_backends[ACCOUNT]["aws"].create_bucket(BUCKET, "us-east-1")
        self.faults: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.requests: list[str] = []
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=False)
        self._server.log = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Return what a process needs to use the server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Have every request meet the fault until the context ends."""
        self.always = fault
        try:
            yield
        finally:
            self.always = None

    def reset(self) -> None:
        self.faults.clear()
        self.requests.clear()
        self.always = None

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        fault = self.faults.popleft() if self.faults else self.always
        return fault(self._app, environ, respond) if fault else self._app(environ, respond)
