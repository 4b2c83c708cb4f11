"""Files of rows on the command line: spreadsheets load, and what cannot be read is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.service.fakes import FakeWorker

OPTIONS = ("--option", "yes", "--option", "no")
GOOD = "input;output\r\ngood; really;yes\r\n".replace("good; really", '"good; really"') + "bad;no\r\n;\r\n"


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> FakeWorker:
    worker = FakeWorker()
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: worker)
    return worker


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*arguments, "--data-dir", str(folder / "data")])
    return done.exit_code, done.stdout, done.stderr


def test_spreadsheets_are_answered_as_json_lines_are(tmp_path: Path, worker: FakeWorker) -> None:
    def answer(support: Path, inputs: Path) -> dict[str, Any]:
        arguments = ("predict", str(inputs), "--support", str(support), *OPTIONS, "--json")
        code, out, err = run(tmp_path, *arguments)
        assert code == 0, err
        return json.loads(out)

    texts = ['"Great start', "fine", "awful"]
    (tmp_path / "s.CSV").write_bytes(GOOD.encode("utf-16"))
    (tmp_path / "i.tsv").write_text("input\n" + "\n".join(texts), encoding="utf-8-sig")
    rows = [{"input": "good; really", "output": "yes"}, {"input": "bad", "output": "no"}]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "i.jsonl").write_text("\n".join(json.dumps({"input": text}) for text in texts))
    found = answer(tmp_path / "s.CSV", tmp_path / "i.tsv")
    expected = answer(tmp_path / "s.jsonl", tmp_path / "i.jsonl")
    assert (found["adapter_id"], found["predictions"]) == (expected["adapter_id"], expected["predictions"])
    assert len(found["predictions"]) == 3
    assert len(worker.adapted) == 1  # the second time it is the same adapter


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", b"input,output\n", "s.csv has no rows below its header"),
        ("s.csv", b"input,output\nToo dear, sadly,yes\n", "s.csv line 2: the header has 2 cells, this row 3"),
        ("s.csv", b"input,output\ncaf\xe9,yes\n", "s.csv line 2 has the byte 0xE9, which is not UTF-8: save the file as UTF-8"),
        ("s.csv", b"input,output\na,yes\nb,yes\n", "s.csv: all support examples are labelled 'yes'"),
        ("s.csv", b"input,output\na,yes\nb,no \n", "s.csv line 3: the output 'no ' is not among the options"),
        ("s.csv", b"input,output\na,yes\nb,\n", "s.csv line 3: a support example has an empty output"),
        ("s.csv", b"input,output,options\na,x,x\n", "s.csv line 2: `options` is 'x', one option; write several"),
        ("s.jsonl", b'{"input": "a", "output": "a", "options": ["a", "a "]}', "'a' and 'a ' differ only by white space"),
        ("s.jsonl", b'{"input": "\\ud83d", "output": "yes"}', "s.jsonl line 1: `input` holds \\ud83d, half of a character"),
        ("s.jsonl", b'{"input": "a", "output": 1}', "s.jsonl line 1: `output` is a number"),
        ("s.jsonl", b'{"input": "a", "output": "y", "options": "y|n"}', "s.jsonl line 1: `options` is a list of texts"),
        ("s.xls", b"\xd0\xcf\x11\xe0", "s.xls: expected .jsonl, .csv, .tsv"),
    ],
)  # fmt: skip
def test_every_command_names_file_line_and_remedy(
    tmp_path: Path, worker: FakeWorker, name: str, content: bytes, message: str
) -> None:
    path, inputs = tmp_path / name, tmp_path / "i.csv"
    path.write_bytes(content)
    inputs.write_text("input\nnew\n")
    for arguments in (
        ("adapt", str(path)),
        ("diagnose", str(path)),
        ("predict", str(inputs), "--support", str(path)),
    ):
        code, out, err = run(tmp_path, *arguments, *OPTIONS)
        assert (code, out) == (1, "")
        assert message in err
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
    assert worker.adapted == []


def test_inputs_are_named_the_same_way(tmp_path: Path, worker: FakeWorker) -> None:
    inputs = tmp_path / "inputs.csv"
    for content, message in {
        "text\nx\n": "inputs.csv has no column `input`: its columns are 'text'",
        "input,options\nx,a|b\ny,a\n": "inputs.csv line 3: `options` is 'a', one option",
    }.items():
        inputs.write_text(content)
        code, _, err = run(tmp_path, "predict", str(inputs), "--adapter", "adp_0")
        assert (code, err.count("\n")) == (1, 1)
        assert message in err


def test_a_file_that_is_not_there_is_no_adapter(tmp_path: Path, worker: FakeWorker) -> None:
    code, _, err = run(tmp_path, "diagnose", str(tmp_path / "none.csv"))
    assert (code, err) == (1, "error: none.csv cannot be read: No such file or directory\n")


@pytest.mark.parametrize("samples", ["65", "-1", "x", "9" * 5000, "1.5"])
def test_samples_are_a_number_or_auto(tmp_path: Path, worker: FakeWorker, samples: str) -> None:
    (tmp_path / "i.csv").write_text("input\nnew\n")
    code, _, err = run(tmp_path, "predict", str(tmp_path / "i.csv"), "--adapter", "a", f"--samples={samples}")
    assert code == 2
    assert "from 0 to 64, or auto" in err


LABELLED = [("good", "yes"), ("bad", "no"), ("fine", "yes"), ("poor", "no")]


def test_options_are_inferred_where_asked_and_missed_where_labels_repeat(
    tmp_path: Path, worker: FakeWorker
) -> None:
    support = tmp_path / "s.csv"
    support.write_text("input,output\n" + "".join(f"{text},{label}\n" for text, label in LABELLED))
    code, out, err = run(tmp_path, "adapt", str(support), "--json")
    assert code == 0, err
    assert json.loads(out)["options"] == []
    assert err.startswith("warning: s.csv has 2 different labels in 4 rows ('yes', 'no') and no options")
    assert "--infer-options" in err
    code, out, err = run(tmp_path, "adapt", str(support), "--infer-options", "--json")
    assert (code, err) == (0, "")
    inferred = json.loads(out)
    assert inferred["options"] == ["yes", "no"]
    code, out, err = run(tmp_path, "adapt", str(support), *OPTIONS, "--json")
    assert (code, err, json.loads(out)["id"]) == (0, "", inferred["id"])
    support.write_text("input,output\na,the first\nb,the second\n")
    assert run(tmp_path, "adapt", str(support))[2] == ""
    code, _, err = run(tmp_path, "adapt", str(support), "--infer-options")
    assert (code, "s.csv has 2 different labels in 2 rows" in err) == (1, True)


def test_columns_have_the_names_that_they_have(tmp_path: Path, worker: FakeWorker) -> None:
    named, usual = ("Body", "Team"), ("input", "output")
    found = []
    for names, given in ((named, ("--input-column", "Body", "--output-column", "Team")), (usual, ())):
        support, inputs = tmp_path / f"{names[0]}.csv", tmp_path / f"{names[0]}.jsonl"
        rows = "".join(f"{i};{text};{label}\n" for i, (text, label) in enumerate(LABELLED))
        support.write_text(";".join(("id", *names)) + "\n" + rows)
        inputs.write_text(json.dumps({names[0]: "new", "input2": "other"}) + "\n")
        arguments = ("predict", str(inputs), "--support", str(support), "--infer-options", *given, "--json")
        code, out, err = run(tmp_path, *arguments)
        assert code == 0, err
        found.append((json.loads(out)["adapter_id"], json.loads(out)["predictions"]))
        out_file = tmp_path / f"{names[0]}-out.csv"
        label = ("label", str(support), "--adapter", found[-1][0], "--out", str(out_file), *given[:2])
        for _ in range(2):  # the second time there is nothing left to do
            assert run(tmp_path, *label)[0] == 0
        assert (
            out_file.read_text().splitlines()[0]
            == f"id;{names[0]};{names[1]};decision;answer;confidence;adapter_id"
        )
    assert found[0] == found[1]
    code, _, err = run(tmp_path, "adapt", str(tmp_path / "Body.csv"), "--input-column", "body")
    found = "Body.csv has no column `body`: its columns are 'id', 'Body', 'Team' (separated by a semicolon)"
    assert (code, err) == (1, f"error: {found}. Name the right one by --input-column\n")
    code, _, err = run(tmp_path, "adapt", str(tmp_path / "Body.csv"), "--input-column", "Body")
    assert (code, err.endswith("Name the right one by --output-column\n")) == (1, True)
