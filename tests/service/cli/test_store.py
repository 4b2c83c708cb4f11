"""`abmll store verify` finds what is not intact, and says so by its status."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model_store.adapters.gate_journals import GateJournals
from model_store.adapters.store import AdapterStore
from service.cli.main import app
from service.gating.state import Conditions, Outcome, begin_record
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
    assert (finding["kind"], finding["id"], finding["moved"]) == ("adapter", adapter(1).manifest.id, True)
    assert verify(tmp_path)[0] == 0


def begun(id: str) -> dict[str, Any]:
    outcome = Outcome(key="k", confidence=0.9, correct=True, score=0.1)
    return begin_record(id, Conditions("predictive", 4, 0, None), [outcome], held=False, version=1)


@pytest.mark.parametrize(
    ("how", "reason", "moved"),
    [
        ({}, "has the calibration of another adapter", True),
        ({"items": [{"key": "k"}]}, "cannot be read: TypeError", True),
        ({"conditions": None}, "cannot be read: TypeError", True),
        ({"format_version": 99}, "calibration format 99 is not the one read here", False),
    ],
)
def test_a_calibration_that_means_nothing_is_named_and_harms_no_other(
    tmp_path: Path, how: dict[str, Any], reason: str, moved: bool
) -> None:
    good, bad = adapter(1).manifest.id, adapter(2).manifest.id
    with AdapterStore(tmp_path / "adapters") as store:
        store.put(adapter(1))
        store.put(adapter(2))
    journals = GateJournals(tmp_path / "calibrations")
    journals.begin(good, [begun(good)])
    journals.begin(bad, [{**begun(bad if how else good), **how}])
    code, output = verify(tmp_path, "--json")
    answer = json.loads(output)
    assert (code, answer["intact"]) == (1, {"adapter": 2, "name": 0, "calibration": 1})
    (finding,) = answer["findings"]
    assert (finding["kind"], finding["id"], finding["moved"]) == ("calibration", bad, moved)
    assert reason in finding["reason"]
    assert (tmp_path / "calibrations" / bad).exists() is not moved
    assert GateJournals(tmp_path / "calibrations").read(good) == [begun(good)]
    assert "intact: 2 adapters, 0 names, 1 calibrations" in " ".join(verify(tmp_path)[1].split())


def test_a_store_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    with AdapterStore(tmp_path / "adapters"):
        code, output = verify(tmp_path)
    assert code == 1
    assert "another process uses" in output


def run(*arguments: object) -> tuple[int, Any]:
    result = CliRunner().invoke(app, ["store", *map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout) if result.exit_code in {0, 1} else result.output


def test_a_backup_of_a_folder_goes_into_a_shared_store_and_nothing_is_overwritten(
    tmp_path: Path, store_url: str
) -> None:
    id, file = adapter(1).manifest.id, tmp_path / "backup.tar"
    with AdapterStore(tmp_path / "adapters") as store:
        store.put(adapter(1))
    GateJournals(tmp_path / "calibrations").begin(id, [begun(id)])
    assert run("export", file, "--data-dir", tmp_path) == (
        0,
        {"exported": {"adapter": 1, "name": 0, "calibration": 1}},
    )
    # The lock of the data folder, which a server may hold, is not that of a shared store.
    with AdapterStore(tmp_path / "adapters"):
        code, answer = run("import", file, "--store-url", store_url, "--data-dir", tmp_path)
        assert (code, [row["outcome"] for row in answer["entries"]]) == (0, ["added", "added"])
        code, answer = run("verify", "--store-url", store_url)
        assert (code, answer["intact"]) == (0, {"adapter": 1, "name": 0, "calibration": 1})
    GateJournals(tmp_path / "calibrations").begin(id, [{**begun(id), "version": 2}])
    file.unlink()
    run("export", file, "--data-dir", tmp_path)
    code, answer = run("import", file, "--store-url", store_url)
    assert code == 1
    assert [row["outcome"] for row in answer["entries"]] == ["already", "conflict"]
    wrong = CliRunner().invoke(app, ["store", "export", str(file), "--data-dir", str(tmp_path)])
    assert wrong.exit_code == 1
    assert "name another file" in wrong.output


def test_a_calibration_that_means_nothing_is_not_imported(tmp_path: Path) -> None:
    id, file = adapter(1).manifest.id, tmp_path / "backup.tar"
    GateJournals(tmp_path / "calibrations").begin(id, [{"no": "calibration"}])
    assert run("export", file, "--data-dir", tmp_path)[0] == 0
    result = CliRunner().invoke(app, ["store", "import", str(file), "--data-dir", str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "is damaged" in result.output


def test_gc_says_what_would_go_before_it_goes(tmp_path: Path) -> None:
    id = adapter(1).manifest.id
    with AdapterStore(tmp_path / "adapters") as store:
        store.put(adapter(1))
    journals = GateJournals(tmp_path / "calibrations")
    journals.begin(id, [begun(id)])
    journals.begin(adapter(2).manifest.id, [begun(adapter(2).manifest.id)])
    (tmp_path / "names/.damaged/old").mkdir(parents=True)
    (tmp_path / "names/.damaged/old/journal.jsonl").write_text("x")
    assert run("gc", "--data-dir", tmp_path)[1]["garbage"] == [], "all is younger than a week"
    code, answer = run("gc", "--data-dir", tmp_path, "--min-age-days", 0, "--dry-run")
    assert (code, answer["removed"]) == (0, False)
    assert [row["what"] for row in answer["garbage"]] == ["damaged entry", "calibration without adapter"]
    assert run("gc", "--data-dir", tmp_path, "--min-age-days", 0)[1]["removed"] is True
    assert run("gc", "--data-dir", tmp_path, "--min-age-days", 0)[1]["garbage"] == []
    assert GateJournals(tmp_path / "calibrations").keys() == [id]
    assert not (tmp_path / "names/.damaged/old").exists()


def test_an_address_that_is_none_is_refused_before_anything() -> None:
    result = CliRunner().invoke(app, ["store", "verify", "--store-url", "s3://key:secret@bucket"])
    assert result.exit_code == 2
    assert "secret" not in result.output.replace("SECRET", "")
