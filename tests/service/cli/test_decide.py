"""`abmll decide`: answers as the server's, files that come back as cases, errors with their place
in a file.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.service.conftest import Server
from tests.service.fakes import FakeWorker

QUESTIONS = [
    {"type": "predicate", "name": "urgent", "instructions": "Is it urgent?"},
    {"type": "choice", "name": "team", "instructions": "Which team?", "choices": [{"value": "billing"}, {"value": "it"}]},
    {"type": "score", "name": "anger", "instructions": "How angry?", "levels": [{"label": "calm"}, {"label": "cross"}]},
]  # fmt: skip
CASES = [
    {"input": "the bill is wrong", "answers": {"urgent": True, "team": "billing", "anger": 1}},
    {"input": "no hurry", "answers": {"urgent": False, "team": None}},
]
INPUTS = ["a mail", "another, with a comma"]


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: FakeWorker())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "questions.json", json.dumps(QUESTIONS))
    write(tmp_path, "cases.jsonl", "".join(json.dumps(case) + "\n" for case in CASES))
    write(tmp_path, "inputs.csv", 'input\na mail\n"another, with a comma"\n')
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the command on files of the folder, which are named with their suffix."""
    paths = [str(folder / a) if a.endswith((".json", ".jsonl", ".csv", ".tsv")) else a for a in arguments]
    ran = CliRunner().invoke(
        app, ["decide", *paths, "--data-dir", str(folder / "data")], env={"COLUMNS": "200"}
    )
    return ran.exit_code, ran.output


def answered(folder: Path, *arguments: str) -> dict[str, Any]:
    code, output = run(folder, *arguments, "--json")
    assert code == 0, output
    found: dict[str, Any] = json.loads(output)
    return found


def of_server(tmp_path: Path, body: dict[str, Any]) -> Any:
    return Server(tmp_path / "server").post("/v1/decide", body).json()["results"]


@pytest.mark.parametrize("cases", [None, CASES])
def test_answers_are_those_of_the_server(folder: Path, cases: Any) -> None:
    files = ["inputs.csv"] if cases is None else ["cases.jsonl", "inputs.csv"]
    fits = [] if cases is None else ["--steps", "2", "--learning-rate", "0.01"]
    options = ["--samples", "4", "--seed", "3", "--min-margin", "0.2", *fits]
    found = answered(folder, *files, "--questions", "questions.json", *options)
    body = {"questions": QUESTIONS, "inputs": INPUTS, "samples": 4, "seed": 3, "gate": {"min_margin": 0.2}}
    if cases is not None:
        body |= {"cases": cases, "adapt": {"steps": 2, "learning_rate": 0.01}}
    assert found["results"] == of_server(folder, body)


def test_a_stored_adapter_answers_its_own_questions(folder: Path) -> None:
    made = answered(folder, "cases.jsonl", "inputs.csv", "--questions", "questions.json")
    found = answered(folder, "inputs.csv", "--adapter", made["adapter_id"])
    assert found["results"] == made["results"]


def test_the_table_has_each_answer_with_its_decision(folder: Path) -> None:
    arguments = ["cases.jsonl", "inputs.csv", "--questions", "questions.json", "--samples", "0"]
    found = answered(folder, *arguments, "--min-confidence", "0.6")
    code, output = run(folder, *arguments, "--min-confidence", "0.6")
    assert code == 0
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line
    ]
    shown = iter(rows)
    for result in found["results"]:
        assert result["answers"]
        for name, answer in result["answers"].items():
            value = answer["answer"]
            text = value if isinstance(value, str) else "yes" if value else "no"
            level = "" if answer["expected_level"] is None else f" ({answer['expected_level']:.1f})"
            cells = [name, text + level, f"{answer['confidence']:.2f} ± 0.00", f"{answer['answerable']:.2f}"]
            assert next(shown) == [*cells, answer["decision"]]
    assert {row[-1] for row in rows} == {"answer", "abstain"}
    assert all(text in output for text in INPUTS)
    assert "adapter adp_" in output
    assert "urgent *" in run(folder, "inputs.csv", "--questions", "questions.json")[1]


def test_the_command_has_every_threshold_that_a_question_can_fail(folder: Path) -> None:
    for bound, reason in (("--min-confidence", "confidence"), ("--min-answerable", "answerable")):
        found = answered(folder, "inputs.csv", "--questions", "questions.json", bound, "1")
        reasons = {row["reason"] for result in found["results"] for row in result["answers"].values()}
        assert reasons == {f"{reason}_below_minimum"}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_file_of_answers_comes_back_as_cases(folder: Path, suffix: str) -> None:
    arguments = ["inputs.csv", "--questions", "questions.json", "--samples", "2"]
    found = answered(folder, *arguments, "--out", f"out.{suffix}")
    cases = [
        {"input": text, "answers": {name: row["answer"] for name, row in result["answers"].items()}}
        for text, result in zip(INPUTS, found["results"], strict=True)
    ]
    taught = answered(folder, f"out.{suffix}", *arguments)
    body = {"questions": QUESTIONS, "inputs": INPUTS, "samples": 2, "cases": cases}
    assert taught["results"] == of_server(folder, body)
    first = found["results"][0]["answers"]["team"]
    if suffix == "csv":
        row = next(csv.DictReader((folder / "out.csv").read_text().splitlines()))
        assert (row["input"], row["team"], row["team_decision"]) == ("a mail", first["answer"], "answer")
        assert float(row["team_confidence"]) == pytest.approx(first["confidence"], abs=1e-4)
    else:
        line = json.loads((folder / "out.jsonl").read_text().splitlines()[0])
        assert (line["confidence"]["team"], line["decision"]["team"]) == (first["confidence"], "answer")


