"""What callers give as lists: a single text, row or frame is refused, and half a character named."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from abmll_client import calls, plans
from abmll_client.arguments import input_rows, labelled_rows
from service.embedded import Embedded
from tests.client.conftest import OPTIONS, SUPPORT

ROW = {"input": "good", "output": "yes"}
HALF = "x \ud83d"


@pytest.mark.parametrize(
    ("examples", "kind", "message"),
    [
        (["ok", "no"], TypeError, r"support\[0\] is a \(text, label\) pair or a row, not a text"),
        ([("good", "yes"), "no"], TypeError, r"support\[1\] is a"),
        ([b"ok"], TypeError, r"support\[0\] .* not bytes"),
        ("ok", TypeError, "support are a list of texts, not one text"),
        (ROW, TypeError, "support are a list of rows, not one row"),
        (pd.DataFrame([ROW]), TypeError, "support are a list, not a frame"),
        ([5], TypeError, r"support\[0\] .* not int"),
        ([None], TypeError, r"support\[0\] .* not NoneType"),
        ([("good", 1)], TypeError, r"support\[0\] is a pair of two texts, not of a text and int"),
        ([(float("nan"), "yes")], TypeError, "not of float and a text"),
        ([("good", "yes", "no")], ValueError, r"support\[0\] is a pair of text and label, not 3 values"),
        ([("good",)], ValueError, "not 1 values"),
        ([("good", "yes"), (HALF, "no")], ValueError, r"support\[1\]\.input holds .ud83d, half of a character"),
        ([{**ROW, "options": ["yes", "\udc00"]}], ValueError, r"support\[0\]\.options\[1\] holds .udc00"),
    ],
)  # fmt: skip
def test_examples_that_are_none_are_refused_by_place(
    examples: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        calls.create_adapter(examples)
    assert str(caught.value).isprintable()
    with pytest.raises(kind, match=message):
        calls.predict(["new"], support=examples)
    with pytest.raises(kind, match=message.replace("support", "examples")):
        calls.calibrate("adp_0", examples)


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ("one text", TypeError, "inputs are a list of texts, not one text"),
        (b"bytes", TypeError, "not one text"),
        ({"input": "good"}, TypeError, "inputs are a list of rows, not one row"),
        (pd.DataFrame([ROW]), TypeError, "not a frame: take its column"),
        (["good", None], TypeError, r"inputs\[1\] is a text or a row, not NoneType"),
        (pd.Series(["good", float("nan")]), TypeError, r"inputs\[1\] .* not float"),
        ([("good", "yes")], TypeError, r"inputs\[0\] .* not tuple"),
        (["good", HALF], ValueError, r"inputs\[1\] holds .ud83d"),
        ([{"input": HALF}], ValueError, r"inputs\[0\]\.input holds .ud83d"),
    ],
)
def test_inputs_that_are_none_are_refused_by_place(inputs: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        calls.predict(inputs, adapter_id="adp_0")
    with pytest.raises(kind, match=message):
        next(plans.predict_all(inputs, adapter_id="adp_0"))


def test_half_a_character_is_named_in_every_other_field() -> None:
    with pytest.raises(ValueError, match=r"options\[1\] holds .ud83d, half of a character"):
        calls.create_adapter(SUPPORT, options=["yes", HALF])
    with pytest.raises(ValueError, match=r"feedback\[0\]\.label holds"):
        calls.feedback("adp_0", {"prd_0": HALF})


def test_whatever_holds_pairs_and_texts_is_taken(embedded: Embedded) -> None:
    client = embedded.client()
    expected = client.predict(["fine 🙂"], support=SUPPORT, options=OPTIONS)
    pairs: list[Any] = [np.array(SUPPORT), [list(pair) for pair in SUPPORT], iter(SUPPORT)]
    rows = [{"input": text, "output": label} for text, label in SUPPORT]
    for support in (*pairs, rows, zip(*map(list, zip(*SUPPORT, strict=True)), strict=True)):
        found = client.predict(pd.Series(["fine 🙂"]), support=support, options=OPTIONS)
        assert found.adapter_id == expected.adapter_id
        assert found.predictions[0].answer == expected.predictions[0].answer
    assert labelled_rows(SUPPORT) == rows
    assert input_rows(iter(["a", {"input": "b"}])) == ["a", {"input": "b"}]
