"""Labels as texts; labels of predictions: of which calibration, and whether the prediction was
right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abmll.errors import OptionsError
from abmll.text.tasks import CANNOT_TELL
from service.errors import InvalidOptionsError, InvalidRequestError, UnknownPredictionError
from service.gating.questions import AdapterQuestion
from service.gating.records import Label
from service.gating.state import GateState, option_digests, text_digest


@dataclass(frozen=True)
class JudgedLabels:
    """Whether predictions were right, by id, in the calibration at each position.

    `contradicted` has the ids of those that a label says the opposite of than an earlier one.
    """

    by_calibration: Mapping[int, Mapping[str, bool]]
    contradicted: tuple[str, ...]


def label_text(label: Label, question: AdapterQuestion | None, param: str) -> str:
    """Return the text that stands for a label; `CANNOT_TELL` is that of an input that does not
    tell.

    A label is what the caller of the question calls an option, or the option itself. Raises
    `InvalidRequestError` at `param` for a label without a text that is of no question, and
    `InvalidOptionsError` for one that is no option of its question.
    """
    if question is None:
        if isinstance(label, str):
            return label
        message = "the label is a text: only the questions of an adapter of cases have others"
        raise InvalidRequestError(message, param)
    if label is None or label == CANNOT_TELL:
        return CANNOT_TELL
    try:
        return question.typed.option_of(label)
    except OptionsError as error:
        if label in question.question.options:
            return str(label)
        raise InvalidOptionsError(str(error), param) from error


def judge_labels(
    calibrations: Sequence[tuple[AdapterQuestion | None, GateState]], labels: Sequence[tuple[str, Label]]
) -> JudgedLabels:
    """Judge labels, each a pair of prediction id and label; the first label of a prediction stays.

    Raises `UnknownPredictionError`, `InvalidOptionsError` and `InvalidRequestError` that name the
    row.
    """
    found: dict[int, dict[str, bool]] = {}
    contradicted: dict[str, None] = {}  # a set in the order of the labels
    for i, (id, given) in enumerate(labels):
        number = next((n for n, (_, state) in enumerate(calibrations) if id in state.logged), None)
        if number is None:
            message = f"no prediction {id[:100]!r} is remembered under this calibration"
            raise UnknownPredictionError(message, f"feedback[{i}].prediction_id")
        question, state = calibrations[number]
        entry, label = state.logged[id], label_text(given, question, f"feedback[{i}].label")
        if entry.options and option_digests([label])[0] not in entry.options:
            raise InvalidOptionsError("the label is not among the input's options", f"feedback[{i}].label")
        correct = text_digest(label) == entry.answer
        own = found.setdefault(number, {})
        if own.setdefault(id, state.labelled.get(id, correct)) != correct:
            contradicted[id] = None
    return JudgedLabels(found, tuple(contradicted))
