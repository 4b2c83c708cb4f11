"""Events are put together from bytes: wherever the bytes are cut, and whatever the texts hold."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abmll_client.server_sent_events import EventParser, ServerSentEvent
from tests.property_runs import tries

# What ends a line for `splitlines`, but not in the standard; and characters of several bytes.
TEXTS = st.text(st.sampled_from("ab: é€😀\x85\u2028\u2029\x0b\x0c\x1c"), min_size=1)
COMMENTS = st.text(st.sampled_from("ab é\u2028"))


def parse(pieces: Iterable[bytes]) -> list[tuple[str, str]]:
    parser = EventParser()
    return [(event.name, event.data) for piece in pieces for event in parser.feed(piece)]


@tries(100)
@given(
    st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)) | COMMENTS, max_size=5),
    st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=1),
    st.booleans(),
    st.data(),
)
def test_events_are_the_same_wherever_the_body_is_cut(
    events: list[tuple[str, list[str]] | str], ends: list[str], marked: bool, data: st.DataObject
) -> None:
    text = ""
    for i, event in enumerate(events):
        fields = [f": {event}"] if isinstance(event, str) else [f"event: {event[0]}"]
        fields += [] if isinstance(event, str) else [f"data: {line}" for line in event[1]]
        text += "".join(line + ends[i % len(ends)] for line in [*fields, ""])
    body = ("\ufeff" * marked + text).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=9)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    expected = [(event[0], "\n".join(event[1])) for event in events if not isinstance(event, str)]
    assert parse(pieces) == expected
    assert parse(bytes([byte]) for byte in body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("data:{}\n\n", [("message", "{}")]),
        ("data:  x\n\n", [("message", " x")]),
        ("event: a\nid: 7\nretry: 9\nother: x\nlone\ndata: 1\n\n", [("a", "1")]),
        ("event: a\n\ndata: 1\n\n", [("message", "1")]),
        ("data: 1\n\ndata: 2\n", [("message", "1")]),
        ("data: 1\n\ndata: 2", [("message", "1")]),
        ("\n\n: sign of life\n\n", []),
    ],
)
def test_fields_are_read_as_the_standard_has_them(body: str, expected: list[tuple[str, str]]) -> None:
    assert parse([body.encode()]) == expected


def test_an_event_is_there_as_soon_as_its_last_byte_is() -> None:
    parser = EventParser()
    assert list(parser.feed(b"data: 1\r\n\r")) == [ServerSentEvent("message", "1")]
    assert list(parser.feed(b"\ndata: 2\n")) == []
    assert list(parser.feed(b"\n")) == [ServerSentEvent("message", "2")]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert parse([b"data: \xff\n\n"]) == [("message", "\ufffd")]
