"""Every Python block of the pages on the client runs, on a server with the fake model."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.conftest import Server

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/client.md").read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Server(tmp_path_factory.mktemp("data")).listening() as running:
        yield running.url


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_example_of_the_page_runs_by_itself(
    number: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # one writes a picture
    names: dict[str, object] = {}
    text = BLOCKS[number].replace("http://localhost:8000", url)
    exec(compile(text, f"docs/client.md, example {number}", "exec"), names)
    assert names["url"] == url
    assert (tmp_path / "labels.png").exists() == ("plot" in names)
    if "table" in names:
        assert list(names["table"].index) == ["t-17", "t-18"]
        assert {"body", "answer", "probability_billing", "probability_delivery"} <= set(
            names["table"].columns
        )
    if "results" in names:
        assert {result.source for result in names["results"]} <= {"model", "fallback", "human"}
        assert names["gate"].statistics.seen == 2
    if "scores" in names:
        assert names["probabilities"].shape == (1, 2)
        assert len(names["scores"]) == 3


def test_the_page_has_an_example_of_each_part() -> None:
    assert len(BLOCKS) == 5


def test_the_page_names_every_method_of_the_client() -> None:
    from abmll_client import AsyncClient, Client

    page = (ROOT / "docs/client.md").read_text("utf-8")
    methods = {name for name in vars(Client) if not name.startswith("_")}
    assert methods - {"close"} <= set(re.findall(r"`(\w+)`", page))
    assert {name for name in vars(AsyncClient) if not name.startswith("_")} == methods - {"close"} | {
        "aclose"
    }


def test_the_page_on_triage_shows_the_scripts_function() -> None:
    import ast

    page = (ROOT / "docs/ticket-triage.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (call,) = [
        n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "triage"
    ]
    script = ast.parse((ROOT / "docs/examples/ticket_triage.py").read_text("utf-8"))
    (function,) = [n for n in script.body if isinstance(n, ast.FunctionDef) and n.name == "triage"]
    known = {argument.arg for argument in function.args.kwonlyargs}
    assert {keyword.arg for keyword in call.keywords} <= known
    assert len(call.args) == len(function.args.args)
