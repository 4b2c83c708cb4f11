"""Tools for agents over the Model Context Protocol: adapt, predict, decide, diagnose.

The tools send requests to a running server. Needs the extra `mcp`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads those of typing from Python 3.12 on only

from abmll_client.async_client import AsyncClient
from abmll_client.errors import ClientError
from abmll_client.models import CreateAdapterResponse, DecideResponse, DiagnoseResponse, PredictResponse

INSTRUCTIONS = """\
A small language model that learns a task from a few labelled examples and knows when to abstain.
First `adapt` to some 16 labelled examples, then `predict` with the id. `decide` asks typed questions
and needs no examples. Do not use an answer whose decision is `abstain`: hand the input to a person.
`confidence` is a probability and not a promise; a `min_confidence` promises no rate of errors."""


class Example(TypedDict):
    """One labelled example."""

    input: str
    output: str


class Option(TypedDict):
    """One value of a choice."""

    value: str
    description: NotRequired[str]


class Level(TypedDict):
    """One level of a score."""

    label: str
    description: NotRequired[str]


class PredicateQuestion(TypedDict):
    """Is it so?"""

    type: Literal["predicate"]
    name: str
    instructions: str


class ChoiceQuestion(TypedDict):
    """Which of some values?"""

    type: Literal["choice"]
    name: str
    instructions: str
    choices: list[Option]


class ScoreQuestion(TypedDict):
    """How much, from the lowest level to the highest?"""

    type: Literal["score"]
    name: str
    instructions: str
    levels: list[Level]


class LabelledCase(TypedDict):
    """An input with its answers by the name of a question; null where the input does not tell."""

    input: str
    answers: dict[str, Any]


Question: TypeAlias = Annotated[
    PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")
]
Model: TypeAlias = Annotated[str, Field(description="An adapter's id, or a name such as `tickets`.")]
MinConfidence: TypeAlias = Annotated[
    float | None, Field(ge=0, le=1, description="Abstain below this confidence; by default never.")
]


def mcp_server(client: AsyncClient) -> MCPServer:
    """Return a server of the protocol whose tools send requests with `client`, and close it.

    A tool whose request is refused fails with the server's message, which names the wrong field.
    """

    @asynccontextmanager
    async def closing(_: MCPServer) -> AsyncIterator[None]:
        async with client:
            yield

    server = MCPServer("abmll", instructions=INSTRUCTIONS, lifespan=closing, log_level="WARNING")

    @server.tool()
    async def adapt(
        examples: list[Example],
        options: Annotated[
            list[str] | None, Field(description="All possible outputs. Without any, answers are free text.")
        ] = None,
        effort: Literal["instant", "fast", "full"] = "full",
    ) -> CreateAdapterResponse:
        """Learn a task from labelled examples. The `id` of the answer is what `predict` takes."""
        with _refusals():
            pairs = [(row["input"], row["output"]) for row in examples]
            return await client.create_adapter(pairs, options=options, adapt={"effort": effort})

    @server.tool()
    async def predict(
        inputs: list[str], model: Model, min_confidence: MinConfidence = None
    ) -> PredictResponse:
        """Answer texts with an adapter: answer, probability of each option, decision."""
        with _refusals():
            return await client.predict(inputs, model=model, gate=_gate(min_confidence))

    @server.tool()
    async def decide(
        inputs: list[str],
        questions: list[Question],
        cases: list[LabelledCase] | None = None,
        min_confidence: MinConfidence = None,
    ) -> DecideResponse:
        """Answer typed questions about texts, without examples or after learning labelled cases."""
        with _refusals():
            rows: Sequence[Any] = questions
            gate = _gate(min_confidence)
            return await client.decide(inputs, rows, cases=None if cases is None else [*cases], gate=gate)

    @server.tool()
    async def diagnose(adapter_id: str) -> DiagnoseResponse:
        """Estimate on its own examples whether an adapter is any good, and which labels look wrong."""
        with _refusals():
            return await client.diagnose(adapter_id)

    return server


def serve(url: str) -> None:
    """Serve the tools on standard input and output until the input ends."""
    mcp_server(AsyncClient(url)).run("stdio")


def _gate(min_confidence: float | None) -> dict[str, float] | None:
    return None if min_confidence is None else {"min_confidence": min_confidence}


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn errors of the client into errors of a tool, with their message."""
    try:
        yield
    except (ClientError, TypeError, ValueError) as error:
        raise ToolError(str(error)) from error
