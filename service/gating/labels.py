"""Labels as texts; labels of predictions: of which calibration, and whether the prediction was right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abmll.text.questions import NO, YES
from abmll.text.tasks import CANNOT_TELL
from service.errors import InvalidOptionsError, InvalidRequestError, UnknownPredictionError
from service.gating.records import Label
from service.gating.state import GateState, option_digests, text_digest


@dataclass(frozen=True)
class JudgedLabels:
    """Whether predictions were right, by id, in the calibration at each position.

    `contradicted` has the ids of those that a label says the opposite of than an earlier one.
    """

    by_calibration: Mapping[int, Mapping[str, bool]]
    contradicted: tuple[str, ...]


def label_text(label: Label, param: str, *, of_question: bool) -> str:
    """Return the text that stands for a label; `CANNOT_TELL` is that of an input that does not tell.

    Raises `InvalidRequestError` at `param` for a label without a text that is of no question.
    """
    if isinstance(label, str):
        return label
    if not of_question:
        message = "the label is a text: null, true and false answer the questions of an adapter of cases"
        raise InvalidRequestError(message, param)
    return CANNOT_TELL if label is None else YES if label else NO


def judge_labels(states: Sequence[GateState], labels: Sequence[tuple[str, Label]]) -> JudgedLabels:
    """Judge labels, each a pair of prediction id and label; the first label of a prediction stays.

    Raises `UnknownPredictionError`, `InvalidOptionsError` and `InvalidRequestError` that name the
    row.
    """
    found: dict[int, dict[str, bool]] = {}
    contradicted: dict[str, None] = {}  # a set in the order of the labels
    for i, (id, given) in enumerate(labels):
        number = next((n for n, state in enumerate(states) if id in state.logged), None)
        if number is None:
            message = f"no prediction {id[:100]!r} is remembered under this calibration"
            raise UnknownPredictionError(message, f"feedback[{i}].prediction_id")
        state, entry = states[number], states[number].logged[id]
        label = label_text(given, f"feedback[{i}].label", of_question=bool(state.question))
        if entry.options and option_digests([label])[0] not in entry.options:
            raise InvalidOptionsError("the label is not among the input's options", f"feedback[{i}].label")
        correct = text_digest(label) == entry.answer
        own = found.setdefault(number, {})
        if own.setdefault(id, state.labelled.get(id, correct)) != correct:
            contradicted[id] = None
    return JudgedLabels(found, tuple(contradicted))
