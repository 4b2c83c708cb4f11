"""Files and batches are a tenant's own, and rows may do what the key of the batch may do."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest

from service.principals.keys_file import NewKey
from service.principals.records import Limits, Scope
from tests.service.api.test_keys import Guarded, by
from tests.service.bulk.rows import TASK, begin, ended, lines, predict_rows, read, row


def client_of(http: httpx.AsyncClient, key: NewKey) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://server/v1", api_key=key.text, http_client=http, max_retries=0)


def test_tenants_see_their_own_files_and_batches_and_rows_have_the_scopes_of_the_key(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path)

    async def work(http: httpx.AsyncClient) -> None:
        one, two = client_of(http, guarded.one), client_of(http, guarded.two)
        made = await http.post("/v1/adapters", json=TASK, headers=by(guarded.one))
        rows = predict_rows(3, made.json()["id"])
        batch = await ended(one, await begin(one, lines(rows)))
        assert batch.request_counts is not None
        assert batch.request_counts.completed == 3

        assert [b.id async for b in two.batches.list()] == [f.id async for f in two.files.list()] == []
        for refused in (
            two.batches.retrieve(batch.id),
            two.batches.cancel(batch.id),
            two.files.retrieve(batch.input_file_id),
            two.files.content(batch.output_file_id or ""),
            two.files.delete(batch.input_file_id),
            two.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/predict", completion_window="24h"
            ),  # type: ignore[arg-type]
        ):
            with pytest.raises(openai.NotFoundError, match="there is no"):
                await refused
        theirs = await ended(two, await begin(two, lines(rows)))
        assert {a["response"]["status_code"] for a in await read(two, theirs.error_file_id)} == {404}

        few = client_of(http, guarded.scoped[Scope.PREDICT])
        mixed = [*rows, row("makes", {**TASK, "support": TASK["support"] * 2, "inputs": ["x"]})]
        batch = await ended(few, await begin(few, lines(mixed)))
        assert [a["custom_id"] for a in await read(one, batch.output_file_id)] == ["row-0", "row-1", "row-2"]
        (refusal,) = await read(one, batch.error_file_id)
        assert (refusal["custom_id"], refusal["response"]["status_code"]) == ("makes", 403)

    guarded.play(work)


def test_the_limits_of_a_tenant_hold_for_its_rows(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, Limits(adapters=1))

    async def work(http: httpx.AsyncClient) -> None:
        one = client_of(http, guarded.one)
        (await http.post("/v1/adapters", json=TASK, headers=by(guarded.one))).raise_for_status()
        tasks = [{**TASK, "inputs": ["x"], "seed": seed} for seed in range(2)]
        batch = await ended(one, await begin(one, lines([row(str(n), task) for n, task in enumerate(tasks)])))
        assert [a["custom_id"] for a in await read(one, batch.output_file_id)] == ["0"]
        (refusal,) = await read(one, batch.error_file_id)
        assert refusal["response"]["body"]["error"]["code"] == "quota_exceeded"

    guarded.play(work)