def test_the_file_of_answers_has_the_separator_of_the_inputs(folder: Path) -> None:
    write(folder, "inputs.csv", "id;input\n1;a mail\n2;another, with a comma\n")
    arguments = ["inputs.csv", "--questions", "questions.json", "--samples", "0"]
    answered(folder, *arguments, "--out", "out.csv")
    lines = (folder / "out.csv").read_text().splitlines()
    assert lines[0].startswith("input;urgent;urgent_confidence;")
    assert lines[2].startswith("another, with a comma;")
    assert len(answered(folder, "out.csv", *arguments)["results"]) == 2


@pytest.mark.parametrize("name", ["cases.csv", "inputs.csv"])
def test_a_missing_column_is_said_before_anything_is_loaded(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "cases.csv", "input,urgent\na,true\n")
    write(folder, name, "text,urgent\na,true\n")
    for loaded in ("service.api.native.predicting", "service.schemas", "service.engine.build"):
        monkeypatch.setitem(sys.modules, loaded, None)  # its import fails
    code, output = run(folder, "cases.csv", "inputs.csv", "--questions", "questions.json")
    assert (code, output.count("\n")) == (1, 1)
    assert f"{name} has no column `input`" in output


BAD_FILES = {
    "no JSON": ("questions.json", "[{]", "questions.json is not JSON"),
    "no list": ("questions.json", "{}", "questions.json is not a list of questions"),
    "a question of no type": ("questions.json", '[{"type": "box"}]', "questions.json question 1: Input should be a question"),
    "a nameless question": (
        "questions.json", json.dumps([{**QUESTIONS[0], "name": None}]), "question 1 (name): every question needs a name",
    ),
    "an empty instruction": (
        "questions.json", json.dumps([QUESTIONS[1], {**QUESTIONS[0], "instructions": ""}]),
        "questions.json question 2 (instructions): the instructions are empty",
    ),
    "an unknown question": (
        "cases.jsonl", '\n{"input": "x", "answers": {"colour": 1}}\n', "line 2 (answers.colour): there is no question",
    ),
    "no option": (
        "cases.jsonl", '{"input": "x", "answers": {"team": "sales"}}\n', "line 1 (answers.team): 'sales' is no answer",
    ),
    "a list": ("cases.jsonl", '{"input": "x", "answers": {"team": []}}\n', "line 1 (answers.team): an answer is a text"),
    "no input": ("inputs.csv", "text\nx\n", "inputs.csv has no column `input`"),
    "a long input": ("inputs.csv", "input\na\n" + "x" * 300 + "\n", "inputs.csv line 3: "),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_wrong_is_named_with_its_place_in_a_file(
    folder: Path, name: str, text: str, message: str
) -> None:
    write(folder, name, text)
    code, output = run(folder, "cases.jsonl", "inputs.csv", "--questions", "questions.json")
    assert (code, output.count("\n")) == (1, 1)
    assert message in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inputs.csv"], "give --questions, or by --adapter"),
        (["cases.jsonl", "inputs.csv"], "CASES need --questions"),
        (
            ["cases.jsonl", "inputs.csv", "--questions", "questions.json", "--adapter", "x"],
            "leave --adapter out",
        ),
        (["inputs.csv"] * 3 + ["--questions", "questions.json"], "at most one of cases"),
        (["inputs.csv", "--questions", "questions.json", "--out", "answers.xls"], "ends with .csv or .jsonl"),
        (["inputs.csv", "--questions", "questions.json", "--samples", "65"], "0 to 64"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    folder: Path, arguments: list[str], message: str
) -> None:
    code, output = run(folder, *arguments)
    assert code == 2
    assert message in " ".join(output.replace("│", " ").split())


def test_columns_of_one_name_are_not_written_over_each_other(folder: Path) -> None:
    write(folder, "questions.json", json.dumps([{**QUESTIONS[0], "name": "input"}]))
    code, output = run(folder, "inputs.csv", "--questions", "questions.json", "--out", "out.csv")
    assert code == 1
    assert "out.csv would have two columns 'input'" in output
    assert not (folder / "out.csv").exists()
    assert run(folder, "inputs.csv", "--questions", "questions.json", "--out", "out.jsonl")[0] == 0
