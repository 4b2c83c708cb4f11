"""Paths of this repository that prose names are there."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "abmll",
    "model_store",
    "lab",
    "service",
    "client",
    "tests",
    "benchmarks",
    "configs",
    "docs",
    "docker",
)
PATH = re.compile(
    rf"(?<![\w./-])(?:\.\./)*((?:{'|'.join(FOLDERS)})/[\w./-]*\.(?:py|md|yaml|sh|json|gz|png))\b"
)
# Results name the files of the commit that made them.
PROSE = [
    path
    for pattern in ("*.md", *(f"{folder}/**/*.{end}" for folder in FOLDERS for end in ("py", "md", "yaml")))
    for path in sorted(ROOT.glob(pattern))
    if not path.is_relative_to(ROOT / "benchmarks/results") and path.parent != ROOT / "tests"
]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_prose_are_there(path: Path) -> None:
    named = {found.group(1) for found in PATH.finditer(path.read_text("utf-8"))}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


RESULTS = [
    path
    for path in sorted((ROOT / "benchmarks/results").rglob("*"))
    if path.suffix in (".md", ".json", ".jsonl", ".gz")
]
OF_A_MACHINE = re.compile(r"(?<![\w.~-])/(?:work|tmp|home|root|mnt)/[\w./-]*")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_results_name_no_folder_of_the_machine_that_made_them(path: Path) -> None:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    assert sorted(set(OF_A_MACHINE.findall(text))) == []
