"""Imports run one way, between and inside packages, and no files import in a circle."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.architecture import (
    PACKAGES,
    ROOT,
    Import,
    When,
    circles,
    import_statements,
    measure,
    read_imports,
    source_files,
)

FILES = source_files()
IMPORTS = read_imports(FILES)

# A place may import itself and the places in the rows above its own. Places in one row do not
# import each other.
METHOD = (
    ("abmll.errors", "abmll.seeds"),
    ("abmll.text",),
    ("abmll.decoder", "abmll.similarity"),
    ("abmll.posterior",),
    ("abmll.adaptation",),
    ("abmll.prediction",),
    ("abmll.assurance",),
    ("abmll.model", "abmll.memory_plan", "abmll.work"),
    ("abmll.cross_fitting", "abmll.meta", "abmll.speed"),
)
SERVICE = (
    ("service.gateway_metrics",),
    ("service.errors", "service.settings", "service.metrics", "service.request_notes"),
    ("service.logs", "service.tracing"),
    ("service.schemas", "service.executors", "service.playground", "service.address_file"),
    ("service.gating", "service.principals"),
    ("service.engine", "service.bulk"),
    ("service.api",),
    ("service.server", "service.embedded"),
    ("service.cli",),
)
# Which of our packages each package may import. One file of `service`, the embedded server, may
# import the client as well.
MAY_IMPORT = {
    "abmll": set(),
    "model_store": {"abmll"},
    "lab": {"abmll", "model_store"},
    "service": {"abmll", "model_store"},
    "abmll_client": set(),
}
EMBEDDED = "service.embedded"
# The engine decides. Surfaces put its decisions into the fields of the wire.
NOT_OF_THE_WIRE = ("service.executors", "service.gating", "service.engine", "service.bulk")
NATIVE = "service.api.native"


def place(name: str, rows: Sequence[Sequence[str]]) -> str | None:
    """Return the place of `rows` that the file lies in."""
    return next((p for row in rows for p in row if name == p or name.startswith(f"{p}.")), None)


def upward(source: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the imports by the place `source` of places that it may not import."""
    above = {source}
    for row in rows:
        if source in row:
            break
        above |= set(row)
    return [
        f"{edge}"
        for edge in IMPORTS
        if place(edge.source, rows) == source and place(edge.target, rows) not in {*above, None}
    ]


def of(name: str, folder: str) -> bool:
    """Return whether the file `name` is `folder` or lies in it."""
    return name == folder or name.startswith(f"{folder}.")


# ---- circles -------------------------------------------------------------------------------------


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(edge for edge in IMPORTS if edge.when is When.AT_IMPORT) == []


def test_nor_in_one_that_is_hidden_in_a_function_or_from_the_interpreter() -> None:
    assert circles(IMPORTS) == []


# ---- between the packages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "package",
    [
        "abmll",
        "model_store",
        "lab",
        "service",
        "abmll_client",
    ],
)
def test_packages_import_one_way(package: str) -> None:
    allowed = {package, *MAY_IMPORT[package]}
    found = [
        f"{edge}"
        for edge in IMPORTS
        if of(edge.source, package)
        and edge.target.partition(".")[0] not in allowed
        and not (edge.source == EMBEDDED and of(edge.target, "abmll_client"))
    ]
    assert found == []


def third_party(package: str) -> Iterator[tuple[str, str]]:
    """Yield each file of `package` with each foreign package that it imports when it is imported.

    Foreign packages are neither ours nor Python's.
    """
    for name, path in FILES.items():
        if of(name, package):
            for statement, when in import_statements(ast.parse(path.read_text("utf-8"))):
                modules = (
                    [statement.module or ""]
                    if isinstance(statement, ast.ImportFrom)
                    else [alias.name for alias in statement.names]
                )
                for module in {module.partition(".")[0] for module in modules}:
                    if when is When.AT_IMPORT and module not in {*sys.stdlib_module_names, *PACKAGES, ""}:
                        yield name, module


# Distributions that come with a declared one, and that its users may import.
BROUGHT_BY = {
    "h11": "uvicorn",
    "starlette": "fastapi",
    "pydantic-core": "pydantic",
    "typing-extensions": "pydantic",
    "numpy": "scikit-learn",
}


@pytest.mark.parametrize(
    ("package", "project", "extras"),
    [
        ("abmll", ".", []),
        ("model_store", ".", []),
        ("service", ".", []),
        ("lab", ".", ["lab"]),
        ("abmll_client", "client", []),
    ],
)  # fmt: skip
def test_a_package_imports_what_its_distribution_declares(
    package: str, project: str, extras: Sequence[str]
) -> None:
    """`pip install .` brings all that serving imports; a file named like an extra may need it."""
    table = tomllib.loads((ROOT / project / "pyproject.toml").read_text())["project"]
    optional = table["optional-dependencies"]
    known = packages_distributions()
    undeclared = []
    for name, module in third_party(package):
        own = [extra for extra in optional if extra == name.rpartition(".")[2]]
        needed = table["dependencies"] + [line for extra in (*extras, *own) for line in optional[extra]]
        declared = {_distribution(requirement) for requirement in needed}
        found = {_distribution(distribution) for distribution in known.get(module, [module])}
        declared |= {brought for brought, by in BROUGHT_BY.items() if by in declared}
        if not declared & found:
            undeclared.append(f"{name} imports {module}")
    assert undeclared == []


