"""The page and its files: what is served, under which rules, how large, and when not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import httpx
import pytest

from service.playground.routes import assets
from tests.service.conftest import Server

STATIC = Path(__file__).resolve().parents[3] / "service/playground/static"
NAMES = sorted(path.name for path in STATIC.iterdir())
OURS = [name for name in NAMES if not name.startswith(("LICENSE", "htm-preact"))]
NAMESPACE = "http://www.w3.org/2000/svg"


def policy(answer: httpx.Response) -> dict[str, str]:
    return dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split(";"))


def test_the_page_and_each_of_its_files_is_served_under_a_strict_policy(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/playground", *(f"/playground/{name}" for name in NAMES if name != "index.html")):
            answer = await client.get(path)
            assert answer.status_code == 200, path
            assert answer.headers["x-content-type-options"] == "nosniff"
            allowed = policy(answer)
            assert allowed["default-src"] == "'none'"
            assert {value for name, value in allowed.items()} == {"'none'", "'self'"}
            name = path.removeprefix("/playground").lstrip("/") or "index.html"
            assert answer.content == (STATIC / name).read_bytes()

    server.run(scenario)


def test_browsers_are_told_the_kind_of_each_file(server: Server) -> None:
    kinds = {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/playground")).headers["content-type"] == "text/html; charset=utf-8"
        for name, kind in kinds.items():
            assert (await client.get(f"/playground/{name}")).headers["content-type"].startswith(kind)

    server.run(scenario)


def test_a_file_that_the_browser_has_is_not_sent_again(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        first = await client.get("/playground/app.js")
        again = await client.get("/playground/app.js", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        other = await client.get("/playground/style.css", headers={"if-none-match": first.headers["etag"]})
        assert other.status_code == 200

    server.run(scenario)


@pytest.mark.parametrize(
    "name", ["no.js", "index.html", "..%2Froutes.py", "%2e%2e/routes.py", "routes.py", "", ".."]
)
def test_nothing_else_is_served(server: Server, name: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get(f"/playground/{name}")).status_code == 404

    server.run(scenario)


def test_the_setting_turns_it_off(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/playground", "/playground/app.js"):
            answer = await client.get(path)
            assert answer.status_code == 404
            assert "playground" not in answer.json()["error"]["message"].partition(";")[2]

    Server(tmp_path, playground=False).run(scenario)


def test_it_is_no_part_of_the_http_interface(server: Server) -> None:
    assert not any("playground" in path for path in server.app.openapi()["paths"])


def test_all_that_the_page_loads_is_under_300_kilobytes() -> None:
    assert sum(len(asset.content) for name, asset in assets().items() if name in OURS) < 150_000
    assert sum(len(asset.content) for asset in assets().values()) < 300_000


@pytest.mark.parametrize("name", OURS)
def test_no_file_names_another_server_or_needs_what_the_policy_forbids(name: str) -> None:
    text = (STATIC / name).read_text("utf-8").replace(NAMESPACE, "")
    # The client's comment shows its use with the address of a server on this machine.
    assert re.findall(r"(?:https?:)?//(?!localhost:8000)[a-z0-9-]+\.[a-z]", text) == []
    assert re.findall(r"\beval\(|new Function|innerHTML|\bstyle=\"|\son[a-z]+=\"|<script>", text) == []


@pytest.mark.parametrize("name", [name for name in OURS if name.endswith(".js")])
def test_a_module_is_short_and_imports_files_that_are_there(name: str) -> None:
    text = (STATIC / name).read_text("utf-8")
    assert len(text.splitlines()) < 250
    for imported in re.findall(r"from \"\./([^\"]+)\"", text):
        # Some begin a line of a snippet, with the client's name.
        assert imported in NAMES


def test_the_client_is_about_a_hundred_lines_on_its_own() -> None:
    text = (STATIC / "client.js").read_text("utf-8")
    assert len(text.splitlines()) <= 110
    assert "import" not in text


def test_the_wheel_has_every_file() -> None:
    project = tomllib.loads((STATIC.parents[2] / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["service"]
    packed = {path.name for pattern in patterns for path in STATIC.parents[1].glob(pattern)}
    assert set(NAMES) <= packed


def test_the_library_has_its_licences_beside_it() -> None:
    assert "Jason Miller" in (STATIC / "LICENSE-preact.txt").read_text("utf-8")
    assert "Apache License" in (STATIC / "LICENSE-htm.txt").read_text("utf-8")
