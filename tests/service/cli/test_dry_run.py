"""`--dry-run` shows what files mean and what they would take, and does nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model_store.adapters.store import AdapterStore
from service.cli.main import app
from service.cli.stored_copy import copy_stored
from service.settings import Settings
from tests.service.cli.test_decide import CASES, QUESTIONS
from tests.service.engine.test_diagnose import OPTIONS, SUPPORT
from tests.service.engine.test_pricing import LONG, priced
from tests.service.fakes import FakeWorker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> FakeWorker:
    worker = FakeWorker(priced())
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: worker)
    return worker


def run(folder: Path, *arguments: str, text: str = "a question") -> tuple[int, str]:
    rows = [{**row, "options": OPTIONS} for row in SUPPORT]
    (folder / "support.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "inputs.jsonl").write_text(json.dumps({"input": text}) + "\n")
    named = [str(folder / name) if name.endswith(".jsonl") else name for name in arguments]
    ended = CliRunner().invoke(app, [*named, "--data-dir", str(folder / "data"), "--dry-run"])
    return ended.exit_code, ended.output


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("adapt", "support.jsonl"), {"examples": 6, "inputs": 0, "made_already": False}),
        (("predict", "inputs.jsonl", "--support", "support.jsonl"), {"examples": 6, "inputs": 1}),
        (("diagnose", "support.jsonl", "--folds", "3"), {"examples": 6, "inputs": 0}),
    ],
)
def test_what_would_run_is_shown_and_not_done(
    tmp_path: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, arguments: Any, found: dict[str, Any]
) -> None:
    monkeypatch.setenv("ABMLL_DEADLINE_SECONDS", "10000")
    code, output = run(tmp_path, *arguments, "--json")
    assert code == 0, output
    answer = json.loads(output)
    assert {name: answer[name] for name in found} == found
    assert answer["options"] == OPTIONS
    assert answer["tokens"] >= 6 * (6 + 3 + 2)
    assert answer["price"]["adapt_seconds"] > 0
    assert answer["refusal"] is None
    assert worker.adapted == worker.predicted == []
    code, output = run(tmp_path, *arguments)
    assert code == 0, output
    assert "nothing was done" in output
    assert "to adapt" in output


@pytest.mark.parametrize(
    ("arguments", "deadline", "says"),
    [
        (("adapt", "support.jsonl"), "60", "its deadline is 60 s"),
        (("predict", "inputs.jsonl", "--support", "support.jsonl"), "60", "its deadline is 60 s"),
        (("diagnose", "support.jsonl"), "60", "its deadline is 60 s"),
        (("predict", "inputs.jsonl", "--adapter", "adp_0"), "60", "there is no adapter"),
        (("adapt", "inputs.jsonl"), "60", "output"),
    ],
)
def test_what_would_be_refused_exits_with_2(
    tmp_path: Path,
    worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Any,
    deadline: str,
    says: str,
) -> None:
    monkeypatch.setenv("ABMLL_DEADLINE_SECONDS", deadline)
    code, output = run(tmp_path, *arguments, text=LONG)
    assert code == 2, output
    assert says in output
    assert worker.adapted == worker.predicted == []


def test_an_adapter_that_is_there_costs_nothing(tmp_path: Path, worker: FakeWorker) -> None:
    (tmp_path / "a").mkdir()
    support = tmp_path / "support.jsonl"
    support.write_text("".join(json.dumps({**row, "options": OPTIONS}) + "\n" for row in SUPPORT))
    arguments = ["adapt", str(support), "--data-dir", str(tmp_path / "data")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABMLL_DEADLINE_SECONDS", "10000")
        assert CliRunner().invoke(app, arguments).exit_code == 0
    ended = CliRunner().invoke(app, [*arguments, "--dry-run", "--json"])
    assert ended.exit_code == 0, ended.output
    answer = json.loads(ended.output)
    assert (answer["made_already"], answer["price"]["adapt_seconds"]) == (True, 0.0)
    assert len(worker.adapted) == 1


def test_questions_and_rows_of_any_number_have_their_price(
    tmp_path: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABMLL_DEADLINE_SECONDS", "10000")
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in CASES))
    questions = ("--questions", str(tmp_path / "questions.json"), "--json")
    code, output = run(tmp_path, "decide", "cases.jsonl", "inputs.jsonl", *questions)
    assert code == 0, output
    assert (json.loads(output)["examples"], json.loads(output)["inputs"]) == (5, 3)  # answers, and questions
    assert worker.adapted == worker.predicted == []
    code, output = run(tmp_path, "decide", "inputs.jsonl", *questions, text=LONG)
    assert (code, json.loads(output)["inputs"]) == (0, 3), output
    assert json.loads(output)["price"]["predict_seconds"] > 100
    monkeypatch.setenv("ABMLL_DEADLINE_SECONDS", "60")
    code, output = run(tmp_path, "decide", "inputs.jsonl", *questions, text=LONG)
    assert (code, "its deadline is 60 s" in output) == (2, True)
    monkeypatch.setenv("ABMLL_DEADLINE_SECONDS", "10000")

    support = str(tmp_path / "support.jsonl")
    made = CliRunner().invoke(app, ["adapt", support, "--data-dir", str(tmp_path / "data"), "--json"])
    adapter = json.loads(made.output)["id"]
    shown = {}
    for count in (64, 2048):
        rows = "".join(json.dumps({"input": f"text {n:04}"}) + "\n" for n in range(count))
        (tmp_path / "rows.jsonl").write_text(rows)
        code, output = run(tmp_path, "label", "rows.jsonl", "--adapter", adapter)
        assert code == 0, output
        cells = [line.strip("│ ").split("│") for line in output.splitlines() if "│" in line]
        shown[count] = {name.strip(): value.strip() for name, value in cells}
    assert shown[2048]["inputs"] == "2048"
    seconds = [float(shown[count]["to predict"].split()[1]) for count in shown]
    tokens = [int(shown[count]["tokens"].partition(",")[0]) for count in shown]
    assert tokens[1] == 32 * tokens[0]
    assert seconds[1] == pytest.approx(32 * seconds[0], rel=0.02)
    assert worker.predicted == []
    code, output = run(tmp_path, "label", "rows.jsonl", "--adapter", "nobody")
    assert (code, "nobody" in output) == (2, True)


def test_beside_a_server_a_dry_run_reads_the_adapter_and_owns_nothing(
    tmp_path: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABMLL_DEADLINE_SECONDS", "10000")
    data = ("--data-dir", str(tmp_path / "data"))
    support = tmp_path / "support.jsonl"
    support.write_text("".join(json.dumps({**row, "options": OPTIONS}) + "\n" for row in SUPPORT))
    made = CliRunner().invoke(app, ["adapt", str(support), *data, "--json"])
    adapter = json.loads(made.output)["id"]
    assert CliRunner().invoke(app, ["names", "put", "tickets", adapter, *data]).exit_code == 0
    alone = run(tmp_path, "predict", "inputs.jsonl", "--adapter", adapter, "--json")
    before = contents(tmp_path / "data")
    with AdapterStore(tmp_path / "data" / "adapters"):
        code, output = run(tmp_path, "adapt", "support.jsonl", "--json")
        assert (code, json.loads(output)["examples"]) == (0, 6)
        for named in (adapter, "tickets", "tickets@1"):
            assert run(tmp_path, "predict", "inputs.jsonl", "--adapter", named, "--json") == alone
            code, output = run(tmp_path, "label", "inputs.jsonl", "--adapter", named)
            assert (code, "to predict" in output) == (0, True), output
        for unknown in ("adp_00000000", "tickets@2", "nobody", "../data"):
            code, output = run(tmp_path, "label", "inputs.jsonl", "--adapter", unknown)
            assert (code, "there is no" in output or "has no version" in output) == (2, True), output
    assert contents(tmp_path / "data") == before
    assert (len(worker.adapted), worker.predicted) == (1, [])
    code, output = run(tmp_path, "adapt", "support.jsonl", "--url", "http://127.0.0.1:1")
    assert (code, "leave --url out" in output) == (2, True)


def test_the_calibrations_of_an_adapter_come_along(tmp_path: Path) -> None:
    """Else a dry run would refuse a target error that the server certifies."""
    there, own = (Settings(data_dir=tmp_path / name) for name in ("there", "own"))
    keys = ("adp_00000000", "adp_00000000.0123456789abcdef", "adp_11111111")
    for key in keys:
        (there.calibrations_dir / key).mkdir(parents=True)
    copy_stored(there, "adp_00000000", own)
    assert sorted(path.name for path in own.calibrations_dir.iterdir()) == list(keys[:2])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
