"""Log lines as JSON, notes on requests in them and in headers, and what is at 0 from the start."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import httpx
import pytest
from typer.testing import CliRunner

from abmll.assurance.diagnostics import Verdict
from service.cli.main import app
from service.engine.requests import CacheOutcome
from service.gating.decisions import REASONS
from service.logs import JsonLines
from service.metrics import Metrics
from tests.service.conftest import Server

CREATE = {"support": [{"input": "secret one", "output": "yes"}, {"input": "secret two", "output": "no"}]}
BODY: dict[str, Any] = {**CREATE, "options": ["yes", "no"], "inputs": ["secret three"]}


class Lines(logging.Handler):
    """Keeps what is logged as JSON lines would have it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonLines())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def lines() -> Any:
    handler, root = Lines(), logging.getLogger("service")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.lines
    root.removeHandler(handler)
    root.setLevel(level)


def test_a_request_is_logged_with_its_id_tenant_and_adapter_and_none_of_its_text(
    tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    server = Server(tmp_path, tenant_header="x-tenant")

    async def scenario(client: httpx.AsyncClient) -> None:
        given = {"x-request-id": "one", "x-tenant": "acme"}
        answer = await client.post("/v1/predict", json=BODY, headers=given)
        assert answer.status_code == 200
        (line,) = (line for line in lines if line["logger"] == "service.access")
        assert {name: line[name] for name in ("request_id", "tenant", "adapter_id", "route", "status")} == {
            "request_id": "one",
            "tenant": "acme",
            "adapter_id": answer.json()["adapter_id"],
            "route": "/v1/predict",
            "status": 200,
        }
        server.worker.fail = ValueError("it was about secret four")
        failed = await client.post(
            "/v1/predict", json={**BODY, "seed": 3}, headers={**given, "x-request-id": "two"}
        )
        assert failed.status_code == 500
        (error,) = (line for line in lines if line.get("exception") == "ValueError")
        assert (error["request_id"], error["tenant"]) == ("two", "acme")
        assert any("fakes.py" in place for place in error["raised_at"])

    server.run(scenario)
    assert len(lines) >= 3
    assert "secret" not in json.dumps([line for line in lines if line["level"] != "warning"])


def test_times_of_an_answer_are_in_its_header(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/predict", json=BODY)
        timings = answer.json()["timings"]
        found = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
        assert list(found) == ["queue", "adapt", "predict", "total"]
        for name, milliseconds in found.items():
            assert float(milliseconds) == pytest.approx(timings[f"{name}_seconds"] * 1000, abs=0.06)
        assert "server-timing" not in (await client.get("/livez")).headers

    server.run(scenario)


def test_the_process_writes_the_format_and_the_level_that_are_set() -> None:
    program = (
        "import logging; from service.logs import set_up_logs; set_up_logs('json', 'warning', 'w1');"
        "logging.getLogger('a').info('no'); logging.getLogger('a').warning('%s', 'é')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    line = json.loads(ended.stderr)
    assert line.pop("time")
    assert line == {"level": "warning", "logger": "a", "message": "é", "worker": "w1"}


def test_the_version_is_shown() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, f"abmll {version('abmll-serve')}\n")


def test_counters_whose_labels_are_known_are_there_from_the_start() -> None:
    metrics = Metrics()
    known = metrics._known_values()
    assert known[metrics.cache] == [(outcome.value,) for outcome in CacheOutcome]
    assert known[metrics.decisions] == [("answer", ""), *(("abstain", reason) for reason in REASONS)]
    assert known[metrics.diagnoses] == [(verdict,) for verdict in get_args(Verdict)]
    page = metrics.render().decode()
    assert 'abmll_decisions_total{decision="abstain",reason="margin_below_minimum"} 0.0' in page
    assert 'abmll_adapter_cache_total{outcome="joined"} 0.0' in page
    assert "process_" not in page
    metrics.show_process()
    assert "process_resident_memory_bytes" in metrics.render().decode()


def test_the_disk_is_shown_as_it_is_now_and_as_no_number_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    metrics.show_disk(tmp_path)
    for free in (70, 30):
        usage = SimpleNamespace(total=100, free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        page = metrics.render().decode()
        assert f"abmll_disk_free_bytes {free}.0" in page
        assert "abmll_disk_bytes 100.0" in page
    monkeypatch.undo()
    metrics.show_disk(tmp_path / "none")
    assert "abmll_disk_free_bytes NaN" in metrics.render().decode()
