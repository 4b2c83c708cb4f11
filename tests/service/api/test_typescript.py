"""A TypeScript client is made from the OpenAPI document, compiles strictly, and works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from handbook.http_pages import document
from service.api.document import short_name, with_short_names
from tests.deployment.tools import tool
from tests.service.conftest import Server

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/javascript.md").read_text("utf-8")
WRONG = """
export function wrong(): void {
  // @ts-expect-error: no code of an error
  const code: components["schemas"]["ErrorCode"] = "no_such_code";
  // @ts-expect-error: a field that is no list
  void client.POST("/v1/predict", { body: { inputs: "a", support } });
  // @ts-expect-error: a path that is not there
  void client.GET("/v1/nowhere");
  void code;
}
"""
COMPILER = {
    "compilerOptions": {
        "strict": True,
        "noUncheckedIndexedAccess": True,
        "module": "nodenext",
        "target": "es2022",
        "lib": ["es2022", "dom", "dom.iterable"],
        "types": [],
        "skipDefaultLibCheck": True,
    },
    "files": ["program.ts"],
}


def run(*command: object, folder: Path) -> str:
    """Return what a program prints. Fails the test with its words where it fails."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_client_is_made_compiled_and_answered(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no Node on the path")
    modules = Path(tool("typescript")) / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    (program,) = re.findall(r"```ts\n(.*?)```", PAGE, re.DOTALL)
    (options,) = re.findall(r"openapi\.json (--.*) -o abmll\.d\.ts", PAGE)
    (tmp_path / "openapi.json").write_text(json.dumps(document()))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "tsconfig.json").write_text(json.dumps(COMPILER))
    generator = modules / "openapi-typescript/bin/cli.js"
    run(node, generator, "openapi.json", *options.split(), "-o", "abmll.d.ts", folder=tmp_path)
    with Server(tmp_path / "data").listening() as running:
        (tmp_path / "program.ts").write_text(program.replace("http://localhost:8000", running.url) + WRONG)
        run(node, modules / "typescript/bin/tsc", "-p", ".", folder=tmp_path)
        printed = run(node, "program.js", folder=tmp_path)
    answer, confidence = printed.split()
    assert answer in {"billing", "delivery"}
    assert 0.5 <= float(confidence) <= 1


def test_names_of_the_document_are_short_and_tell_apart() -> None:
    operations = [one for path in document()["paths"].values() for one in path.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    assert {"predict", "create_adapter", "create_chat_completion"} <= set(names)
    objects = set(document()["components"]["schemas"])
    assert not [name for name in objects if "__" in name]
    assert {"Usage", "OpenAIUsage", "DecisionsUsage", "SystemOneUsage", "ErrorCode"} <= objects
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document())))
    assert named <= objects


def test_two_objects_with_one_short_name_are_refused() -> None:
    assert short_name("service__schemas__questions__Case") == "Case"
    schemas = {"Case": {}, "service__schemas__questions__Case": {}}
    with pytest.raises(ValueError, match="1 objects"):
        with_short_names({"components": {"schemas": schemas}})


def test_every_body_of_a_request_has_an_example() -> None:
    schemas = document()["components"]["schemas"]
    for path in document()["paths"].values():
        for operation in path.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                parts = body["schema"].get("anyOf", [body["schema"]])
                (reference,) = [part["$ref"] for part in parts if "$ref" in part]
                assert schemas[reference.rpartition("/")[2]]["examples"], operation["operationId"]
