"""Objects in a bucket of S3, or of a store that speaks its protocol, through `obstore`.

The place needs conditional writes: `If-None-Match: *` and `If-Match` of PutObject, which S3 has
since November 2024. https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html

Keys and the address of the place come from the environment (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`), or from the
machine's role. They are in no message and no log.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from model_store.errors import StoreUnavailableError
from model_store.objects.contract import Listed, Object, check_key

T = TypeVar("T")
_STATUS = re.compile(r"status code: (\d{3} [A-Za-z ]+)")


class S3Objects:
    """Objects below a prefix of a bucket, as `Objects`."""

    def __init__(self, bucket: str, prefix: str, timeout_seconds: float) -> None:
        """Use the bucket; one call takes `timeout_seconds` at most, with all its retries."""
        self._name = f"s3://{bucket}/{prefix}".rstrip("/")
        half = timedelta(seconds=timeout_seconds / 2)  # retries begin in one half, the last ends in the other
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "timeout": half,
                "connect_timeout": min(half, timedelta(seconds=5)),
                "allow_http": endpoint.startswith("http://"),
            },
            retry_config={
                "max_retries": 100,  # time is what ends them
                "retry_timeout": half,
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
            },
        )

    @property
    def name(self) -> str:
        """Return the address `s3://bucket/prefix`."""
        return self._name

    def get(self, key: str) -> Object | None:
        """Return the object; None where there is none."""

        def read() -> Object:
            found = obstore.get(self._store, check_key(key))
            return Object(bytes(found.bytes()), found.meta["e_tag"] or "")

        return self._found(read)

    def tag(self, key: str) -> str | None:
        """Return the object's tag; None where there is none."""
        return self._found(lambda: obstore.head(self._store, check_key(key))["e_tag"] or "")

    def put(self, key: str, data: bytes) -> None:
        """Write the object, whatever is there."""
        try:
            obstore.put(self._store, check_key(key), data, use_multipart=False)
        except (BaseError, FileNotFoundError) as error:
            raise self._unavailable(error) from None

    def create(self, key: str, data: bytes) -> str | None:
        """Write the object where there is none; None where there is one."""
        try:
            return obstore.put(self._store, check_key(key), data, mode="create")["e_tag"] or ""
        except AlreadyExistsError:
            return self._mine(key, data)
        except (BaseError, FileNotFoundError) as error:
            return self._mine_or_raise(key, data, error)

    def replace(self, key: str, data: bytes, tag: str) -> str | None:
        """Write the object where it still has `tag`; None where it has not."""
        try:
            return obstore.put(self._store, check_key(key), data, mode={"e_tag": tag})["e_tag"] or ""
        except (PreconditionError, FileNotFoundError):
            return self._mine(key, data)
        except BaseError as error:
            return self._mine_or_raise(key, data, error)

    def list(self, prefix: str, after: str | None = None) -> Iterator[Listed]:
        """Yield the objects below `prefix`, in the order of their keys."""
        check_key(prefix.removesuffix("/"))
        pages = obstore.list(self._store, prefix, offset=after)
        while (page := self._answered(lambda: next(pages, None))) is not None:
            for meta in page:
                yield Listed(meta["path"], meta["e_tag"] or "", meta["size"], meta["last_modified"])

    def delete(self, key: str) -> bool:
        """Delete the object, and return whether there was one just before."""
        there = self.tag(key) is not None
        if there:
            self._found(lambda: obstore.delete(self._store, key))
        return there

    def _mine(self, key: str, data: bytes) -> str | None:
        """Return the tag of the object that is there if it has these bytes.

        A try whose answer was lost may have written them: the next try finds its own object.
        """
        there = self.get(key)
        return there.tag if there is not None and there.data == data else None

    def _mine_or_raise(self, key: str, data: bytes, error: Exception) -> str:
        """Return the tag of the object if it has these bytes after all, else raise the error."""
        tag = self._mine(key, data)
        if tag is None:
            raise self._unavailable(error) from None
        return tag

    def _found(self, work: Callable[[], T]) -> T | None:
        try:
            return self._answered(work)
        except FileNotFoundError:
            return None

    def _answered(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except BaseError as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        """Return the error without the request, whose address and headers are no text for users."""
        status = _STATUS.search(str(error))
        reason = f"it answers {status[1].strip()}" if status else "it does not answer"
        if isinstance(error, FileNotFoundError):
            reason = "there is no such bucket"
        return StoreUnavailableError(f"the store {self._name} cannot be used now: {reason}")
