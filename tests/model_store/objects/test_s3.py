"""S3 that answers 503, is slow, or drops the connection: tried again for a bounded time, and never
guessed.
"""

from __future__ import annotations

import logging
import time

import pytest

from model_store.errors import StoreUnavailableError
from model_store.objects.contract import Objects
from model_store.objects.opening import open_objects
from tests.s3_server import SECRET, S3Server, answers_503, cuts_after, cuts_before, cuts_halfway, slow


@pytest.fixture
def bucket(s3: S3Server, s3_url: str) -> Objects:
    return open_objects(s3_url, 1)


@pytest.mark.parametrize("fault", [answers_503, cuts_before, cuts_halfway, slow(0.2)])
def test_a_passing_fault_is_not_seen(bucket: Objects, s3: S3Server, fault: object) -> None:
    bucket.put("one", b"0123456789" * 100)
    s3.faults.extend([fault])
    found = bucket.get("one")
    assert found is not None
    assert found.data == b"0123456789" * 100


def test_a_write_whose_answer_is_lost_counts_once(bucket: Objects, s3: S3Server) -> None:
    s3.faults.append(cuts_after)
    tag = bucket.create("one", b"mine")
    assert tag is not None
    s3.faults.append(cuts_after)
    again = bucket.replace("one", b"mine again", tag)
    assert again == bucket.tag("one") != tag
    assert bucket.create("one", b"theirs") is None


@pytest.mark.parametrize("fault", [answers_503, cuts_before, slow(0.8)])
def test_a_lasting_fault_is_an_error_in_bounded_time(
    bucket: Objects, s3: S3Server, fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tag = bucket.create("one", b"1")
    assert tag is not None
    with s3.failing(fault):
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError) as caught:
            bucket.replace("one", b"2", tag)
        assert time.monotonic() - begun < 4.5, (
            "two calls of 2 s at most: the write, and the look at what is there"
        )
    assert "s3://bucket/" in str(caught.value)
    assert SECRET not in caplog.text + str(caught.value)
    assert bucket.name in str(caught.value)


def test_what_the_place_refuses_is_an_error_too(s3: S3Server) -> None:
    with pytest.raises(StoreUnavailableError, match="no such bucket"):
        open_objects("s3://no-such-bucket/x", 8).create("one", b"1")
