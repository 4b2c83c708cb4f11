"""Adaptations that take their time, with a bar on a terminal: by an engine here, or by a server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from abmll.errors import AbmllError
from model_store.progress import progress_bar
from service.cli.remote import Remote
from service.engine.requests import AdaptRequest

if TYPE_CHECKING:
    from service.engine.answers import Obtained
    from service.engine.engine import Engine

POLL_MS = 1000


async def adapted_here(engine: Engine, request: AdaptRequest) -> Obtained:
    """Return the adapter of `request`. Raises what ends its making."""
    from service.engine.answers import Obtained  # noqa: PLC0415

    begun = await engine.begin_adapter(request)
    if isinstance(begun, Obtained):
        return begun
    owner = engine.long_adaptations
    with progress_bar() as report:
        async for now in owner.follow(begun.adapter_id, math.inf):
            report("Adapting", len(now.losses), now.steps)
    made = await owner.result(begun.adapter_id, 0.0)
    assert isinstance(made, Obtained)  # what ended it was raised
    return made


def adapted_there(remote: Remote, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the adapter of a body of `POST /v1/adapters`, as the server shows it.

    Raises `AbmllError` where its making ended otherwise, and as `Remote.request`.
    """
    create = "/v1/adapters?wait_ms=0"
    answer: dict[str, Any] = remote.request("POST", create, body)
    with progress_bar() as report:
        while answer.get("object") == "adapter.progress":
            if answer["status"] == "succeeded":
                answer = remote.request("POST", create, body)
                continue
            if error := answer.get("error"):
                raise AbmllError(f"the server refused: {error['message']}")
            report("Adapting", answer["step"], answer["steps"])
            place = f"/v1/adapters/{quote(answer['id'], safe='')}/progress"
            answer = remote.request("GET", f"{place}?wait_ms={POLL_MS}")
    return answer
