"""Only the extra `lab` has the libraries of the laboratory; only the laboratory imports them."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from lab.commands.failures import LIBRARIES

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[]", requirement)[0] for requirement in requirements}


def imported(folder: Path) -> set[str]:
    """Return the top-level packages that the modules in `folder` import, anywhere in a module."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


def test_the_extra_brings_the_libraries_and_a_plain_installation_does_not() -> None:
    extra = names(PROJECT["optional-dependencies"]["lab"])
    assert {name.replace("scikit-learn", "sklearn") for name in extra} == set(LIBRARIES)
    assert not extra & names(PROJECT["dependencies"])


@pytest.mark.parametrize("package", ["abmll", "model_store", "service"])
def test_what_is_served_needs_none_of_them(package: str) -> None:
    assert not imported(ROOT / package) & {*LIBRARIES, "lab"}
    assert imported(ROOT / "lab") >= set(LIBRARIES)
