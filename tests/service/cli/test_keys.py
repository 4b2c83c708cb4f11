"""`abmll keys` makes, lists and revokes keys; `abmll serve` wants some before others can reach it."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.errors import UnauthenticatedError
from service.principals.keyring import KeyRing
from service.principals.records import Limits, Scope


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets/keys.json"


def keys(path: Path, *arguments: str) -> tuple[int, str, str]:
    run = CliRunner().invoke(app, ["keys", *arguments, "--keys-file", str(path)])
    return run.exit_code, run.stdout, run.stderr


def test_a_key_is_printed_once_alone_and_works(path: Path) -> None:
    status, printed, said = keys(path, "add", "acme", "--scope", "predict", "--note", "the shop")
    assert (status, printed.count("\n")) == (0, 1)
    text = printed.strip()
    assert KeyRing(path).authenticate(text).scopes == {Scope.PREDICT}
    assert text not in said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    status, listed, _ = keys(path, "list", "--json")
    (row,) = json.loads(listed)["keys"]
    assert (row["id"], row["tenant"], row["note"]) == (text[6:14], "acme", "the shop")
    assert "digest" not in row
    assert text[15:] not in listed + path.read_text()
    assert "acme" in keys(path, "list")[1]


def test_a_key_that_is_revoked_is_listed_and_refused(path: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    text = keys(path, "add", "acme", "--audit-log", str(audit))[1].strip()
    assert keys(path, "revoke", text[6:14], "--audit-log", str(audit))[0] == 0
    with pytest.raises(UnauthenticatedError):
        KeyRing(path).authenticate(text)
    assert json.loads(keys(path, "list", "--json")[1])["keys"][0]["revoked"]
    status, _, said = keys(path, "revoke", text[6:14])
    assert (status, "could be revoked" in said) == (1, True)
    rows = list(map(json.loads, audit.read_text().splitlines()))
    assert [(row["action"], row["detail"], row["id"]) for row in rows] == [
        ("key", "add", text[6:14]), ("key", "revoke", text[6:14]),
    ]  # fmt: skip


def test_limits_of_a_tenant_are_set_and_lifted(path: Path) -> None:
    text = keys(path, "add", "acme")[1].strip()
    assert keys(path, "limit", "acme", "--adapters", "5", "--requests-per-minute", "60")[0] == 0
    assert KeyRing(path).authenticate(text).limits == Limits(adapters=5, requests_per_minute=60)
    assert "adapters 5" in keys(path, "list")[1]
    assert keys(path, "limit", "acme")[0] == 0
    assert KeyRing(path).authenticate(text).limits == Limits()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "Acme"], "'Acme' cannot be a tenant"),
        (["add", "acme", "--scope", "all"], "'all' is no scope: choose from predict, adapt, admin"),
        (["add", "acme", "--expires-days", "0"], "would have expired already"),
        (["add", "acme", "--note", "n" * 501], "note: String should have at most 500 characters"),
        (["limit", "../x", "--adapters", "1"], "'../x' cannot be a tenant"),
        (["list"], "there is no keys file"),
    ],
)
def test_what_cannot_be_is_told(path: Path, arguments: list[str], message: str) -> None:
    status, printed, errors = keys(path, *arguments)
    assert (status != 0, printed) == (True, "")
    assert message in re.sub(r"[\s│]+", " ", errors)
    assert not path.exists()


def test_the_file_has_to_be_named() -> None:
    run = CliRunner().invoke(app, ["keys", "list"])
    assert (run.exit_code, "--keys-file or ABMLL_KEYS_FILE" in run.stderr) == (1, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a_server_without_keys_stays_on_its_machine(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr("service.executors.build.build_executor", None)
    run = CliRunner().invoke(app, ["serve", "--host", host, "--port", "0"])
    assert run.exit_code == 1
    for way in ("abmll keys add", "--keys-file", "--insecure", "ABMLL_INSECURE=true", host):
        assert way in run.stderr


@pytest.mark.parametrize("arguments", [["--insecure"], ["--keys-file"]])
def test_with_keys_or_the_word_it_listens_for_others(
    monkeypatch: pytest.MonkeyPatch, path: Path, arguments: list[str]
) -> None:
    keys(path, "add", "acme")
    listened = []

    def executor(*_: object, **__: object) -> object:
        listened.append(True)
        raise SystemExit(9)

    monkeypatch.setattr("service.executors.build.build_executor", executor)
    given = [*arguments, *([str(path)] if "--keys-file" in arguments else [])]
    run = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--port", "0", *given])
    assert (run.exit_code, listened) == (9, [True])


def test_a_keys_file_that_is_not_there_is_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setattr("service.executors.build.build_executor", None)
    run = CliRunner().invoke(app, ["serve", "--port", "0", "--keys-file", str(path)])
    assert (run.exit_code, "there is no keys file" in run.stderr) == (1, True)
