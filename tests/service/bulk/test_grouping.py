"""Which rows are answered together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.bulk.contract import RowRequest
from service.bulk.grouping import GROUP_CHARS, ReadRow, groups
from service.bulk.lines import Row
from service.errors import InvalidRequestError, ServiceError
from tests.property_runs import tries

REQUESTS = st.one_of(
    st.builds(
        RowRequest, st.none(), st.sampled_from([None, "a", "b"]), st.integers(1, 9), st.integers(0, 60_000)
    ),
    st.just(InvalidRequestError("no")),
)


@given(requests=st.lists(REQUESTS, max_size=40))
@tries(60)
def test_groups_keep_the_order_and_have_one_key_and_a_bounded_size(
    requests: list[RowRequest | ServiceError],
) -> None:
    rows = [ReadRow(Row(n + 1, n + 1, str(n), {}), request) for n, request in enumerate(requests)]
    found = list(groups(rows, most_queries=8))
    assert [row for group in found for row in group] == rows
    for group in found:
        asked = [row.asked for row in group if isinstance(row.asked, RowRequest)]
        assert group
        assert len({request.key for request in asked}) <= 1
        assert len(asked) <= 1 or asked[0].key is not None
        if len(group) > 1:
            assert sum(request.queries for request in asked) + len(group) - len(asked) <= 8
            assert sum(request.chars for request in asked) <= GROUP_CHARS


def test_equal_rows_that_follow_each_other_are_one_group() -> None:
    rows = [ReadRow(Row(n, n, str(n), {}), RowRequest(None, key, 1, 10)) for n, key in enumerate("aaabba")]
    assert [len(group) for group in groups(rows)] == [3, 2, 1]
