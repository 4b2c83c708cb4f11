"""The tools for agents, called through the protocol's own client, on a server with the fake model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp.client.client import Client as Session

from abmll_client import AsyncClient, Client
from abmll_client.mcp import mcp_server
from abmll_client.mcp_command import mcp
from tests.service.conftest import Server

EXAMPLES = [
    {"input": "I was charged twice.", "output": "billing"},
    {"input": "It is late.", "output": "delivery"},
]
OPTIONS = ["billing", "delivery"]
URGENT = {"type": "predicate", "name": "urgent", "instructions": "Does it need help at once?"}
TEAM = {
    "type": "choice",
    "name": "team",
    "instructions": "Which team?",
    "choices": [{"value": "billing", "description": "Payments."}, {"value": "delivery"}],
}
ANGER = {
    "type": "score",
    "name": "anger",
    "instructions": "How angry?",
    "levels": [{"label": "calm"}, {"label": "mad"}],
}
CASES = [
    {"input": "Refund me today!", "answers": {"urgent": True, "team": "billing", "anger": "mad"}},
    {"input": "A parcel.", "answers": {"urgent": None, "team": "delivery", "anger": "calm"}},
]


def play(tmp_path: Path, scenario: Callable[[Session, str], Awaitable[None]]) -> None:
    """Run `scenario` with a session of the tools, and the address of their server."""

    async def run(url: str) -> None:
        async with asyncio.timeout(60), Session(mcp_server(AsyncClient(url, max_retries=0))) as session:
            await scenario(session, url)

    with Server(tmp_path).listening() as running:
        asyncio.run(run(running.url))


def test_the_tools_say_what_they_take(tmp_path: Path) -> None:
    async def scenario(session: Session, url: str) -> None:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert list(tools) == ["adapt", "predict", "decide", "diagnose"]
        assert all(tool.description and tool.output_schema for tool in tools.values())
        assert tools["adapt"].input_schema["required"] == ["examples"]
        kinds = tools["decide"].input_schema["properties"]["questions"]["items"]["discriminator"]["mapping"]
        assert set(kinds) == {"predicate", "choice", "score"}

    play(tmp_path, scenario)


def test_an_agent_adapts_predicts_and_diagnoses_as_the_client_does(tmp_path: Path) -> None:
    async def scenario(session: Session, url: str) -> None:
        taught = await session.call_tool("adapt", {"examples": EXAMPLES * 2, "options": OPTIONS})
        model = taught.structured_content["id"]
        asked = {"inputs": ["Where is it?"], "model": model, "min_confidence": 1.0}
        answer = (await session.call_tool("predict", asked)).structured_content
        diagnosis = (await session.call_tool("diagnose", {"adapter_id": model})).structured_content
        with Client(url) as client:
            same = client.predict(["Where is it?"], model=model, gate={"min_confidence": 1.0})
            assert client.adapter(model).support.n == 4
        (found,) = answer["predictions"]
        assert (found["answer"], found["confidence"]) == (
            same.predictions[0].answer,
            same.predictions[0].confidence,
        )
        assert found["decision"] == "abstain"
        assert diagnosis["verdict"] in {"unfit", "weak", "healthy"}

    play(tmp_path, scenario)


def test_an_agent_asks_typed_questions_with_and_without_cases(tmp_path: Path) -> None:
    async def scenario(session: Session, url: str) -> None:
        for cases in (None, CASES):
            asked: dict[str, Any] = {"inputs": ["Where is it?"], "questions": [URGENT, TEAM, ANGER]}
            answer = await session.call_tool("decide", asked | ({"cases": cases} if cases else {}))
            assert not answer.is_error, answer.content
            (result,) = answer.structured_content["results"]
            assert set(result["answers"]) == {"urgent", "team", "anger"}
            assert result["answers"]["team"]["answer"] in OPTIONS

    play(tmp_path, scenario)


def test_a_refused_request_fails_with_the_servers_words(tmp_path: Path) -> None:
    async def scenario(session: Session, url: str) -> None:
        unknown = await session.call_tool("predict", {"inputs": ["x"], "model": "adp_0"})
        assert unknown.is_error
        assert "unknown_model" in unknown.content[0].text
        one = await session.call_tool("adapt", {"examples": EXAMPLES[:1], "options": ["billing"]})
        assert one.is_error
        assert "options" in one.content[0].text
        untyped = await session.call_tool("decide", {"inputs": ["x"], "questions": [{"name": "a"}]})
        assert untyped.is_error

    play(tmp_path, scenario)


def test_the_command_serves_the_tools_on_standard_input_and_output() -> None:
    """The start of a process and torch's import are left out; the protocol's own lines are not."""
    lines = (
        '{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", '
        '"capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}}\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", "from abmll_client.mcp_command import mcp; mcp('http://127.0.0.1:9')"],
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"name":"abmll"' in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_without_the_extra_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "abmll_client.mcp", None)
    with pytest.raises(SystemExit, match=r"pip install './client\[mcp\]'"):
        mcp()
