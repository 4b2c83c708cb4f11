"""pandas in and out. Needs the extra `pandas`, which is imported only when a frame is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from abmll_client.plans import Plan, predict_all
from service import schemas

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("answer", "confidence", "decision", "margin", "mutual_information")
PROBABILITY = "probability_"


def support_from_frame(
    frame: pd.DataFrame, *, text: str = "text", label: str = "label"
) -> list[tuple[str, str]]:
    """Labelled examples from two columns of text. Raises `KeyError` for a missing column, `ValueError` for a missing value."""
    return list(zip(_texts(frame, text), _texts(frame, label), strict=True))


def predict_frame(frame: pd.DataFrame, text: str, **fields: Any) -> Plan[pd.DataFrame]:
    """The predictions of the column `text`, as `predictions_frame` has them, with the index of `frame`."""
    predictions = yield from predict_all(_texts(frame, text), **fields)
    return predictions_frame(predictions, frame.index)


def predictions_frame(predictions: Sequence[schemas.Prediction], index: Any = None) -> pd.DataFrame:
    """A row a prediction, in the columns `COLUMNS` (mutual information in nats) and `probability_<option>` for each option.

    The probabilities are left out where rows differ in their options, as free text does. Raises `ImportError` without pandas.
    """
    try:
        import pandas as pd  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImportError("frames need pandas: pip install 'abmll-serve[pandas]'") from error
    options = {tuple(row.option for row in prediction.distribution) for prediction in predictions}
    told = next(iter(options)) if len(options) == 1 else ()
    rows = [
        (
            prediction.answer,
            prediction.confidence,
            prediction.decision,
            prediction.margin,
            prediction.uncertainty.mutual_information,
            *(row.probability for row in prediction.distribution if told),
        )
        for prediction in predictions
    ]
    return pd.DataFrame(rows, index=index, columns=[*COLUMNS, *(f"{PROBABILITY}{option}" for option in told)])


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    texts: list[str] = frame[column].tolist()
    for row, value in zip(frame.index, texts, strict=True):
        if not isinstance(value, str):
            raise ValueError(f"column {column!r}, row {row!r}: a text is needed, not {type(value).__name__}")
    return texts
