"""Commands on a server give what they give in this process, and find the server of the data folder."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from abmll.errors import AbmllError
from model_store.adapters.store import AdapterStore
from service.address_file import FILE, remove_address, running_server, write_address
from service.cli.main import app
from service.cli.remote import Remote
from service.errors import ServiceError
from service.settings import Settings
from tests.service.cli.test_decide import CASES, QUESTIONS
from tests.service.conftest import Listening, Server
from tests.service.engine.test_diagnose import OPTIONS, SUPPORT
from tests.service.fakes import FakeWorker


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: FakeWorker())
    rows = [{**row, "options": OPTIONS} for row in SUPPORT]
    lines = {"support": rows, "cases": CASES, "inputs": [{"input": "a text"}, {"input": "b"}]}
    for name, found in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "bad.jsonl").write_text('{"input": "a"}\n{"input": "' + "x" * 300 + '"}\n')
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Listening]:
    with Server(folder / "served").listening() as server:
        yield server


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    paths = [str(folder / a) if re.search(r"\.jsonl?$", a) else a for a in arguments]
    ended = CliRunner().invoke(app, paths, env={"COLUMNS": "200"})
    return ended.exit_code, ended.output


def answer(folder: Path, *arguments: str) -> Any:
    code, output = run(folder, *arguments, "--json")
    assert code == 0, output
    found = json.loads(output)
    for passing in ("timings", "request_id", "created"):
        found.pop(passing, None)
    return found


COMMANDS = {
    "adapt": ("adapt", "support.jsonl", "--steps", "3", "--seed", "2"),
    "predict": ("predict", "inputs.jsonl", "--support", "support.jsonl", "--samples", "4", "--min-margin", "0.3"),
    "diagnose": ("diagnose", "support.jsonl", "--folds", "3", "--samples", "2"),
    "decide": ("decide", "cases.jsonl", "inputs.jsonl", "--questions", "questions.json", "--samples", "4"),
    "zero-shot": ("decide", "inputs.jsonl", "--questions", "questions.json", "--min-confidence", "0.5"),
}  # fmt: skip


def test_a_server_answers_as_this_process_does(folder: Path, server: Listening) -> None:
    """By its address, and by the data folder alone."""
    settings = Settings(data_dir=folder / "served")
    write_address(settings, server.url)
    for arguments in COMMANDS.values():
        here = answer(folder, *arguments, "--data-dir", str(folder / "own"))
        there = answer(folder, *arguments, "--url", server.url, "--data-dir", str(folder / "own"))
        assert there == here
        found = answer(folder, *arguments, "--data-dir", str(folder / "served"))
        assert {**found, "cache": None} == {**here, "cache": None}
    remove_address(settings.data_dir)
    code, output = run(folder, *COMMANDS["adapt"], "--data-dir", str(folder / "served"))
    assert (code, output.count("\n")) == (1, 1)
    assert "another process uses" in output


def test_names_are_those_of_the_server(folder: Path, server: Listening) -> None:
    write_address(Settings(data_dir=folder / "served"), server.url)
    place = ("--data-dir", str(folder / "served"))
    id = answer(folder, *COMMANDS["adapt"], *place)["id"]
    assert answer(folder, "names", "put", "tickets", id, "--note", "first", *place)["current"]["version"] == 1
    assert run(folder, "names", "put", "tickets", id, "--if-version", "9", "--url", server.url)[0] == 1
    moved = answer(folder, "names", "rollback", "tickets", "1", "--url", server.url)
    assert moved["current"]["rollback_of"] == 1
    assert answer(folder, "names", "list", *place)["names"] == [moved]
    found = answer(folder, "predict", "inputs.jsonl", "--adapter", "tickets", *place)
    assert (found["model"], found["adapter_id"]) == ("tickets@2", id)
    assert run(folder, "names", "delete", "tickets", *place) == (0, "")
    assert answer(folder, "names", "list", "--url", server.url) == {"names": []}


def test_what_the_server_refuses_is_said_with_its_place_in_the_file(folder: Path, server: Listening) -> None:
    arguments = ("decide", "bad.jsonl", "--questions", "questions.json", "--url", server.url)
    code, output = run(folder, *arguments)
    assert (code, output.count("\n")) == (1, 1)
    assert "bad.jsonl line 2" in output
    code, output = run(folder, "predict", "inputs.jsonl", "--adapter", "nobody", "--url", server.url)
    assert (code, "the server refused" in output, "nobody" in output) == (1, True, True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
    code, output = run(folder, *COMMANDS["adapt"], "--url", "no address")
    assert (code, "no address" in output) == (1, True)
    code, output = run(folder, *COMMANDS["adapt"], "--url", url)
    assert (code, output.count("\n")) == (1, 1)
    assert f"no answer from {url}" in output


def test_what_may_pass_is_tried_again_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("service.cli.remote.time.sleep", waited.append)
    coming: list[Any] = [
        httpx.Response(503, headers={"retry-after": "7"}),
        httpx.ConnectError("restarting"),
        httpx.Response(200, json={"a": 1}),
        httpx.Response(422, json={"error": {"message": "no", "param": "inputs[3]"}}),
        httpx.Response(200, text="<html>"),
    ]
    remote = Remote("http://127.0.0.1:1", None)

    def answer(*_: Any, **__: Any) -> httpx.Response:
        found = coming.pop(0)
        if isinstance(found, Exception):
            raise found
        found.request = httpx.Request("GET", "http://x/")
        return found

    monkeypatch.setattr(remote._http, "request", answer)
    assert remote.request("GET", "/") == {"a": 1}
    assert waited == [7, 2]
    with pytest.raises(ServiceError, match="the server refused: no") as raised:
        remote.request("GET", "/")
    assert raised.value.param == "inputs[3]"
    with pytest.raises(AbmllError, match="is it an ABMLL server"):
        remote.request("GET", "/")
    assert coming == []


def test_a_server_with_another_model_is_not_asked_instead(folder: Path) -> None:
    write_address(Settings(data_dir=folder, posterior="untrained"), "http://127.0.0.1:1")
    with AdapterStore(folder / "adapters"):
        code, output = run(folder, *COMMANDS["adapt"], "--data-dir", str(folder))
    assert (code, output.count("\n")) == (1, 1)
    assert "posterior untrained and not None: give the same by --posterior" in output


def test_a_file_that_a_killed_server_left_counts_for_nothing(folder: Path) -> None:
    settings = Settings(data_dir=folder)
    write_address(settings, "http://127.0.0.1:1")
    found = running_server(folder)
    assert found is not None
    assert (found.url, found.process) == ("http://127.0.0.1:1", os.getpid())
    whole = json.loads((folder / FILE).read_text())
    gone = psutil.Popen(["true"])
    gone.wait()
    for stale in (
        {"process": gone.pid},
        {"process_started": whole["process_started"] - 60},  # the number is another process's now
        {"host": "elsewhere"},
        {"url": None, "more": 1},
    ):
        (folder / FILE).write_text(json.dumps({**whole, **stale}))
        assert running_server(folder) is None
        remove_address(folder)
        assert (folder / FILE).exists()  # it is not this process's
    (folder / FILE).write_text("{")
    assert running_server(folder) is None
    write_address(settings, "http://127.0.0.1:2")
    remove_address(folder)
    assert not (folder / FILE).exists()
