"""Files: uploads go to the disk and nothing of a refused one stays there."""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path
from typing import IO, Any

import httpx
import openai
import pytest

from tests.service.bulk.rows import adapter, begin, ended, lines, play, predict_rows, read, upload
from tests.service.conftest import Server, until

CONTENT = lines(predict_rows(3, "adp_00"))


def stored(server: Server) -> list[str]:
    return sorted(path.name for path in server.settings.files_dir.iterdir())


def test_files_are_uploaded_shown_listed_read_and_deleted(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        del http
        first = await upload(client, CONTENT)
        expires: Any = {"anchor": "created_at", "seconds": 3600}
        second = await client.files.create(
            file=("é.jsonl", CONTENT * 9), purpose="batch", expires_after=expires
        )
        assert (first.bytes, first.filename, first.purpose, first.status) == (
            len(CONTENT), "rows.jsonl", "batch", "uploaded",
        )  # fmt: skip
        assert second.filename == "é.jsonl"
        assert [(f.expires_at or 0) - f.created_at for f in (first, second)] == [30 * 24 * 3600, 3600]
        assert await client.files.retrieve(first.id) == first
        assert (await client.files.content(second.id)).content == CONTENT * 9
        assert [f.id async for f in client.files.list(limit=1)] == [second.id, first.id]
        assert [f.id async for f in client.files.list(order="asc")] == [first.id, second.id]
        assert (await client.files.list(purpose="batch_output")).data == []
        assert (await client.files.delete(first.id)).to_dict() == {
            "id": first.id,
            "object": "file",
            "deleted": True,
        }
        assert stored(server) == [second.id]
        with pytest.raises(openai.NotFoundError):
            await client.files.content(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.files.list(after=first.id)

    play(server, scenario)


FORM = {"content-type": "multipart/form-data; boundary=b"}
PART = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nrow\r\n'
PURPOSE = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{}", {"content-type": "application/json"}, 415, "multipart/form-data"),
        (b"{}", {"content-type": "multipart/form-data"}, 415, "multipart/form-data"),
        (b"{}", FORM, 400, "not a multipart form"),
        (b"", FORM, 400, "has no end"),
        (PART + PURPOSE, FORM, 400, "has no end"),
        (PURPOSE + b"--b--\r\n", FORM, 400, "no file"),
        (PART + b"--b--\r\n", FORM, 400, "purpose is 'batch'"),
        (PART + PART + PURPOSE + b"--b--\r\n", FORM, 400, "two files"),
        (PART + PURPOSE + PURPOSE + b"--b--\r\n", FORM, 400, "twice"),
        (PART + PURPOSE.replace(b"batch\r", b"evals\r") + b"--b--\r\n", FORM, 400, "'evals'"),
        (PART + PURPOSE.replace(b"batch\r", b"b" * 5000 + b"\r") + b"--b--\r\n", FORM, 400, "too long"),
        (PART.replace(b'"x"', b"x" * 9000) + b"--b--\r\n", FORM, 400, "not a multipart form"),
        (PART + PURPOSE + PURPOSE.replace(b'"purpose"', b'"x"') + b"--b--\r\n", FORM, 400, "no field 'x'"),
        (PART + PURPOSE + PURPOSE.replace(b'"purpose"', b'"expires_after[seconds]"') + b"--b--\r\n", FORM, 400, ""),
    ],
)  # fmt: skip
def test_a_form_that_is_none_is_refused_and_leaves_nothing(
    server: Server, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        answer = await http.post("/v1/files", content=body, headers=headers)
        assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), (
            answer.text
        )

    server.run(scenario)
    assert stored(server) == []


def test_the_limits_name_their_settings_and_leave_nothing(tmp_path: Path) -> None:
    server = Server(
        tmp_path, max_file_bytes=100_000, max_stored_file_bytes=150_000, max_files=3, max_body_bytes=4096
    )

    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        async def parts(count: int) -> Any:
            yield PURPOSE + PART[:-5]
            for _ in range(count):
                yield b"x" * 1000
            yield b"\r\n--b--\r\n"

        for count, status in ((99, 200), (102, 413), (200, 413)):  # by the file, and by the whole body
            answer = await http.post("/v1/files", content=parts(count), headers=FORM)
            assert answer.status_code == status, answer.text
            assert status == 200 or "max_file_bytes" in answer.text
        with pytest.raises(openai.APIStatusError, match="max_file_bytes") as declared:
            await upload(client, b"x" * 200_000)
        assert declared.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match="max_stored_file_bytes"):
            await upload(client, b"x" * 60_000)
        await upload(client, b"x")
        await upload(client, b"x")
        with pytest.raises(openai.BadRequestError, match="max_files"):
            await upload(client, b"x")
        assert (await http.post("/v1/predict", json={"x": "y" * 5000})).status_code == 413

    play(server, scenario)
    assert len(stored(server)) == 3


def test_a_full_disk_refuses_an_upload_clearly(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        del http

        class Full:
            def write(self, data: bytes) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            def close(self) -> None:
                pass

        opened = Path.open

        def full(path: Path, mode: str = "r", **more: Any) -> IO[Any] | Full:
            return Full() if path.name == "content" and mode == "wb" else opened(path, mode, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            with pytest.raises(openai.InternalServerError, match="No space left") as refused:
                await upload(client, CONTENT)
            assert refused.value.body["code"] == "store_failed"  # type: ignore[index]
        await upload(client, CONTENT)

    play(server, scenario)
    assert len(stored(server)) == 1


def test_a_batch_waits_for_a_full_disk_and_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        content = lines(predict_rows(200, await adapter(http), samples=0))

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.pwrite", full)
            batch = await begin(client, content)
            while not (batch.model_extra or {})["abmll"]["problem"]:
                await asyncio.sleep(0.01)
                batch = await client.batches.retrieve(batch.id)
            assert (batch.model_extra or {})["abmll"][
                "problem"
            ] == "waits for the disk: No space left on device"
            assert batch.status == "in_progress"
        batch = await ended(client, batch)
        assert batch.status == "completed"
        assert [a["custom_id"] for a in await read(client, batch.output_file_id)] == [
            f"row-{n}" for n in range(200)
        ]

    play(server, scenario)


def test_files_and_batches_are_there_after_a_restart_and_expire(tmp_path: Path) -> None:
    kept: list[Any] = []

    async def first(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        batch = await begin(client, lines(predict_rows(5, await adapter(http))))
        kept.extend([await ended(client, batch), await upload(client, CONTENT)])

    async def second(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        del http
        assert await client.batches.retrieve(kept[0].id) == kept[0]
        assert await client.files.retrieve(kept[1].id) == kept[1]
        assert len(await read(client, kept[0].output_file_id)) == 5

    play(Server(tmp_path), first)
    leftover = tmp_path / "bulk/files/.staging-file-0"
    leftover.mkdir()
    play(Server(tmp_path), second)
    assert not leftover.exists()

    later = time.time() + 31 * 24 * 3600

    async def third(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        del http
        await until(lambda: stored(server) == [])
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(kept[1].id)
        assert (await client.batches.list()).data == []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: later)
        server = Server(tmp_path)
        play(server, third)
