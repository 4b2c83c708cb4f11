"""`abmll store verify` finds what is not intact, and says so by its status."""

import json
from pathlib import Path

from typer.testing import CliRunner

from model_store.adapters.store import AdapterStore
from service.cli.main import app
from tests.model_store.processes import adapter


def verify(root: Path, *arguments: str) -> tuple[int, str]:
    run = CliRunner().invoke(app, ["store", "verify", "--data-dir", str(root), *arguments])
    return run.exit_code, run.output


def test_a_damaged_adapter_is_named_and_moved_aside(tmp_path: Path) -> None:
    with AdapterStore(tmp_path / "adapters") as store:
        for number in (1, 2):
            store.put(adapter(number))
    assert verify(tmp_path)[0] == 0
    (tmp_path / "adapters" / adapter(1).manifest.id / "posterior.safetensors").write_bytes(b"no tensors")
    code, output = verify(tmp_path, "--json")
    assert code == 1
    (finding,) = json.loads(output)["findings"]
    assert (finding["id"], finding["moved"]) == (adapter(1).manifest.id, True)
    assert verify(tmp_path)[0] == 0


def test_a_store_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    with AdapterStore(tmp_path / "adapters"):
        code, output = verify(tmp_path)
    assert code == 1
    assert "another process uses" in output
