"""What the client tells a load balancer: the same for one adapter, and never a header that is
refused.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abmll_client import Client
from abmll_client.affinity import AFFINITY_HEADER, affinity_of

SUPPORT = [{"input": "great film", "output": "good"}, {"input": "dull", "output": "bad"}]
IDS = "adp_00000000000000000000000000000001"


@pytest.mark.parametrize(
    ("path", "body", "affinity"),
    [
        (f"/v1/adapters/{IDS}", None, IDS),
        (f"/v1/adapters/{IDS}/feedback", {"feedback": []}, IDS),
        ("/v1/names/tickets", {"adapter_id": IDS}, "tickets"),
        ("/v1/predict", {"adapter_id": IDS, "inputs": ["a"]}, IDS),
        ("/v1/predict", {"model": "tickets@3", "inputs": ["a"]}, "tickets%403"),
        ("/v1/decide", {"model": "Tür\n", "inputs": ["a"]}, "T%C3%BCr%0A"),
        ("/v1/adapters", None, None),
        ("/v1/limits", None, None),
        ("/v1/decide", {"inputs": ["a"], "questions": {"urgent": {}}}, None),
    ],
)
def test_a_request_names_its_adapter(path: str, body: dict[str, Any] | None, affinity: str | None) -> None:
    assert affinity_of(path, body) == affinity


def test_equal_examples_have_one_affinity_whatever_is_asked_with_them() -> None:
    made = affinity_of("/v1/adapters", {"support": SUPPORT})
    asked = affinity_of("/v1/predict", {"inputs": ["b"], "support": SUPPORT, "model": "base"})
    assert made == asked is not None
    assert affinity_of("/v1/predict", {"support": SUPPORT[:1]}) != made


@given(st.text(), st.text())
def test_any_name_makes_a_header_that_http_allows(one: str, other: str) -> None:
    affinities = [affinity_of("/v1/predict", {"model": name}) for name in (one, other)]
    assert all(a is None or (a.isascii() and a.isprintable() and " " not in a) for a in affinities)
    assert (affinities[0] == affinities[1]) == (one == other)


def test_the_client_sends_it() -> None:
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(404, json={"error": {"message": "no", "code": "not_found"}})

    client = Client("http://server", transport=httpx.MockTransport(answer), max_retries=0)
    for call in (lambda: client.adapter(IDS), client.limits):
        with pytest.raises(Exception, match="no"):
            call()
    assert [request.headers.get(AFFINITY_HEADER) for request in sent] == [IDS, None]
