"""Two clients at once, on the real store: some order of their requests explains every answer.

The real store, registry, cache and journals, around a fake model. Each client sends one request
after another. What is done one after the other keeps that order; what overlaps may have any.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import TypeAlias

import httpx
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from service.errors import CalibrationMissingError, LimitExceededError, ServiceError, UnknownAdapterError
from tests.property_runs import tries
from tests.service.conftest import Server

OPTIONS = ["yes", "no"]
EXAMPLES = [{"input": f"known {i}", "output": OPTIONS[i % 2]} for i in range(4)]
CREATE = [
    {"support": [{"input": f"{which} good", "output": "yes"}, {"input": "bad", "output": "no"}]}
    for which in range(2)
]
# An adapter of the fake model has 64 bytes: the cache holds one, so that one may be pinned, and the
# other is read from the disk each time.
MEMORY_BYTES = 100

Answer: TypeAlias = tuple[int, object]  # the status, and what else an order has to explain
Call: TypeAlias = Callable[[httpx.AsyncClient, int, str], Awaitable[httpx.Response]]
CALLS: dict[str, Call] = {
    "create": lambda client, which, _: client.post("/v1/adapters", json=CREATE[which]),
    "predict with support": lambda client, which, _: client.post(
        "/v1/predict", json=CREATE[which] | {"inputs": ["x"]}
    ),
    "predict": lambda client, _, id: client.post("/v1/predict", json={"adapter_id": id, "inputs": ["x"]}),
    "calibrate": lambda client, _, id: client.post(
        f"/v1/adapters/{id}/calibrate", json={"examples": EXAMPLES, "replace": True}
    ),
    "calibration": lambda client, _, id: client.get(f"/v1/adapters/{id}/calibration"),
    "forget": lambda client, _, id: client.delete(f"/v1/adapters/{id}/calibration"),
    "pin": lambda client, _, id: client.post(f"/v1/adapters/{id}/pin"),
    "unpin": lambda client, _, id: client.post(f"/v1/adapters/{id}/unpin"),
    "show": lambda client, _, id: client.get(f"/v1/adapters/{id}"),
    "delete": lambda client, _, id: client.delete(f"/v1/adapters/{id}"),
}


@dataclass(frozen=True)
class Life:
    """State of one adapter; `version` is that of its calibration, 0 where it has none."""

    exists: bool = False
    pinned: bool = False
    version: int = 0


Lives: TypeAlias = tuple[Life, ...]


def refusal(error: type[ServiceError]) -> Answer:
    """Return the answer with this error."""
    return error.status, error.code


def explained(lives: Lives, name: str, which: int) -> tuple[Lives, Answer]:
    """Return what one request does where nothing else runs: the new state, and the answer."""
    life, other = lives[which], lives[1 - which]
    if name in {"create", "predict with support"}:
        made = not life.exists
        after = replace(life, exists=True)
        answer: Answer = (201 if name == "create" and made else 200, made)
    elif not life.exists:
        after, answer = life, refusal(UnknownAdapterError)
    elif name == "calibrate":
        after = replace(life, version=life.version + 1)
        answer = (200, after.version)
    elif name in {"calibration", "forget"} and not life.version:
        after, answer = life, refusal(CalibrationMissingError)
    elif name == "calibration":
        after, answer = life, (200, life.version)
    elif name == "forget":
        after, answer = replace(life, version=0), (200, None)
    elif name == "pin" and other.pinned:
        after, answer = life, refusal(LimitExceededError)
    elif name in {"pin", "unpin"}:
        after, answer = replace(life, pinned=name == "pin"), (200, None)
    else:
        after, answer = Life() if name == "delete" else life, (200, None)
    return (after, other) if which == 0 else (other, after), answer


def seen(name: str, response: httpx.Response) -> Answer:
    """Return of a real answer what an order has to explain."""
    body = response.json()
    if response.status_code >= 400:
        return response.status_code, body["error"]["code"]
    if name in {"create", "predict with support"}:
        # Who waits for an adaptation that another request began finds it made.
        return response.status_code, body["cache"] == "miss"
    return response.status_code, body["version"] if name.startswith("calibrat") else None


@dataclass
class Request:
    """One request of a client; the times are those of the machine's clock."""

    name: str
    which: int
    began: int = 0
    ended: int = 0
    answer: Answer = (0, None)


def outcomes(first: Sequence[Request], second: Sequence[Request]) -> set[Lives]:
    """Return the states in which the orders end that explain all answers; none if there is none."""
    both = (first, second)
    open_: set[tuple[int, int, Lives]] = {(0, 0, (Life(), Life()))}
    for _ in range(len(first) + len(second)):
        following: set[tuple[int, int, Lives]] = set()
        for *done, lives in open_:
            heads = [rows[n] if n < len(rows) else None for rows, n in zip(both, done, strict=True)]
            for client, head in enumerate(heads):
                waits_for = heads[1 - client]
                if head is None or (waits_for is not None and waits_for.ended < head.began):
                    continue
                after, answer = explained(lives, head.name, head.which)
                if answer == head.answer:
                    following.add((done[0] + (client == 0), done[1] + (client == 1), after))
        open_ = following
    return {lives for *_, lives in open_}


@dataclass
class Client:
    """A client that sends what is in its queue, one request after another."""

    queue: asyncio.Queue[Request] = field(default_factory=asyncio.Queue)
    sent: list[Request] = field(default_factory=list)


