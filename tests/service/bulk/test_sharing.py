"""No tenant keeps another one from its files and batches, and none outlives its key."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.bulk import batches, manager
from service.bulk.batches import BatchStore
from service.bulk.files import FileStore
from service.bulk.lines import StoppedError, check_file
from service.bulk.records import BatchRecord, Status
from service.errors import LimitExceededError, UnknownBatchError
from service.principals.parts import has_room
from service.principals.records import Limits
from service.settings import Settings
from tests.service.api.test_keys import Guarded, by
from tests.service.bulk.rows import TASK, begin, ended, lines, predict_rows, read, upload
from tests.service.bulk.test_tenants import client_of
from tests.service.conftest import until


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.principals.keyring.LOOK_SECONDS", 0.0)


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 1000])
def test_a_shared_limit_has_room_for_one_more_tenant_always(limit: int) -> None:
    held: dict[str, int] = {}
    for tenant in "abc":
        while has_room(held.get(tenant, 0) + 1, sum(held.values()) + 1, limit, shared=True):
            held[tenant] = held.get(tenant, 0) + 1
        assert held.get(tenant, 0) >= (1 if limit >= 2 ** "abc".index(tenant) else 0)
    assert sum(held.values()) <= limit
    assert held["a"] <= limit / 2 + 1
    assert has_room(limit, limit, limit, shared=False)
    assert not has_room(limit + 1, limit + 1, limit, shared=False)


def store(root: Path, **settings: Any) -> FileStore:
    return FileStore(root / "files", Settings(data_dir=root, **settings), shared=True)


def test_a_tenant_with_too_many_files_or_bytes_does_not_fill_the_disk_for_others(tmp_path: Path) -> None:
    files = store(tmp_path, max_files=8)
    made = [files.finish(files.begin("a", "one"), "batch", 60.0) for _ in range(4)]
    with pytest.raises(LimitExceededError, match="max_files") as refused:
        files.begin("a", "one")
    assert "4 files" not in refused.value.message
    files.finish(files.begin("a", "two"), "batch", 60.0)
    files.delete(made[0].id, "one")
    files.finish(files.begin("a", "one"), "batch", 60.0)
    assert len(list((tmp_path / "files").iterdir())) == 5  # nothing is left of what was refused


def test_uploads_count_while_they_arrive(tmp_path: Path) -> None:
    """Of many uploads at once, each was alone when it began."""
    files = store(tmp_path, max_stored_file_bytes=8 << 20, max_file_bytes=8 << 20)
    uploads = [files.begin("a", "one") for _ in range(8)]
    with pytest.raises(LimitExceededError, match="max_stored_file_bytes"):
        for _ in range(3):
            for upload in uploads:
                upload.write(bytes(1 << 20))
    written = sum(path.stat().st_size for path in (tmp_path / "files").glob("*/content"))
    assert written <= 6 << 20
    for upload in uploads:
        upload.discard()
    other = files.begin("a", "two")
    other.write(bytes(4 << 20))
    assert files.finish(other, "batch", 60.0).bytes == 4 << 20


def record(id: str, tenant: str, created: float = 0.0, status: Status = Status.COMPLETED) -> BatchRecord:
    made = BatchRecord(
        f"batch_{id}", tenant, "/v1/predict", "i", "o", "e", "24h", created, created, Status.VALIDATING
    )
    return replace(made, status=status, times={status.value: created})


def test_a_new_batch_costs_no_batch_of_another_tenant(tmp_path: Path) -> None:
    owner = BatchStore(tmp_path / "batches", 8, shared=True)
    owner.add(record("theirs", "two", -1.0))
    for number in range(20):
        owner.add(record(str(number), "one", float(number)))
    assert owner.get("batch_theirs", "two")
    assert [found.id for found in owner.owned("one")] == [f"batch_{number}" for number in (19, 18, 17, 16)]
    running = BatchStore(tmp_path / "running", 8, shared=True)
    for number in range(4):
        running.add(record(str(number), "one", status=Status.IN_PROGRESS))
    with pytest.raises(LimitExceededError, match="max_batches"):
        running.add(record("more", "one"))
    running.add(record("theirs", "two"))


def test_a_batch_is_remembered_from_its_end_on(tmp_path: Path) -> None:
    owner = BatchStore(tmp_path, 8)
    long = replace(record("long", "one"), times={"validating": 0.0, "completed": 1000.0})
    owner.add(long)
    owner.add(record("old", "one"))
    owner.delete_ended(before=999.0)
    assert [found.id for found in owner.all()] == ["batch_long"]
    owner.delete_ended(before=1001.0)
    with pytest.raises(UnknownBatchError):
        owner.get("batch_long", "one")


def test_a_batch_does_not_wait_for_those_of_another_tenant(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, batches_at_once=1)

    async def work(http: httpx.AsyncClient) -> None:
        one, two = client_of(http, guarded.one), client_of(http, guarded.two)
        ids = [
            (await http.post("/v1/adapters", json=TASK, headers=by(key))).json()["id"]
            for key in (guarded.one, guarded.two)
        ]
        guarded.worker.predict_gate.clear()
        theirs = [await begin(one, lines(predict_rows(2, ids[0]))) for _ in range(2)]
        await until(lambda: bool(guarded.worker.predicted))
        mine = await begin(two, lines(predict_rows(2, ids[1])))
        while (await two.batches.retrieve(mine.id)).status != "in_progress":
            await asyncio.sleep(0.01)
        assert (await one.batches.retrieve(theirs[1].id)).status == "validating"
        guarded.worker.predict_gate.set()
        for client, batch in ((one, theirs[0]), (one, theirs[1]), (two, mine)):
            assert (await ended(client, batch)).status == "completed"

    guarded.play(work)


def test_a_batch_ends_with_its_key_and_what_it_answered_stays(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path)

    async def work(http: httpx.AsyncClient) -> None:
        one = client_of(http, guarded.one)
        id = (await http.post("/v1/adapters", json=TASK, headers=by(guarded.one))).json()["id"]
        guarded.worker.predict_gate.clear()
        batch = await begin(one, lines(predict_rows(640, id)))
        await until(lambda: bool(guarded.worker.predicted))
        guarded.write(revoked=guarded.one)
        guarded.worker.predict_gate.set()
        other = client_of(http, next(iter(guarded.scoped.values())))
        batch = await ended(other, batch)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert batch.errors.data[0].code == "invalid_api_key"
        assert len(await read(other, batch.output_file_id)) < 640

    guarded.play(work)


def test_a_batch_that_waits_does_not_begin_after_its_key(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, batches_at_once=1)

    async def work(http: httpx.AsyncClient) -> None:
        one = client_of(http, guarded.one)
        id = (await http.post("/v1/adapters", json=TASK, headers=by(guarded.one))).json()["id"]
        guarded.worker.predict_gate.clear()
        first = await begin(one, lines(predict_rows(1, id)))
        await until(lambda: bool(guarded.worker.predicted))
        second = await begin(one, lines(predict_rows(1, id)))
        guarded.write(revoked=guarded.one)
        guarded.worker.predict_gate.set()
        other = client_of(http, next(iter(guarded.scoped.values())))
        await ended(other, first)
        assert (await ended(other, second)).status == "failed"

    guarded.play(work)
    assert len(guarded.worker.predicted) == 1


def test_rows_have_the_limits_that_their_tenant_has_now(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, batches_at_once=1)

    async def work(http: httpx.AsyncClient) -> None:
        one = client_of(http, guarded.one)
        id = (await http.post("/v1/adapters", json=TASK, headers=by(guarded.one))).json()["id"]
        guarded.worker.predict_gate.clear()
        await begin(one, lines(predict_rows(1, id)))
        await until(lambda: bool(guarded.worker.predicted))
        made = {**TASK, "inputs": ["x"], "seed": 7}
        row = {"custom_id": "makes", "method": "POST", "url": "/v1/predict", "body": made}
        batch = await begin(one, lines([row]))
        guarded.limits = {"one": Limits(adapters=1)}
        guarded.write()
        guarded.worker.predict_gate.set()
        batch = await ended(one, batch)
        (refusal,) = await read(one, batch.error_file_id)
        assert refusal["response"]["body"]["error"]["code"] == "quota_exceeded"

    guarded.play(work)


def test_blank_lines_end_a_check_and_a_check_ends_when_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" * 100_000)
    count, (error,) = check_file(path, "/v1/predict", 1 << 20, 1000)
    assert (count, error.code, error.line) == (0, "too_many_lines", 2001)
    looks = iter([False] * 10 + [True])
    with pytest.raises(StoppedError):
        check_file(path, "/v1/predict", 1 << 20, 10**6, lambda: next(looks))
    assert next(looks, None) is None


def test_a_cancelled_check_leaves_no_thread_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = Guarded(tmp_path)
    at_work: list[int] = []

    def endless(*arguments: Any) -> None:
        at_work.append(1)
        while not arguments[-1]():
            time.sleep(0.001)
        at_work.pop()
        raise StoppedError

    monkeypatch.setattr(manager, "check_file", endless)

    async def work(http: httpx.AsyncClient) -> None:
        one = client_of(http, guarded.one)
        file = await upload(one, b"{}\n")
        for _ in range(3):
            batch = await one.batches.create(
                input_file_id=file.id, endpoint="/v1/predict", completion_window="24h"
            )  # type: ignore[arg-type]
            await until(lambda: bool(at_work))
            await one.batches.cancel(batch.id)
            assert (await ended(one, batch)).status == "cancelled"
            assert not at_work

    guarded.play(work)


def test_what_cannot_be_deleted_does_not_end_the_deletion_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "SWEEP_SECONDS", 0.01)
    guarded = Guarded(tmp_path, file_ttl_seconds=0.2)
    tries = 0

    def refused(path: Path) -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise PermissionError(1, "not permitted")
        return bool(remove(path))

    remove = batches.remove

    async def work(http: httpx.AsyncClient) -> None:
        one = client_of(http, guarded.one)
        batch = await ended(one, await begin(one, b"no row\n"))
        monkeypatch.setattr(batches, "remove", refused)
        while True:
            try:
                await one.batches.retrieve(batch.id)
            except openai.NotFoundError:
                break
            await asyncio.sleep(0.01)
        assert tries == 2

    guarded.play(work)
