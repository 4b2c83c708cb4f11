"""`abmll readapt`, with an engine of its own and by a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.service.conftest import Server
from tests.service.engine.test_readapting import BOTH, CREATE, made_before, server_of
from tests.service.engine.two_posteriors import make_place


def invoke(*command: str, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["readapt", *command])
    assert result.exit_code == status, result.output + result.stderr
    return result


def answer_of(*command: str, status: int = 0) -> dict[str, Any]:
    return dict(json.loads(invoke(*command, "--json", status=status).stdout))


@pytest.mark.parametrize("given", [[], ["--all", "--adapter", "adp_0"], ["--name", "x", "--all"]])
def test_it_wants_one_thing_to_make_again(given: list[str]) -> None:
    assert "by one of --adapter, --name and --all" in " ".join(invoke(*given, status=2).stderr.split())


def test_a_server_makes_one_or_all_again_and_says_which_it_refuses(tmp_path: Path) -> None:
    one, other, third = made_before(tmp_path, *({**CREATE, "seed": seed} for seed in range(3)))
    (bare,) = made_before(tmp_path, {**CREATE, "seed": 9}, store_support="digest")
    server: Server = server_of(tmp_path, BOTH)
    with server.listening() as listening:
        at = ("--url", listening.url)

        assert httpx.put(f"{listening.url}/v1/names/tickets", json={"adapter_id": one}).is_success
        looked = answer_of("--name", "tickets", "--dry-run", *at)
        (row,) = looked["readapted"]
        assert (looked["dry_run"], row["adapter_id"], row["names"]) == (True, one, ["tickets"])
        assert (row["made_already"], server.worker.adapted) == (False, [])
        (kept,) = answer_of("--adapter", one, "--keep-names", *at)["readapted"]
        assert (kept["new_adapter_id"], kept["names"]) == (row["new_adapter_id"], [])
        result = invoke("--all", "--json", *at, status=1)
        done = json.loads(result.stdout)
        assert {row["adapter_id"]: (row["names"], row["cache"]) for row in done["readapted"]} == {
            one: (["tickets"], "hit"),
            other: ([], "miss"),
            third: ([], "miss"),
        }
        assert (done["unchanged"], done["refused"]) == (1, 1)
        assert f"refused: {bare}: the server refused: adapter {bare} was stored without" in result.stderr
        again = answer_of("--all", *at, status=1)
        assert [row["cache"] for row in again["readapted"]] == ["hit"] * 3
        assert "made again" in invoke("--name", "tickets", *at).stdout
        refused = invoke("--name", "nobody", *at, status=1)
        assert "there is no name 'nobody'" in refused.stderr


def test_this_process_makes_them_with_the_posterior_of_its_settings(tmp_path: Path) -> None:
    place, rows = make_place(tmp_path), tmp_path / "rows.jsonl"
    texts = ("great film", "dull story", "the actors were great", "money back")
    labels = ("good", "bad")
    rows.write_text(
        "".join(json.dumps({"input": t, "output": labels[n % 2]}) + "\n" for n, t in enumerate(texts))
    )
    common = [
        "--model", str(place.base), "--quantisation", "none", "--cache-dir", str(tmp_path / "cache"),
        "--data-dir", str(tmp_path / "data"),
    ]  # fmt: skip

    def adapt(posterior: Path) -> str:
        given = ["adapt", str(rows), *common, "--posterior", str(posterior), "--json"]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.output
        return str(json.loads(result.stdout)["id"])

    old = adapt(place.old)
    served = [*common, "--posterior", str(place.new), "--also-posteriors", str(place.old)]
    looked = invoke("--all", "--dry-run", *served).stdout
    assert "nothing was made" in looked
    (row,) = answer_of("--all", *served)["readapted"]
    assert (row["adapter_id"], row["cache"]) == (old, "miss")
    assert row["new_adapter_id"] == adapt(place.new)
