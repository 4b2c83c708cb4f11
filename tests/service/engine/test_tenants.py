"""Two tenants of one server: each has its own adapters, names and gates, and sees nothing of the
other.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from abmll.text.tasks import Example
from model_store.errors import CorruptArtifactError
from service.engine.engine import Engine
from service.engine.requests import AdaptRequest, CacheOutcome, DiagnoseRequest, PredictRequest
from service.errors import ForbiddenError, UnknownAdapterError, UnknownModelError, UnknownNameError
from service.gating.records import CalibrateRequest, LabelledText
from service.principals.records import Principal, Scope
from tests.service.conftest import Server, until

OPTIONS = ("yes", "no")
SUPPORT = tuple(Example(f"input {i}", OPTIONS[i % 2], OPTIONS) for i in range(6))
EQUAL = AdaptRequest(SUPPORT)


def as_two(server: Server, work: Callable[[Engine, Engine], Awaitable[None]]) -> None:
    """Run `work` with the engines of the tenants `one` and `two`."""

    async def scenario(_: object) -> None:
        await work(await server.engine.of(Principal("one")), await server.engine.of(Principal("two")))

    server.run(scenario)


def test_equal_supports_give_two_ids_and_two_fits(server: Server) -> None:
    async def work(one: Engine, two: Engine) -> None:
        first, other = await one.create_adapter(EQUAL), await two.create_adapter(EQUAL)
        plain = await server.engine.create_adapter(EQUAL)
        ids = {made.adapter.manifest.id for made in (first, other, plain)}
        assert len(ids) == 3
        assert {made.cache for made in (first, other, plain)} == {CacheOutcome.MISS}
        assert (await one.create_adapter(EQUAL)).adapter.manifest.id == first.adapter.manifest.id

    as_two(server, work)
    assert len(server.worker.adapted) == 3


def test_nothing_joins_the_adaptation_of_another(server: Server) -> None:
    async def work(one: Engine, two: Engine) -> None:
        server.worker.adapt_gate.clear()
        both = [asyncio.ensure_future(engine.create_adapter(EQUAL)) for engine in (one, two)]
        await until(lambda: one._registry.in_flight == two._registry.in_flight == 1)
        server.worker.adapt_gate.set()
        assert [made.cache for made in await asyncio.gather(*both)] == [CacheOutcome.MISS] * 2

    as_two(server, work)


def test_the_ids_of_another_are_unknown_everywhere(server: Server) -> None:
    async def work(one: Engine, two: Engine) -> None:
        id = (await one.create_adapter(EQUAL)).adapter.manifest.id
        await one.names.put("tickets", id, "fake-1b")
        await one.calibrations.add(CalibrateRequest(id, (LabelledText("other", "yes"),), more_follow=True))
        query = SUPPORT[0].query
        for refused in (
            two.adapter(id),
            two.pin(id),
            two.unpin(id),
            two.delete_adapter(id),
            two.calibrations.views(id),
            two.calibrations.delete(id),
            two.calibrations.label(id, []),
            two.diagnose(DiagnoseRequest(id)),
            two.calibrations.add(CalibrateRequest(id, (LabelledText("other", "yes"),))),
            two.predict(PredictRequest(id, (query,))),
            two.names.put("mine", id, "fake-1b"),
        ):
            with pytest.raises(UnknownAdapterError) as caught:
                await refused
            # word for word what an id says that nobody has
            assert str(caught.value) == f"there is no adapter {id!r}"
        for model in (id, "tickets", "tickets@1"):
            with pytest.raises(UnknownModelError):
                await two.resolve_model(model)
        with pytest.raises(UnknownNameError):
            await two.names.delete("tickets")
        assert (await two.adapters(None, 10)) == ([], False)
        assert (await two.names.page(None, 10)).histories == []
        assert [m.id for m in (await one.adapters(None, 10))[0]] == [id]
        await one.names.delete("tickets")
        await one.delete_adapter(id)

    as_two(server, work)


def test_both_may_have_the_same_name(server: Server) -> None:
    async def work(one: Engine, two: Engine) -> None:
        for engine in (one, two):
            id = (await engine.create_adapter(EQUAL)).adapter.manifest.id
            await engine.names.put("tickets", id, "fake-1b")
            assert await engine.resolve_model("tickets") == (id, "tickets@1")

    as_two(server, work)


def test_ids_are_the_same_after_a_restart_and_gone_from_disk_when_deleted(tmp_path: Path) -> None:
    made: list[str] = []

    async def make(one: Engine, two: Engine) -> None:
        made.extend([(await e.create_adapter(EQUAL)).adapter.manifest.id for e in (one, two)])

    async def again(one: Engine, two: Engine) -> None:
        found = [await engine.create_adapter(EQUAL) for engine in (one, two)]
        assert [f.adapter.manifest.id for f in found] == made
        assert {f.cache for f in found} == {CacheOutcome.HIT}
        await one.delete_adapter(made[0])

    as_two(Server(tmp_path), make)
    as_two(Server(tmp_path), again)
    assert list(tmp_path.rglob(f"{made[0]}*")) == []
    assert [path.parent.parent.name for path in tmp_path.rglob(f"{made[1]}*")] == ["two"]
    assert not any(tmp_path.glob("adapters/adp_*"))


def test_a_key_without_the_scope_makes_no_adapter(server: Server) -> None:
    async def scenario(_: object) -> None:
        reader = await server.engine.of(Principal("one", "key", frozenset({Scope.PREDICT})))
        with pytest.raises(ForbiddenError, match=r"`adapt`.*`predict`"):
            await reader.predict(PredictRequest(EQUAL, (SUPPORT[0].query,)))

    server.run(scenario)
    assert server.worker.adapted == []


def test_a_damaged_key_of_ids_is_an_error_and_no_new_key(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tenants/one").mkdir(parents=True)
    (tmp_path / "tenants/one/id_key").write_bytes(b"short")

    async def scenario(_: object) -> None:
        with pytest.raises(CorruptArtifactError, match="id_key has 5 bytes"):
            await server.engine.of(Principal("one"))

    server.run(scenario)
    assert (tmp_path / "tenants/one/id_key").read_bytes() == b"short"


def test_adapters_that_nobody_uses_expire_with_their_calibrations(tmp_path: Path) -> None:
    server = Server(tmp_path, ttl_seconds=1000.0, audit_log=tmp_path / "audit.jsonl")
    supports = [SUPPORT[:count] for count in (2, 4, 6)]

    def make_old(*ids: str) -> None:
        for id in ids:
            for seal in tmp_path.rglob(f"{id}/seal.json"):
                os.utime(seal, (1, 1))

    async def work(one: Engine, two: Engine) -> None:
        made = [await one.create_adapter(AdaptRequest(support)) for support in supports]
        unused, named, used = (m.adapter.manifest.id for m in made)
        other = (await two.create_adapter(EQUAL)).adapter.manifest.id
        plain = (await server.engine.create_adapter(EQUAL)).adapter.manifest.id
        await one.calibrations.add(
            CalibrateRequest(unused, (LabelledText("other", "yes"),), more_follow=True)
        )
        await one.names.put("tickets", named, "fake-1b")
        expiry = server.engine._expiry
        assert expiry is not None
        await expiry.look()  # what was used is written down, and everything is new
        make_old(unused, named, used, other, plain)
        await one.predict(PredictRequest(used, (SUPPORT[0].query,)))
        await expiry.look()
        assert sorted(m.id for m in (await one.adapters(None, 10))[0]) == sorted([named, used])
        assert (await two.adapters(None, 10))[0] == (await server.engine.adapters(None, 10))[0] == []
        for gone in (unused, other, plain):
            assert list(tmp_path.rglob(f"{gone}*")) == []

    as_two(server, work)
    rows = [json.loads(row) for row in (tmp_path / "audit.jsonl").read_text().splitlines()]
    expired = [(row["tenant"], row["key"]) for row in rows if row["action"] == "expire"]
    assert expired == [("default", None), ("one", None), ("two", None)]


def test_a_tenant_that_has_not_asked_since_the_start_expires_too(tmp_path: Path) -> None:
    async def make(one: Engine, two: Engine) -> None:
        await one.create_adapter(EQUAL)

    as_two(Server(tmp_path), make)
    for seal in tmp_path.rglob("seal.json"):
        os.utime(seal, (1, 1))
    server = Server(tmp_path, ttl_seconds=1000.0)

    async def wait(_: object) -> None:
        await until(lambda: not list(tmp_path.rglob("adp_*")))

    server.run(wait)


def test_expiry_goes_on_after_a_store_that_failed_and_forgets_no_use(tmp_path: Path) -> None:
    server = Server(tmp_path, ttl_seconds=1000.0)

    async def work(one: Engine, two: Engine) -> None:
        used = (await one.create_adapter(EQUAL)).adapter.manifest.id
        await two.create_adapter(EQUAL)
        expiry = server.engine._expiry
        assert expiry is not None
        await expiry.look()
        for seal in tmp_path.rglob("seal.json"):
            os.utime(seal, (1, 1))
        await one.predict(PredictRequest(used, (SUPPORT[0].query,)))
        store = one._registry._store
        touch = store.touch
        store.touch = lambda id: (_ for _ in ()).throw(RuntimeError("no answer"))  # type: ignore[method-assign]
        await expiry.look()
        assert (await two.adapters(None, 10))[0] == []
        store.touch = touch  # type: ignore[method-assign]
        await one._registry.note_uses()
        assert await one._registry.unused_since(1000.0) == []
        assert [m.id for m in (await one.adapters(None, 10))[0]] == [used]

    as_two(server, work)
