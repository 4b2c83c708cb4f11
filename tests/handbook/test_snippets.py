"""Every Python and shell block of the pages runs, page by page, on a server with the fake model.

The blocks of a page run in their order and share their names. Blocks that cannot run say why in a
comment, and blocks with a test of their own are left to it (`tests/handbook/snippets.py`).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from model_store.pretrained.catalogue import DEFAULT_BASE
from service.cli.main import app
from tests.handbook.snippets import ELSEWHERE, ROOT, Snippet, snippets
from tests.service.conftest import Server
from tests.service.fakes import FakeWorker, served_model

SUPPORT = [("too dear", "billing"), ("too late", "delivery"), ("a refund", "billing"), ("lost", "delivery")]
ADAPTER = {"support": [{"input": a, "output": b} for a, b in SUPPORT], "options": ["billing", "delivery"]}
PAGES = {
    language: sorted({s.page for s in snippets(language) if not s.unrun and not s.elsewhere})
    for language in ("python", "sh")
}


def worker() -> FakeWorker:
    """Return a fake model under the name of the default base."""
    served = served_model()
    return FakeWorker(replace(served, base=replace(served.base, id=DEFAULT_BASE)))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Server(tmp_path_factory.mktemp("data"), worker()).listening() as running:
        yield running.url


def blocks(page: str, language: str) -> list[Snippet]:
    return [s for s in snippets(language) if s.page == page and not s.unrun]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder of its own, since pages write files, with the folders of the project that they read."""
    for name in ("docs", "lab", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("page", PAGES["python"])
def test_the_python_of_a_page_runs(
    page: str, url: str, linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(linked)
    run_python(page, url)


def test_the_page_on_certificates_runs_again(url: str, linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It deletes its adapter, with the calibration, whose labels count once."""
    monkeypatch.chdir(linked)
    for _ in range(2):
        run_python("certify-a-gate.md", url)


def run_python(page: str, url: str) -> None:
    """Run the Python blocks of a page in their order."""
    names: dict[str, object] = {"url": url}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block.text.replace("http://localhost:8000", url), f"{page} {number}", "exec"), names)
    close = getattr(names.get("client"), "close", None)
    if close:
        close()


@pytest.fixture
def folder(linked: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> Path:
    """A folder with the files that the pages name, a curl that fails as the server does, and an
    adapter.

    The adapter is on the server, and in the data folder of the commands, under the same id and
    name.
    """
    tmp_path = linked
    curl = tmp_path / "bin/curl"
    curl.parent.mkdir()
    curl.write_text(f'#!/bin/sh\nexec {_curl()} --fail-with-body "$@"\n')
    curl.chmod(0o755)
    inbox = ROOT / "docs/examples/inbox"
    for name in ("cases.jsonl", "questions.json"):
        (tmp_path / name).write_text((inbox / name).read_text("utf-8"), "utf-8")
    rows = "".join(f"{text},{label}\n" for text, label in SUPPORT)
    (tmp_path / "support.csv").write_text(f"input,output\n{rows}")
    (tmp_path / "support.jsonl").write_text(
        "".join(
            f'{{"input": "{a}", "output": "{b}", "options": ["billing", "delivery"]}}\n' for a, b in SUPPORT
        )
    )
    for name in ("inputs.csv", "rows.csv"):
        (tmp_path / name).write_text("input\nwhere is it?\nthe sum is wrong\n")
    adapter = httpx.post(f"{url}/v1/adapters", json=ADAPTER).json()["id"]
    httpx.put(f"{url}/v1/names/tickets", json={"adapter_id": adapter}).raise_for_status()
    for name, value in {
        "ADAPTER_ID": adapter,
        "PATH": f"{curl.parent}:{os.environ['PATH']}",
        "ABMLL_DATA_DIR": str(tmp_path / "data"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: worker())
    monkeypatch.chdir(tmp_path)
    run_abmll("adapt support.jsonl")
    run_abmll(f"names put tickets {adapter}")
    return tmp_path


def _curl() -> str:
    return subprocess.run(["which", "curl"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("page", PAGES["sh"])
def test_the_shell_commands_of_a_page_run(page: str, url: str, folder: Path) -> None:
    if page == "questions.md":
        # The page names an adapter `inbox`, which the one on the inbox makes.
        run_abmll("decide cases.jsonl inputs.csv --questions questions.json")
        stored = {path.name for path in (folder / "data/adapters").glob("adp_*")}
        (made,) = stored - {os.environ["ADAPTER_ID"]}
        run_abmll(f"names put inbox {made}")
    for block in blocks(page, "sh"):
        for statement in statements(block.text):
            if statement.startswith("abmll "):
                run_abmll(statement.removeprefix("abmll ").replace("http://localhost:8000", url))
                continue
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", statement.replace("localhost:8000", url.removeprefix("http://"))],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )  # fmt: skip
            assert (done.returncode != 0) == bool(block.refused), done.stdout + done.stderr
            assert block.refused in done.stdout


def run_abmll(arguments: str) -> None:
    """Run `abmll` in this process, as a shell would start it."""
    given = shlex.split(os.path.expandvars(arguments), comments=True)
    ran = CliRunner().invoke(app, given)
    assert ran.exit_code == 0, f"{arguments}: {ran.output} {ran.exception}"


def statements(text: str) -> list[str]:
    """Return the statements of a script: lines, joined while a quote is open or a line goes on."""
    found, rest = [], ""
    for line in text.splitlines():
        rest += line + "\n"
        try:
            shlex.split(rest, comments=True)
        except ValueError:
            continue
        if not line.endswith("\\"):
            found.append(rest.strip())
            rest = ""
    assert not rest.strip()
    return [statement for statement in found if statement]


# ---- what is left out ----------------------------------------------------------------------------


def test_blocks_with_a_test_of_their_own_have_one() -> None:
    for (page, language), test in ELSEWHERE.items():
        assert any(s.page == page for s in snippets(language)), f"{page} has no {language}"
        text = (ROOT / test).read_text("utf-8")
        assert page.removesuffix(".md") in text, f"{test} does not read {page}"


def test_what_does_not_run_says_why_in_words() -> None:
    unrun = [s for language in ("python", "sh") for s in snippets(language) if s.unrun]
    assert all(len(s.unrun.split()) >= 3 for s in unrun)
    assert not [s for s in unrun if s.language == "python"]


def test_commands_stand_in_fenced_blocks() -> None:
    """Indented blocks have no language, so no test would run them."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        lines = path.read_text("utf-8").splitlines()
        assert [line for line in lines if re.match(" {4}(abmll|curl|pip) ", line)] == [], path.name


def test_statements_are_told_apart() -> None:
    script = "abmll a 'x\ny'  # don't\ncurl -d '{\n}' \\\n  b\n\n"
    assert statements(script) == ["abmll a 'x\ny'  # don't", "curl -d '{\n}' \\\n  b"]
