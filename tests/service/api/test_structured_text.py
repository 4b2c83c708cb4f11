"""JSON values as one text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.structured_text import text_of
from service.schemas.structure import MAX_DEPTH, check_structure


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\n  here", "as it is\n  here"),
        ("", ""),
        ({"b": 1, "a": "x"}, "b: 1\na: x"),
        ({"n": 1.0, "e": 1e22, "big": 2**70}, "n: 1.0\ne: 1e+22\nbig: 1180591620717411303424"),
        (
            {"yes": True, "no": False, "none": None, "empty": ""},
            'yes: true\nno: false\nnone: null\nempty: ""',
        ),
        ({"o": {}, "l": []}, "o: {}\nl: []"),
        ({}, "{}"),
        ([], "[]"),
        ([1, "two", None], "- 1\n- two\n- null"),
        ({"order": {"id": 5, "items": ["tea", "jam"]}}, "order:\n  id: 5\n  items:\n    - tea\n    - jam"),
        (
            [{"name": "tea", "price": 2}, {"name": "jam"}],
            "- name: tea\n  price: 2\n- name: jam",
        ),
        ([[1, 2], [3]], "- - 1\n  - 2\n- - 3"),
        ({"mail": "Hello,\n\nbye"}, "mail:\n  Hello,\n  \n  bye"),
        (["a\nb"], "- a\n  b"),
        ({"é: ü": "日本"}, "é: ü: 日本"),
    ],
)
def test_values_are_lines_as_yaml_has_them(value: Any, text: str) -> None:
    check_structure(value)
    assert text_of(value) == text


def nested(depth: int, inner: Any = 1) -> Any:
    for number in range(depth):
        inner = [inner] if number % 2 else {"k": inner}
    return inner


def test_the_depth_is_limited() -> None:
    check_structure(nested(MAX_DEPTH))
    assert text_of(nested(MAX_DEPTH)).endswith("1")
    for depth in (MAX_DEPTH + 1, 10_000):
        with pytest.raises(ValueError, match="nested deeper than 64 levels"):
            check_structure(nested(depth))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(number: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        check_structure({"a": [number]})


def test_the_same_value_has_the_same_text_whatever_its_json_looked_like() -> None:
    one, other = (json.loads(text) for text in ('{"a": [1, 2]}', '{"a":[1,2]}'))
    assert text_of(one) == text_of(other)
    assert text_of({"a": 1, "b": 2}) != text_of({"b": 2, "a": 1})
