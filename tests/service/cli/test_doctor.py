"""`abmll doctor`, `fetch`, `open`, `--version` and completion: what a new user runs first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from model_store.adapters.store import AdapterStore
from service.address_file import write_address
from service.cli import doctor, self_test
from service.cli.main import app
from service.settings import Settings
from tests.service.conftest import Server
from tests.service.fakes import FakeWorker


def run(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, arguments, env={"COLUMNS": "250"})
    return ended.exit_code, ended.output


def found(folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code, output = run("doctor", "--json", "--data-dir", str(folder), *arguments)
    return code, {check["name"]: check for check in json.loads(output)["checks"]}


@pytest.fixture
def base(checkpoint: Path) -> list[str]:
    """Options that name a tiny base, which is there as it is."""
    return ["--model", str(checkpoint), "--posterior", "untrained", "--quantisation", "none"]


def test_each_check_is_a_line_and_what_fails_has_a_remedy(tmp_path: Path, base: list[str]) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    code, output = run("doctor", *base, "--no-model", "--data-dir", str(data), "--cache-dir", str(cache))
    assert code == 0, output
    assert all(line.startswith("ok   ") for line in output.splitlines())
    assert not data.exists()
    assert not cache.exists()
    (tmp_path / "file").write_text("")
    code, checks = found(tmp_path / "file", "--no-model", "--cache-dir", str(cache), "--threads", "1024")
    failed = {name: check["remedy"] for name, check in checks.items() if not check["ok"]}
    assert code == 1
    assert failed.keys() == {"threads", "base model", "sentence encoder", "data folder"}
    assert failed["base model"] == "abmll fetch"
    assert "--data-dir" in failed["data folder"]
    assert f"--threads {os.cpu_count()}" in failed["threads"]
    assert "self-test" not in checks
    code, checks = found(tmp_path, "--device", "cuda:99", "--cache-dir", str(cache))
    assert not checks["devices"]["ok"]
    assert "left out" in checks["self-test"]["found"]


def test_the_server_of_the_data_folder_is_asked(
    tmp_path: Path, base: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with Server(tmp_path).listening() as server:
        url = server.url
        write_address(Settings(data_dir=tmp_path), url)
        code, checks = found(tmp_path, *base, "--no-model")
        assert (code, f"{url} uses the data folder and is ready" in checks["server"]["found"]) == (
            0,
            True,
        )
        code, output = run("open", "--data-dir", str(tmp_path))
        assert (code, output.strip(), opened) == (0, f"{url}/playground", [f"{url}/playground"])
    code, checks = found(tmp_path, *base, "--no-model")
    assert (code, checks["server"]["ok"]) == (1, False)
    assert f"end process {os.getpid()}" in checks["server"]["remedy"]
    code, output = run("open", "--url", url)
    assert (code, f"no server at {url}" in output, len(opened)) == (1, True, 1)


def test_an_open_playground_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(tmp_path, playground=False).listening() as server:
        code, output = run("open", "--url", server.url)
    assert (code, "has no /playground: status 404" in output) == (1, True)


def test_the_self_test_compares_answers_with_known_ones(
    tmp_path: Path, base: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker()
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: worker)
    kept: dict[str, Any] = {}

    def remember(answered: Any, seconds: float) -> tuple[str, bool]:
        kept["answered"] = answered
        return usual(answered, seconds)

    usual = self_test.judged
    monkeypatch.setattr(self_test, "judged", remember)
    with AdapterStore(tmp_path / "adapters"):  # a server's: the self-test has a folder of its own
        code, checks = found(tmp_path, *base)
    assert (code, "its right answers are not known" in checks["self-test"]["found"]) == (0, True)
    answered = kept["answered"]
    manifest = answered.adapter.manifest
    key = (f"{manifest.base.id} ({manifest.base.quantisation})", manifest.posterior_id)
    right = [
        (row.prediction.predictive.answer, max(row.prediction.predictive.probabilities))
        for row in answered.predictions
    ]
    label, probability = right[0]
    for first, passes in (
        ((label, probability - 0.02), True),
        ((label, probability - 0.04), False),
        (("another", probability), False),
    ):
        monkeypatch.setattr(self_test, "KNOWN", {key: (first, *right[1:])})
        text, passed = usual(answered, 1.0)
        assert passed is passes, text
    code, checks = found(tmp_path, *base)
    assert (code, checks["self-test"]["ok"], bool(checks["self-test"]["remedy"])) == (1, False, True)


def test_whatever_a_check_meets_is_its_line() -> None:
    def broken(settings: Settings) -> doctor.Check:
        raise ZeroDivisionError("nothing")

    check = doctor._tried("x", broken, Settings())
    assert (check.ok, check.found) == (False, "ZeroDivisionError: nothing")


def test_what_is_missing_is_fetched_and_what_is_there_stays(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_store.pretrained import first_use

    posterior = SimpleNamespace(
        manifest=SimpleNamespace(
            base=SimpleNamespace(quantisation="int8"), config=SimpleNamespace(sentence_encoder=None)
        )
    )
    monkeypatch.setattr("service.executors.loading.choose_posterior", lambda settings: posterior)
    arguments = ["fetch", "--model", str(checkpoint), "--cache-dir", str(tmp_path), "--json"]
    code, output = run(*arguments, "--check")
    (row,) = json.loads(output)["needed"]
    assert (code, row["state"], row["folder"], row["download_bytes"]) == (1, "missing", None, 0)
    states = []
    for last in ([], ["--check"]):
        ended = CliRunner().invoke(app, [*arguments, *last])
        assert ended.exit_code == 0, ended.output
        (row,) = json.loads(ended.stdout)["needed"]
        states.append(row["state"])
        assert row["folder"].startswith(str(tmp_path))
        assert row["folder_bytes"] == sum(
            p.stat().st_size for p in Path(row["folder"]).rglob("*") if p.is_file()
        )
    assert states == ["fetched", "there"]
    weights = next(Path(row["folder"]).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run(*arguments, "--check")[0] == 1
    (one,) = first_use.needed_for(str(checkpoint), None, quantisation="int8", cache_dir=tmp_path)
    assert one.cached() is None
    assert replace(one, name="x").source == f"folder {checkpoint}"


def test_the_version_and_completion_are_there(tmp_path: Path) -> None:
    assert run("--version") == (0, f"abmll {version('abmll-serve')}\n")
    program = "from service.cli.main import app; app(prog_name='abmll')"
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    made = subprocess.run(
        [sys.executable, "-c", program, "--install-completion", "bash"],
        check=False, capture_output=True, text=True, env=environment, timeout=60,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "_ABMLL_COMPLETE" in written
    completed = subprocess.run(
        [sys.executable, "-c", program],
        check=False, capture_output=True, text=True, timeout=60,
        env={**environment, "_ABMLL_COMPLETE": "complete_bash", "COMP_WORDS": "abmll di", "COMP_CWORD": "1"},
    )  # fmt: skip
    assert completed.stdout.split() == ["diagnose"]


def test_help_shows_the_default_of_each_setting() -> None:
    code, output = run("serve", "--help")
    assert code == 0
    text = " ".join(output.replace("│", " ").split())
    for default in ("[default: (8000)]", "[default: (127.0.0.1)]", "[default: (smollm2-135m-instruct)]"):
        assert default in text
