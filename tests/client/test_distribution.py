"""The client as a distribution of its own: what it imports, and how it works without the server."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import OPTIONS, SUPPORT
from tests.service.conftest import Server

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "client"
PROJECT = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
SERVER_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVER_MODULES = [
    p for name in ("abmll", "model_store", "lab", "service") for p in (ROOT / name).rglob("*.py")
]
IMPORT_NAMES = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
# Used by transformers, and as a command.
USED_BY_OTHERS = {"accelerate", "gguf", "pip"}


def imported(path: Path) -> set[str]:
    """Return the top-level names that a module imports, except those of the standard library."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def required(requirements: list[str]) -> set[str]:
    names = (re.split(r"[<>=\[]", requirement)[0] for requirement in requirements)
    return {IMPORT_NAMES.get(name, name).replace("-", "_") for name in names}


def test_each_dependency_is_declared_and_each_declared_one_is_imported() -> None:
    by_module = {path: imported(path) for path in (CLIENT / "abmll_client").rglob("*.py")}
    found = set().union(*by_module.values()) - {"abmll_client"}
    extras = PROJECT["optional-dependencies"]
    declared = required(PROJECT["dependencies"]).union(*map(required, extras.values()))
    assert found - {"numpy"} == declared  # numpy comes with scikit-learn
    assert {path.name for path, names in by_module.items() if "numpy" in names} == {"sklearn.py"}


def test_each_dependency_that_the_server_declares_is_imported_by_it() -> None:
    found = set().union(*map(imported, SERVER_MODULES))
    assert required(SERVER_PROJECT["dependencies"]) - found == USED_BY_OTHERS


def test_one_module_of_the_server_imports_the_client() -> None:
    modules = [path.relative_to(ROOT) for path in SERVER_MODULES if "abmll_client" in imported(path)]
    assert list(map(str, modules)) == ["service/embedded.py"]


def test_versions_and_licences_agree() -> None:
    for key in ("version", "license", "requires-python"):
        assert PROJECT[key] == SERVER_PROJECT[key]
    assert (CLIENT / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


# ---- alone ---------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    """Return what a command prints, without this process's settings of Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


PROGRAM = """
import importlib.util, json, sys
from abmll_client import Client, ConfidenceGate, NotFoundError, from_client
from abmll_client.local import local_client

url, support, options = json.loads(sys.argv[1])
with Client(url) as client:
    client.wait_until_ready(20)
    adapter = client.create_adapter(support, options=options)
    (prediction,) = client.predict(["one text"], adapter_id=adapter.id, samples=4).predictions
    (result,) = ConfidenceGate(from_client(client, adapter_id=adapter.id), min_confidence=1.0).decide(["x"])
    try:
        client.adapter("adp_0")
    except NotFoundError as error:
        refused = error.code
try:
    local_client()
except ImportError as error:
    alone = str(error)
names = ["abmll", "fastapi", "lab", "model_store", "numpy", "pandas", "service", "sklearn", "torch", "transformers"]
print(json.dumps({
    "adapter": adapter.id,
    "prediction": prediction.model_dump(mode="json", exclude_none=True),
    "source": result.source,
    "refused": refused,
    "alone": alone,
    "installed": [name for name in names if importlib.util.find_spec(name)],
    "own": importlib.util.find_spec("abmll_client").origin,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the client's wheel from a copy of its folder."""
    root = tmp_path_factory.mktemp("client")
    ignored = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    shutil.copytree(CLIENT, root / "source", ignore=ignored)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", root, root / "source")
    (built,) = root.glob("*.whl")
    return built


def test_the_wheel_is_small_and_holds_the_client_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"abmll_client"}
    assert "abmll_client/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert wheel.stat().st_size < 96 * 1024


def test_alone_in_a_fresh_environment_it_talks_to_a_server(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh")
    python = tmp_path / "fresh/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", wheel)
    server = Server(tmp_path / "data")
    with server.listening() as running:
        given = json.dumps([running.url, SUPPORT, OPTIONS])
        found: dict[str, Any] = json.loads(run(python, "-I", "-c", PROGRAM, given))
        assert Path(found["own"]).is_relative_to(tmp_path)
        assert found["installed"] == []
        assert found["adapter"] in {record.id for record in server.store.list(None, 9)}
    assert found["prediction"]["answer"] in OPTIONS
    assert (found["source"], found["refused"]) == ("human", "unknown_adapter")
    assert "needs abmll-serve, which is not installed" in found["alone"]
