"""`abmll label`: answers beside rows, row by row, and on from where it was interrupted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from service.cli.main import app
from service.executors.contract import PredictJob
from tests.service.bulk.rows import TASK
from tests.service.conftest import Server
from tests.service.fakes import FakeWorker

ROWS = [
    {"id": n, "input": f"text {n}, with a comma" + ("\nand a line" if n % 5 == 0 else "")} for n in range(80)
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> FakeWorker:
    found = FakeWorker()
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: found)
    return found


@pytest.fixture
def adapter_id(tmp_path: Path, worker: FakeWorker) -> str:
    support = tmp_path / "support.jsonl"
    rows = [{**row, "options": TASK["options"]} for row in TASK["support"]]
    support.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = run("adapt", str(support), "--data-dir", str(tmp_path / "data"), "--json")
    assert made.exit_code == 0, made.output
    return str(json.loads(made.stdout)["id"])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "input"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def label(path: Path, adapter_id: str, out: Path, *more: str) -> Result:
    data = str(out.parent / "data")
    return run("label", str(path), "--adapter", adapter_id, "--out", str(out), "--data-dir", data, *more)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_every_row_has_its_answer_as_predict_gives_it(
    tmp_path: Path, table: Path, adapter_id: str, suffix: str
) -> None:
    out = tmp_path / f"labelled{suffix}"
    done = label(table, adapter_id, out, "--min-confidence", "0.38")
    assert done.exit_code == 0, done.output
    assert "80 of 80" in done.output
    found = read(out)
    assert [(row["id"], row["input"]) for row in found] == [(str(r["id"]), r["input"]) for r in ROWS]
    asked = run("predict", str(table), "--adapter", adapter_id, "--data-dir", str(tmp_path / "data"),
                "--min-confidence", "0.38", "--json")  # fmt: skip
    expected = json.loads(asked.stdout)["predictions"]
    assert [(r["decision"], r["answer"], float(r["confidence"])) for r in found] == [
        (r["decision"], r["answer"], round(r["confidence"], 6)) for r in expected
    ]
    assert {row["decision"] for row in found} == {"answer", "abstain"}
    assert {row["adapter_id"] for row in found} == {adapter_id}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_it_goes_on_where_the_file_ends_wherever_that_is(
    tmp_path: Path, table: Path, adapter_id: str, worker: FakeWorker, suffix: str
) -> None:
    out = tmp_path / f"labelled{suffix}"
    assert label(table, adapter_id, out).exit_code == 0
    whole = out.read_bytes()
    for size in (0, 5, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)):
        if suffix == ".jsonl" and size == 5:
            continue  # not one whole row: nothing says that the file is ours
        worker.predicted.clear()
        out.write_bytes(whole[:size])
        done = label(table, adapter_id, out)
        assert done.exit_code == 0, done.output
        assert out.read_bytes() == whole
        answered = sum(len(job.prompts) for job in worker.predicted)
        assert answered == pytest.approx(80 * (1 - size / len(whole)), abs=6)


def test_fields_of_json_lines_stay_as_they_are(tmp_path: Path, adapter_id: str) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"input": "é", "id": 2**60, "tags": ["a", {"b": 1.5}]}, {"input": "x", "other": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert label(path, adapter_id, out).exit_code == 0
    answer = {"decision", "answer", "confidence", "adapter_id"}
    assert [{k: v for k, v in row.items() if k not in answer} for row in read(out)] == rows
    assert label(path, adapter_id, tmp_path / "out.csv").exit_code == 0
    assert list(read(tmp_path / "out.csv")[0])[:4] == ["input", "id", "tags", "other"]


def test_what_would_mix_two_files_is_refused_and_nothing_is_lost(
    tmp_path: Path, table: Path, adapter_id: str
) -> None:
    out = tmp_path / "out.csv"
    assert label(table, adapter_id, out).exit_code == 0
    whole = out.read_bytes()
    other = tmp_path / "other.csv"
    other.write_text("id,input\n0,another text\n")
    cases = [(other, out, "has another input than other.csv line 2")]
    for name, content in (
        ("notes.csv", "my notes"),
        ("notes.jsonl", '{"a": 1}\n'),
        ("table.csv", "a,b\n1,2\n"),
    ):
        (tmp_path / name).write_text(content)
        cases.append((table, tmp_path / name, "name another --out"))
    (tmp_path / "answered.csv").write_text("input,answer\nx,y\n")
    cases.append((tmp_path / "answered.csv", tmp_path / "new.csv", "'answer' already"))
    cases.append((table, tmp_path / "new.txt", "ends with .csv, .tsv or .jsonl"))
    for path, named, message in cases:
        before = named.read_bytes() if named.exists() else None
        done = label(path, adapter_id, named)
        assert (done.exit_code, message in done.output.replace("\n", " ")) == (1, True), done.output
        assert (named.read_bytes() if named.exists() else None) == before
    assert out.read_bytes() == whole


def test_a_refused_row_is_named_by_its_place_and_the_rows_before_are_kept(
    tmp_path: Path, adapter_id: str
) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    texts = [f"text {n}" for n in range(40)]
    path.write_text("".join(json.dumps({"input": t}) + "\n" for t in [*texts, "x" * 3000, "last"]))
    done = label(path, adapter_id, out)
    assert done.exit_code == 1
    assert "rows.jsonl line 41" in done.output
    assert len(read(out)) == 32
    done = label(path, adapter_id, out, "--truncate")
    assert done.exit_code == 0, done.output
    assert len(read(out)) == 42


def test_interrupted_it_leaves_whole_rows_and_says_how_to_go_on(
    tmp_path: Path, table: Path, adapter_id: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    write = "service.cli.labelled.LabelledFile.write"
    from service.cli.labelled import LabelledFile

    usual, calls = LabelledFile.write, []

    def interrupt(file: LabelledFile, *given: Any) -> None:
        usual(file, *given)
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, interrupt)
        done = label(table, adapter_id, out)
    assert done.exit_code == 130
    assert "the same command goes on" in done.output
    assert len(read(out)) == 64
    worker.predicted.clear()
    assert label(table, adapter_id, out).exit_code == 0
    assert [row["input"] for row in read(out)] == [row["input"] for row in ROWS]
    assert all(isinstance(job, PredictJob) for job in worker.predicted)
    assert sum(len(job.prompts) for job in worker.predicted) == 16


def test_a_server_answers_as_this_process_does(tmp_path: Path, table: Path, adapter_id: str) -> None:
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    assert label(table, adapter_id, here).exit_code == 0
    with Server(tmp_path / "data").listening() as server:
        httpx.put(f"{server.url}/v1/names/tickets", json={"adapter_id": adapter_id}).raise_for_status()
        done = label(table, "tickets", there, "--url", server.url)
        assert done.exit_code == 0, done.output
        refused = label(table, "nobody", tmp_path / "no.csv", "--url", server.url)
        assert refused.exit_code == 1
        assert "nobody" in refused.output
    assert there.read_bytes() == here.read_bytes()