@cache
def adapter_ids() -> list[str]:
    """Return the ids of the two adapters, which are the same on every server."""
    with tempfile.TemporaryDirectory() as folder:
        made: list[httpx.Response] = []

        async def scenario(client: httpx.AsyncClient) -> None:
            made.extend([await CALLS["create"](client, which, "") for which in range(2)])

        Server(Path(folder)).run(scenario)
    return [response.json()["id"] for response in made]


class TwoClients(RuleBasedStateMachine):
    """Requests of two clients on two adapters; the model can be stopped in its work."""

    @initialize()
    def start(self) -> None:
        self.ids, self.root = adapter_ids(), Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.clock: Iterator[int] = count(1)
        self.clients = (Client(), Client())
        self.stack = contextlib.AsyncExitStack()
        self.loop.run_until_complete(self._start())
        self.send(0, ["create"], 0)
        self.wait_for(0)

    async def _start(self) -> None:
        self.server = Server(self.root, adapter_memory_bytes=MEMORY_BYTES)
        self.http = await self.stack.enter_async_context(self.server.running())
        self.playing = [asyncio.create_task(self._play(client)) for client in self.clients]

    async def _play(self, client: Client) -> None:
        while True:
            request = await client.queue.get()
            request.began = next(self.clock)
            response = await CALLS[request.name](self.http, request.which, self.ids[request.which])
            request.ended, request.answer = next(self.clock), seen(request.name, response)
            client.queue.task_done()

    @rule(
        client=st.integers(0, 1),
        names=st.lists(st.sampled_from(sorted(CALLS)), min_size=1, max_size=5),
        which=st.sampled_from([0, 0, 0, 1]),
    )
    def send(self, client: int, names: list[str], which: int) -> None:
        for name in names:
            request = Request(name, which)
            self.clients[client].sent.append(request)
            self.clients[client].queue.put_nowait(request)

    @rule(turns=st.integers(1, 30))
    def go_on(self, turns: int) -> None:
        async def take_turns() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(take_turns())

    @rule(adapting=st.booleans(), predicting=st.booleans())
    def stop_the_model(self, adapting: bool, predicting: bool) -> None:
        worker = self.server.worker
        for gate, stops in ((worker.adapt_gate, adapting), (worker.predict_gate, predicting)):
            gate.clear() if stops else gate.set()

    @rule(client=st.integers(0, 1))
    def wait_for(self, client: int) -> None:
        self.stop_the_model(False, False)
        self.loop.run_until_complete(asyncio.wait_for(self.clients[client].queue.join(), 120))

    def teardown(self) -> None:
        if not hasattr(self, "playing"):
            return
        try:
            self.wait_for(0)
            self.wait_for(1)
            self.check(self.server)
            self.loop.run_until_complete(self.stop())
            self.check_restarted()
        finally:
            self.loop.run_until_complete(self.stop())
            self.loop.close()
            shutil.rmtree(self.root)

    async def stop(self) -> None:
        for task in self.playing:
            task.cancel()
        await asyncio.gather(*self.playing, return_exceptions=True)
        await self.stack.aclose()

    def check(self, server: Server) -> None:
        """Compare the state that is seen, in answers and on the disk, with those of the orders."""
        # Whether one is pinned shows where the other does not fit beside it.
        for which in range(2):
            self.send(0, ["show", "calibration", "pin"], which)
        self.wait_for(0)
        requests = [client.sent for client in self.clients]
        states = outcomes(*requests)
        assert states, f"no order explains {requests}"
        self.lives = self.on_disk(server)
        assert self.lives in {tuple((life.exists, life.version > 0) for life in state) for state in states}

    def on_disk(self, server: Server) -> tuple[tuple[bool, bool], ...]:
        """Return for each adapter whether the disk has it, and whether it has its calibration."""
        journals = self.server.settings.calibrations_dir
        return tuple((server.store.has(id), any(journals.rglob(f"*{id}*"))) for id in self.ids)

    def check_restarted(self) -> None:
        """Check that a server which starts on the same folder finds the state of the disk."""

        async def scenario(client: httpx.AsyncClient) -> None:
            for which, id in enumerate(self.ids):
                exists, calibrated = self.lives[which]
                for name, found in (("show", exists), ("calibration", calibrated)):
                    response = await CALLS[name](client, which, id)
                    assert (response.status_code == 200) == found, (name, which, response.text)

        Server(self.root).run(scenario)


def test_any_interleaving_on_two_clients_ends_in_a_state_that_some_order_explains() -> None:
    run_state_machine_as_test(TwoClients, settings=settings(tries(15), stateful_step_count=20))


def test_an_order_explains_only_what_can_be() -> None:
    """The check itself: it finds a deleted adapter that comes back, and allows an overlap."""
    created = Request("create", 0, 1, 2, (201, True))
    deleted = Request("delete", 0, 3, 4, (200, None))
    back = Request("show", 0, 5, 6, (200, None))
    assert outcomes([created, deleted], []) == {(Life(), Life())}
    assert not outcomes([created, deleted, back], [])
    assert not outcomes([created, deleted], [back])
    assert outcomes([created, deleted], [replace(back, began=3)])
    calibrated = Request("calibrate", 0, 3, 6, (200, 1))
    assert not outcomes([created, deleted], [calibrated, Request("calibration", 0, 7, 8, (200, 1))])
