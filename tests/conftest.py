"""No test reaches for a model hub: set before anything imports its client."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `abmll` itself does: see service/cli/main.py

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

LONGEST_FILES = [
    "e2e/test_server.py", "service/test_embedded.py", "service/playground/test_journey.py",
    "service/cli/test_failures.py", "abmll/test_memory_plan.py", "e2e/test_ticket_triage.py",
    "e2e/test_decisions.py", "e2e/test_readme.py", "service/executors/test_worker.py",
    "client/test_concurrency.py", "service/test_server.py", "deployment/test_balancer.py",
    "lab/evaluation/test_run.py", "service/executors/test_process.py",
]  # fmt: skip
"""Files that take longest, in this order: begun last, they would run beside idle processes."""

if TYPE_CHECKING:
    from model_store.objects.contract import Objects
    from tests.s3_server import S3Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Undo what a server does to the logs of its process, which is that of all tests."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def s3_of_session() -> Iterator[S3Server]:
    from tests.s3_server import S3Server

    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_of_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Yield a real S3 server, which the environment names."""
    for name, value in s3_of_session.environment.items():
        monkeypatch.setenv(name, value)
    s3_of_session.reset()
    yield s3_of_session
    s3_of_session.reset()


@pytest.fixture
def s3_url(s3: S3Server) -> str:
    """Return an empty place in a bucket."""
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture(params=["folder", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an empty place of each kind."""
    if request.param == "folder":
        return f"file://{tmp_path}/shared"
    url: str = request.getfixturevalue("s3_url")
    return url


@pytest.fixture
def objects(store_url: str) -> Objects:
    from model_store.objects.opening import open_objects

    return open_objects(store_url, 5)


@pytest.fixture
def other_objects(store_url: str) -> Objects:
    """Return the same place as `objects`, as another process has it."""
    from model_store.objects.opening import open_objects

    return open_objects(store_url, 5)
