"""pandas in and out. Needs the extra `pandas`, which is imported only when a frame is made."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from abmll_client.models import Prediction
from abmll_client.plans import Plan, predict_all

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("answer", "confidence", "decision", "margin", "mutual_information")
PROBABILITY = "probability_"


def support_from_frame(
    frame: pd.DataFrame, *, text: str = "text", label: str = "label"
) -> list[tuple[str, str]]:
    """Take labelled examples from two columns of texts.

    Raises `KeyError` for a missing column, `ValueError` for a missing value.
    """
    return list(zip(_texts(frame, text), _texts(frame, label), strict=True))


def predict_frame(frame: pd.DataFrame, text: str, **fields: Any) -> Plan[pd.DataFrame]:
    """Answer the column `text`; returns `predictions_frame` with the index of `frame`.

    Warns where that index repeats: joining on it would pair each row with the answers of others.
    """
    if not frame.index.is_unique:
        warnings.warn(
            "the index of the frame repeats, so frame.join(answers) would give more rows than it has: put "
            "them side by side with pandas.concat([frame, answers], axis=1)",
            stacklevel=4,
        )
    predictions = yield from predict_all(_texts(frame, text), **fields)
    return predictions_frame(predictions, frame.index)


def predictions_frame(predictions: Sequence[Prediction], index: Any = None) -> pd.DataFrame:
    """Make a frame with a row a prediction: `COLUMNS` (mutual information in nats), probabilities.

    Each option has a column `probability_<option>`, unless rows differ in their options, as free
    text does. Raises `ImportError` without pandas.
    """
    try:
        import pandas as pd  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImportError("frames need pandas: pip install 'abmll-client[pandas]'") from error
    found = {tuple(row.option for row in prediction.distribution) for prediction in predictions}
    options = next(iter(found)) if len(found) == 1 else ()
    rows = [
        (
            prediction.answer,
            prediction.confidence,
            prediction.decision,
            prediction.margin,
            prediction.uncertainty.mutual_information,
            *(row.probability for row in prediction.distribution if options),
        )
        for prediction in predictions
    ]
    columns = [*COLUMNS, *(f"{PROBABILITY}{option}" for option in options)]
    return pd.DataFrame(rows, index=index, columns=columns)


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    texts: list[str] = frame[column].tolist()
    for row, value in zip(frame.index, texts, strict=True):
        if not isinstance(value, str):
            raise ValueError(f"column {column!r}, row {row!r}: a text is needed, not {type(value).__name__}")
    return texts
