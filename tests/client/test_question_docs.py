"""The pages on many questions: their Python runs on a fake model's server, their commands in this
process.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service import schemas
from service.cli.main import app
from tests.service.conftest import Server
from tests.service.fakes import FakeWorker

ROOT = Path(__file__).resolve().parents[2]
INBOX, QUESTIONS = ((ROOT / f"docs/{name}.md").read_text("utf-8") for name in ("inbox", "questions"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(ROOT)
    with Server(tmp_path / "data").listening() as running:
        yield running.url


def run(page: str, url: str) -> dict[str, Any]:
    """Run the page's Python blocks one after the other, and return the names that they leave."""
    names: dict[str, Any] = {"url": url}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"example {number}", "exec"), names)
    return names


def test_the_worked_example_goes_from_cases_to_the_second_version(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run(INBOX, url)
    client = names["client"]
    with client:
        history = client.name("inbox").history
    assert len(names["questions"]) == 8
    assert len(names["cases"]) == 12
    assert [len(row["answers"]) for row in names["cases"]] == [8] * 12
    assert names["first"].support.n == 96
    answers = {
        question["name"]: [case["answers"][question["name"]] for case in names["cases"]]
        for question in names["questions"]
    }
    assert [row.cannot_tell for row in names["first"].questions] == [
        row.count(None) for row in answers.values()
    ]
    assert 0 < len(names["for_people"]) < 48
    expected = sum(name == "next_step" for _, name in names["for_people"])
    assert len(names["gates"]["next_step"].queue) == expected > 0
    assert names["gates"]["team"].statistics.fallen_back > 0
    assert names["second"].support.n == 96 + len(names["for_people"])
    assert [version.model for version in history] == ["inbox@2", "inbox@1"]
    assert "inbox@2\n" in capsys.readouterr().out


def test_the_page_on_questions_runs(url: str) -> None:
    names = run(QUESTIONS, url)
    assert names["adapter"].support.n == 5
    assert names["team"].decision in {"answer", "abstain"}


def test_its_requests_are_requests() -> None:
    (body,) = re.findall(r"/v1/decide .*? -d '(\{.*?\})'\n", QUESTIONS, re.DOTALL)
    request = schemas.DecideRequest.model_validate_json(body)
    (cases,) = blocks(QUESTIONS, "json")
    made = {**json.loads(cases), "questions": json.loads(body)["questions"]}
    schemas.CreateAdapterRequest.model_validate(made)
    assert len(request.questions or ()) == 3


def test_the_page_names_every_field_of_a_request_and_of_an_answer() -> None:
    named = set(re.findall(r"`(\w+)`", QUESTIONS))
    answer = set(schemas.QuestionAnswer.model_fields) - {"type"}
    fields = set(schemas.DecideRequest.model_fields) | answer | set(schemas.DecideResponse.model_fields)
    assert fields - named == set()


def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: FakeWorker())
    commands = re.findall(r"^abmll (decide .*)$", "".join(blocks(INBOX, "sh")), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        arguments = shlex.split(command.replace("answers.csv", str(tmp_path / "answers.csv")))
        ran = CliRunner().invoke(app, [*arguments, "--data-dir", str(tmp_path / "data")])
        assert ran.exit_code == 0, ran.output
        assert "wrote_before" in ran.output
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 7