def _distribution(requirement: str) -> str:
    name = requirement
    for end in "[<>=!~; ":
        name = name.partition(end)[0]
    return name.lower().replace("_", "-")


# ---- inside abmll --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    [
        "abmll.errors",
        "abmll.seeds",
        "abmll.text",
        "abmll.decoder",
        "abmll.similarity",
        "abmll.posterior",
        "abmll.adaptation",
        "abmll.prediction",
        "abmll.assurance",
        "abmll.model",
        "abmll.memory_plan",
        "abmll.work",
        "abmll.cross_fitting",
        "abmll.meta",
        "abmll.speed",
    ],
)  # fmt: skip
def test_the_method_imports_one_way(folder: str) -> None:
    assert upward(folder, METHOD) == []


# ---- inside service ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    [
        "service.gateway_metrics",
        "service.errors",
        "service.settings",
        "service.metrics",
        "service.schemas",
        "service.executors",
        "service.playground",
        "service.address_file",
        "service.gating",
        "service.engine",
        "service.bulk",
        "service.api",
        "service.server",
        "service.embedded",
        "service.cli",
    ],
)  # fmt: skip
def test_the_service_imports_one_way(folder: str) -> None:
    assert upward(folder, SERVICE) == []


@pytest.mark.parametrize("folder", NOT_OF_THE_WIRE)
def test_only_surfaces_know_the_wire(folder: str) -> None:
    assert [
        f"{edge}" for edge in IMPORTS if of(edge.source, folder) and of(edge.target, "service.schemas")
    ] == []


def surface(name: str) -> str | None:
    """Return the surface, a folder of `service.api`, of the file; None for what surfaces share."""
    parts = name.split(".")
    folder = ".".join(parts[:3])
    return folder if of(name, "service.api") and f"{folder}.routes" in FILES else None


def test_surfaces_import_no_other_surface_but_the_native_one() -> None:
    found = [
        f"{edge}"
        for edge in IMPORTS
        if surface(edge.source) and surface(edge.target) not in {None, NATIVE, surface(edge.source)}
    ]
    assert found == []
    assert len({surface(name) for name in FILES} - {None}) >= 4


# ---- the map -------------------------------------------------------------------------------------

MAP = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def first_cells(heading: str) -> list[str]:
    """Return the first cells, without quotes, of the tables below a heading of CONTRIBUTING.md."""
    section = MAP.split(f"## {heading}")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_the_map_has_one_line_for_each_room() -> None:
    named = [name for name in first_cells("The map") if "/" in name or name in PACKAGES]
    assert sorted(named) == sorted({str(path.parent.relative_to(ROOT)) for path in FILES.values()})


def test_what_the_map_answers_is_there() -> None:
    answers = re.findall(r"\| `([^`]+\.py)` \|$", MAP.split("## Where would I change")[1], re.MULTILINE)
    assert len(answers) >= 20
    assert [place for place in answers if not (ROOT / place).is_file()] == []


# ---- the rules themselves ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "rows"),
    [("abmll", METHOD), ("service", SERVICE)],
)
def test_every_file_has_a_place_in_the_rows(package: str, rows: Sequence[Sequence[str]]) -> None:
    assert [name for name in FILES if of(name, package) and name != package and not place(name, rows)] == []
    assert [p for row in rows for p in row if not any(of(name, p) for name in FILES)] == []


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    texts = {
        "abmll/__init__.py": "",
        "abmll/a.py": "from abmll import b\nimport abmll.deep.c as c, os\nclass K:\n  from abmll.missing import x\n",
        "abmll/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from abmll.a import x\nelse:\n  import abmll.deep",
        "abmll/deep/__init__.py": "def f():\n  try:\n    from ..b import y\n  finally:\n    pass\n",
        "abmll/deep/c.py": "from . import f\nfrom .. import b as d\nasync def g():\n  import lab\n",
        "lab/__init__.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    files = source_files(tmp_path)
    found = read_imports(files)
    assert found == [
        Import("abmll.a", "abmll.b"),
        Import("abmll.a", "abmll.deep.c"),
        Import("abmll.b", "abmll.a", When.NEVER),
        Import("abmll.b", "abmll.deep"),
        Import("abmll.deep", "abmll.b", When.ON_CALL),
        Import("abmll.deep.c", "abmll.b"),
        Import("abmll.deep.c", "abmll.deep"),
        Import("abmll.deep.c", "lab", When.ON_CALL),
    ]
    assert circles(found) == [["abmll.a", "abmll.b", "abmll.deep", "abmll.deep.c"]]
    assert circles(edge for edge in found if edge.when is When.AT_IMPORT) == []
    size = measure(tmp_path)
    assert (size.lines, size.files, size.rooms, size.imports, size.arrows) == (18, 6, 3, 8, 3)
    assert size.needed_files == pytest.approx((4 * 4 + 4) / 6)
