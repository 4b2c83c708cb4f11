"""pandas in and out. Needs the extra `pandas`, which is imported only when a frame is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from abmll_client.models import DecidedInput, Prediction
from abmll_client.plans import Plan, decide_all, predict_all
from abmll_client.questions import CasesLike, QuestionLike, answer_of

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


def cases_from_frame(
    frame: pd.DataFrame, questions: Sequence[str], *, text: str = "text"
) -> list[tuple[str, dict[str, Any]]]:
    """Take cases from a column of texts and a column of answers for each name in `questions`.

    A missing value says that the text does not tell the answer. Raises `KeyError` for a missing
    column.
    """
    columns = [[answer_of(value) for value in frame[name].tolist()] for name in questions]
    return [
        (text, dict(zip(questions, answers, strict=True)))
        for text, *answers in zip(_texts(frame, text), *columns, strict=True)
    ]


def decide_frame(
    frame: pd.DataFrame,
    text: str,
    questions: Iterable[QuestionLike] | None = None,
    cases: CasesLike | None = None,
    **fields: Any,
) -> Plan[pd.DataFrame]:
    """Answer questions about the column `text`; returns `decisions_frame` with its index."""
    results = yield from decide_all(_texts(frame, text), questions, cases, **fields)
    return decisions_frame(results, frame.index)


def decisions_frame(results: Sequence[DecidedInput], index: Any = None) -> pd.DataFrame:
    """Make a frame with a row an input: for each question its answer, confidence and decision.

    The columns are `<question>`, `<question>_confidence` and `<question>_decision`. Raises
    `ImportError` without pandas.
    """
    names = list(results[0].answers) if results else []
    columns = [f"{name}{part}" for name in names for part in ("", "_confidence", "_decision")]
    rows = [
        [
            cell
            for answer in row.answers.values()
            for cell in (answer.answer, answer.confidence, answer.decision)
        ]
        for row in results
    ]
    return _pandas().DataFrame(rows, index=index, columns=columns)


def predictions_frame(predictions: Sequence[Prediction], index: Any = None) -> pd.DataFrame:
    """Make a frame with a row a prediction: `COLUMNS` (mutual information in nats), probabilities.

    Each option has a column `probability_<option>`, unless rows differ in their options, as free
    text does. Raises `ImportError` without pandas.
    """
    pd = _pandas()
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


def _pandas() -> Any:
    try:
        import pandas as pd  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImportError("frames need pandas: pip install 'abmll-client[pandas]'") from error
    return pd


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    texts: list[str] = frame[column].tolist()
    for row, value in zip(frame.index, texts, strict=True):
        if not isinstance(value, str):
            raise ValueError(f"column {column!r}, row {row!r}: a text is needed, not {type(value).__name__}")
    return texts
