"""Imports inside `abmll` run one way, and no two of its files import each other, directly or by others."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "abmll").rglob("*.py"))
# What each part may import, beside itself, `errors` and `seeds`.
BELOW = {
    "errors": set[str](),
    "seeds": set[str](),
    "text": set[str](),
    "decoder": {"text"},
    "similarity": {"text"},
    "posterior": {"text", "decoder", "similarity"},
    "adaptation": {"text", "decoder", "similarity", "posterior"},
    "prediction": {"text", "decoder", "similarity", "posterior", "adaptation"},
}
BELOW["model"] = BELOW["memory_plan"] = {*BELOW["prediction"], "prediction"}
BELOW["meta"] = {*BELOW["model"], "model"}
# Cross-fitting drives the facade.
BELOW["assurance"] = {*BELOW["model"], "model", "calibrator"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """The modules of `abmll` that a file names in its imports, wherever in the file."""
    known, found = {name_of(file) for file in FILES}, set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= inner or {node.module} & known
    return found


@pytest.mark.parametrize("part", BELOW)
def test_a_part_imports_what_lies_below_it(part: str) -> None:
    allowed = {part, "errors", "seeds", *BELOW[part]}
    files = [file for file in FILES if name_of(file).split(".")[1:2] == [part]]
    assert files
    wrong = {
        (name_of(file), module)
        for file in files
        for module in imports_of(file)
        if module.split(".")[1] not in allowed
    }
    assert wrong == set()


def test_files_do_not_import_in_circles() -> None:
    graph = {name_of(file): imports_of(file) for file in FILES}
    assert list(TopologicalSorter(graph).static_order())
