"""`abmll names` works on the data folder, as a server does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model_store.adapters.names import NameStore
from model_store.adapters.store import AdapterStore
from service.cli.main import app
from tests.model_store.processes import adapter


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with AdapterStore(tmp_path / "adapters") as store:
        for number in (1, 2):
            store.put(adapter(number))
    return tmp_path


def names(root: Path, *arguments: str) -> tuple[int, str]:
    run = CliRunner().invoke(app, ["names", *arguments, "--data-dir", str(root)])
    return run.exit_code, run.output


def test_names_are_put_rolled_back_listed_and_deleted(root: Path) -> None:
    first, second = (adapter(number).manifest.id for number in (1, 2))
    assert names(root, "put", "tickets", first, "--note", "the first")[0] == 0
    code, output = names(root, "put", "tickets", second, "--if-version", "1", "--json")
    assert (code, json.loads(output)["current"]["model"]) == (0, "tickets@2")
    code, output = names(root, "rollback", "tickets", "1", "--json")
    current = json.loads(output)["current"]
    assert (code, current["version"], current["adapter_id"], current["rollback_of"]) == (0, 3, first, 1)
    code, output = names(root, "list", "--json")
    assert [(row["name"], row["current"]["version"]) for row in json.loads(output)["names"]] == [
        ("tickets", 3)
    ]
    history = NameStore(root / "names").get("tickets")
    assert history is not None
    assert [version.adapter_id for version in history.versions] == [first, second, first]
    assert "tickets" in names(root, "list")[1]
    assert names(root, "delete", "tickets") == (0, "")
    assert json.loads(names(root, "list", "--json")[1]) == {"names": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("put", "tickets", "adp_00000000"), "there is no adapter 'adp_00000000'"),
        (("put", "Tickets", adapter(1).manifest.id), "'Tickets' is no name"),
        (("put", "tickets", adapter(1).manifest.id, "--if-version", "3"), "does not exist, not at 3"),
        (("rollback", "tickets", "1"), "there is no name 'tickets'"),
        (("delete", "tickets"), "there is no name 'tickets'"),
    ],
)
def test_what_is_refused_is_one_line(root: Path, arguments: tuple[str, ...], message: str) -> None:
    code, output = names(root, *arguments)
    assert (code, message in output, output.count("\n")) == (1, True, 1)
    assert list((root / "names").iterdir()) == []


def test_a_damaged_name_is_found_by_verify(root: Path) -> None:
    id = adapter(1).manifest.id
    names(root, "put", "tickets", id)
    names(root, "put", "other", id)
    (root / "names" / "tickets" / "journal.jsonl").write_bytes(b"nothing\n")
    run = CliRunner().invoke(app, ["store", "verify", "--json", "--data-dir", str(root)])
    answer = json.loads(run.output)
    assert (run.exit_code, answer["intact"]["name"]) == (1, 1)
    (finding,) = answer["findings"]
    assert (finding["kind"], finding["id"], finding["moved"]) == ("name", "tickets", True)
    assert CliRunner().invoke(app, ["store", "verify", "--data-dir", str(root)]).exit_code == 0


def test_a_folder_in_use_is_left_alone(root: Path) -> None:
    with AdapterStore(root / "adapters"):
        code, output = names(root, "put", "tickets", adapter(1).manifest.id)
    assert code == 1
    assert "another process uses" in output
