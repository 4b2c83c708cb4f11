"""Results of a benchmark: a page that says how they were made, and data, compressed if large."""

import argparse
import gzip
import json
import sys
from pathlib import Path

import pytest

from benchmarks import common


def test_results_name_the_command_and_large_data_are_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/drift.py", "--draws", "3"])
    options = argparse.Namespace(quick=False, seed=13, threads=1, repeats=1)
    for name, rows in (("small", [1]), ("large", list(range(common.LARGE)))):
        page = common.write_results(name, "Title", ["About."], ["| a |"], {"rows": rows}, options).read_text()
        assert "Command: `python -m benchmarks.drift --draws 3`. Commit " in page
        assert "Seed 13. Machine: " in page
    assert {path.name for path in tmp_path.iterdir()} == {
        "small.md",
        "small.json",
        "large.md",
        "large.json.gz",
    }
    assert json.loads((tmp_path / "small.json").read_text())["rows"] == [1]
    large = json.loads(gzip.decompress((tmp_path / "large.json.gz").read_bytes()))
    assert len(large["rows"]) == common.LARGE
    assert large["made"]["command"] == "python -m benchmarks.drift --draws 3"
