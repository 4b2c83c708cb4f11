"""`abmll predict`: options for every condition of a gate, and for the kind of confidence."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.service.engine.test_diagnose import OPTIONS, SUPPORT
from tests.service.fakes import FakeWorker


def predict(folder: Path, *arguments: str, options: bool = True) -> tuple[int, str]:
    rows = [{**row, "options": OPTIONS} if options else row for row in SUPPORT]
    (folder / "support.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "inputs.jsonl").write_text('{"input": "a question"}\n')
    run = CliRunner().invoke(
        app,
        ["predict", str(folder / "inputs.jsonl"), "--support", str(folder / "support.jsonl"),
         "--data-dir", str(folder / "data"), "--json", *arguments],
    )  # fmt: skip
    return run.exit_code, run.output


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: FakeWorker())


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--min-confidence", "1", "confidence_below_minimum"),
        ("--min-margin", "1", "margin_below_minimum"),
        ("--max-mutual-information", "0", "mutual_information_above_maximum"),
        ("--min-typicality", "1", "typicality_below_minimum"),
        ("--min-answerable", "0", "answerable_below_minimum"),
    ],
)
def test_each_condition_can_make_it_abstain(tmp_path: Path, flag: str, value: str, reason: str) -> None:
    code, output = predict(tmp_path, flag, value)
    assert code == 0, output
    (row,) = json.loads(output)["predictions"]
    assert (row["decision"], row["abstain_reason"]) == ("abstain", reason)
    code, output = predict(tmp_path)
    assert json.loads(output)["predictions"][0]["decision"] == "answer"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-semantic-entropy", "0.1"),  # these inputs have options
        ("--min-logprob-per-token", "-1"),
        ("--confidence", "calibrated"),  # the adapter has no temperature of its own
    ],
)
def test_what_does_not_fit_the_inputs_is_refused_with_the_reason(
    tmp_path: Path, arguments: tuple[str, str]
) -> None:
    code, output = predict(tmp_path, *arguments)
    assert code == 1, output
    assert "{" not in output


def test_every_sample_of_free_text_writes_as_many_answers_as_asked(tmp_path: Path) -> None:
    worker = FakeWorker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.executors.loading.load_worker", lambda settings: worker)
        code, output = predict(tmp_path, "--answers-per-sample", "3", "--samples", "4", options=False)
    assert code == 0, output
    assert worker.predicted[0].settings.answers_per_sample == 3
