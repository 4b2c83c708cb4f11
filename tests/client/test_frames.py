"""Data frames in and out, against the predictions that the surface gives row by row."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

from abmll_client import support_from_frame
from abmll_client.frames import COLUMNS, predictions_frame
from service.embedded import Embedded
from tests.client.conftest import OPTIONS, SUPPORT

FRAME = pd.DataFrame({"ticket": ["one", "two", "three"], "other": 1}, index=[7, 3, 7])


def test_a_frame_is_answered_row_by_row_with_its_own_index(shared_embedded: Embedded) -> None:
    with shared_embedded.client() as client:
        support = support_from_frame(pd.DataFrame(SUPPORT, columns=["text", "label"]))
        assert support == SUPPORT
        adapter = client.create_adapter(support, options=OPTIONS).id
        answered = client.predict_frame(FRAME, text="ticket", adapter_id=adapter, gate={"min_margin": 0.02})
        expected = client.predict(FRAME["ticket"], adapter_id=adapter, gate={"min_margin": 0.02}).predictions
    assert list(answered.columns) == [*COLUMNS, "probability_yes", "probability_no"]
    assert answered.index.equals(FRAME.index)
    for (_, row), prediction in zip(answered.iterrows(), expected, strict=True):
        assert (row.answer, row.confidence, row.decision, row.margin) == (
            prediction.answer,
            prediction.confidence,
            prediction.decision,
            prediction.margin,
        )
        assert row.mutual_information == prediction.uncertainty.mutual_information
        assert {"yes": row.probability_yes, "no": row.probability_no} == {
            row.option: row.probability for row in prediction.distribution
        }
    pd.testing.assert_series_equal(
        answered[["probability_yes", "probability_no"]].max(axis=1), answered["confidence"], check_names=False
    )


def test_rows_of_different_options_have_no_probability_columns(shared_embedded: Embedded) -> None:
    with shared_embedded.client() as client:
        inputs = [{"input": "x", "options": ["a", "b"]}, {"input": "x", "options": ["b", "c"]}]
        predictions = client.predict(inputs, support=SUPPORT, options=OPTIONS).predictions
    assert list(predictions_frame(predictions).columns) == list(COLUMNS)
    assert list(predictions_frame(predictions[:1]).columns) == [*COLUMNS, "probability_a", "probability_b"]


def test_an_empty_frame_gives_an_empty_frame(shared_embedded: Embedded) -> None:
    with shared_embedded.client() as client:
        nothing = client.predict_frame(FRAME[:0], text="ticket", adapter_id="adp_0")
    assert list(nothing.columns) == list(COLUMNS)
    assert len(nothing) == 0


def test_what_is_no_text_is_named_by_its_row(shared_embedded: Embedded) -> None:
    frame = pd.DataFrame({"text": ["a", None], "label": ["x", 3]}, index=["first", "second"])
    with pytest.raises(ValueError, match="column 'text', row 'second'"):
        support_from_frame(frame)
    with pytest.raises(KeyError, match="ticket"), shared_embedded.client() as client:
        client.predict_frame(frame, text="ticket", adapter_id="adp_0")


def test_without_pandas_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from abmll_client.frames import predictions_frame\n"
        "try: predictions_frame([])\n"
        "except ImportError as error: print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "frames need pandas: pip install 'abmll-client[pandas]'"
