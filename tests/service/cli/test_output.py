"""Texts reach a terminal as they are: no control character, no markup and no emoji code is obeyed."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from model_store.terminal import shown
from service.cli import output, tables
from service.cli.main import app
from tests.architecture import PACKAGES, ROOT
from tests.service.fakes import FakeWorker

WILD = "\x1b[2J\x9b31m\x07 :bug: [red]x[/] [/] \x08\r\x00\x7f \u202eabc\u2028\ud83d \\"
SAFE = r"\u001b[2J\u009b31m\u0007 :bug: [red]x[/] [/] \u0008\u000d\u0000\u007f \u202eabc\u2028\ud83d " + "\\"


def rendered(renderable: object) -> str:
    """What `out` would send to a colour terminal, without the styles that rich itself adds."""
    console = Console(
        file=io.StringIO(), width=400, force_terminal=True, color_system=None, emoji=output.out._emoji
    )
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_text_is_shown_as_it_is() -> None:
    assert rendered(shown(WILD)).rstrip("\n") == SAFE


@pytest.mark.parametrize(
    "text", ["café, naïve", "שלום", "مرحبا", "👩‍👩‍👧 🙂", "a\u200db", "日本語", "[bold]", ":smile:", "C:\\"]
)
def test_ordinary_texts_of_all_scripts_stay(text: str) -> None:
    assert rendered(shown(text)).rstrip("\n") == text


def test_every_text_of_a_table_is_shown_as_it_is() -> None:
    row = {
        "index": 0, "answer": WILD, "confidence": 0.5, "margin": 0.1, "decision": "answer",
        "distribution": [{"option": WILD, "std": 0.1}], "uncertainty": {"mutual_information": 0.0},
    }  # fmt: skip
    timings = {"adapt_seconds": 1.0, "predict_seconds": 1.0}
    answer = {"adapter_id": WILD, "cache": "hit", "timings": timings, "predictions": [row]}
    adapter = {
        "id": WILD,
        "base": {"id": WILD, "quantisation": "int8"},
        "posterior": WILD,
        "support": {"n": 1, "tokens": 1, "per_label": {WILD: 1}},
        "diagnostics": {"losses": [1.0]},
        "warnings": [WILD],
    }
    catalogue = {"posteriors": [WILD], "bases": [{"name": WILD, "quantisation": "int8", "default": True}]}
    given = {"learned": False, "answer": WILD, "expected_level": 1.0, "confidence": 0.5, "standard_error": 0.0,
             "answerable": None, "decision": "abstain"}  # fmt: skip
    decided = {**answer, "results": [{"index": 0, "answers": {WILD: given}}]}
    assert rendered(tables.decision_tables(decided, [WILD])).count(SAFE) == 4
    found = rendered(tables.prediction_table(answer, [WILD]))
    assert found.count(SAFE) == 3
    assert rendered(tables.adapter_table(adapter)).count(SAFE) == 5
    assert rendered(tables.models_table(catalogue)).count(SAFE) == 2
    for table in (
        tables.prediction_table(answer, [WILD]),
        tables.adapter_table(adapter),
        tables.models_table(catalogue),
        tables.decision_tables(decided, [WILD]),
    ):
        assert all(char.isprintable() or char == "\n" for char in rendered(table))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_sends_no_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: FakeWorker())
    options = ["ok \x1b]0;owned\x07", "no\x9b2J :bug:"]
    support, inputs = tmp_path / "s.jsonl", tmp_path / "i.jsonl"
    rows = [{"input": option * 2, "output": option, "options": options} for option in options]
    support.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs.write_text('{"input": "\\u001b[2J :bug: caf\\u00e9"}\n')
    flags = ["--json"] if as_json else []
    arguments = ["predict", str(inputs), "--support", str(support), "--data-dir", str(tmp_path / "data")]
    run = CliRunner().invoke(app, [*arguments, *flags], terminal_width=200, env={"COLUMNS": "200"})
    assert run.exit_code == 0, run.output
    assert all(char.isprintable() or char == "\n" for char in run.output)
    if as_json:
        assert json.loads(run.output)["predictions"][0]["answer"] in options
    else:
        assert ":bug:" in run.output


def test_an_error_is_one_line_of_text(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2J :bug: [red]\udcff.xls"
    path.write_text("")
    run = CliRunner().invoke(app, ["adapt", str(path), "--data-dir", str(tmp_path / "data")])
    assert run.exit_code == 1
    assert run.output.startswith(r"error: \u001b[2J :bug: [red]\udcff.xls: expected .jsonl")
    assert run.output.count("\n") == 1


def test_every_command_shows_texts_by_the_same_function() -> None:
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    escaping = [path for path in files if "rich.markup" in path.read_text("utf-8")]
    assert escaping == [ROOT / "model_store" / "terminal.py"]


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("encoding", ["ascii", "cp437", "iso-8859-1", "utf-8"])
def test_what_the_encoding_of_the_output_lacks_is_escaped(encoding: str, as_json: bool) -> None:
    program = (
        "from model_store.terminal import shown\n"
        "from service.cli.output import escape_what_cannot_be_encoded, show\n"
        "escape_what_cannot_be_encoded()\n"
        f"show({{'a': 'caf\\u00e9 \\U0001f600'}}, shown('caf\\u00e9 \\U0001f600'), {as_json})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    text = ran.stdout.decode(encoding).strip()
    kept = "caf\u00e9" if encoding != "ascii" else "caf\\u00e9"
    face = "\U0001f600" if encoding == "utf-8" else "\\ud83d\\ude00"
    assert text == (f'{{"a": "{kept} {face}"}}' if as_json else f"{kept} {face}")
