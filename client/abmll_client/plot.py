"""Pictures of answers and of an adapter. Needs the extra `plot` (matplotlib).

Each function draws into `ax`, or into a new figure, and returns the axes. The numbers behind a
picture have functions of their own, which need no matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from abmll_client.models import Diagnosis, Prediction, QuestionDiagnosis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST = 48  # characters of a text on the label board


class RiskPoint(NamedTuple):
    """The answers of at least `confidence`: their share of all, and their share of errors."""

    confidence: float
    coverage: float
    risk: float


class Bin(NamedTuple):
    """Answers of like confidence: their mean confidence, the share that is right, and how many."""

    confidence: float
    accuracy: float
    answers: int


def risk_coverage_points(predictions: Sequence[Prediction], labels: Sequence[str]) -> list[RiskPoint]:
    """Return a point for each threshold on the confidence, from the highest down.

    Answers of the same confidence are above a threshold together. Raises `ValueError` where
    predictions and labels are not as many.
    """
    ranked = sorted(zip(predictions, labels, strict=True), key=lambda pair: -pair[0].confidence)
    points, answered, wrong = [], 0, 0
    for confidence, same in groupby(ranked, key=lambda pair: pair[0].confidence):
        errors = [prediction.answer != label for prediction, label in same]
        answered, wrong = answered + len(errors), wrong + sum(errors)
        points.append(RiskPoint(confidence, answered / len(ranked), wrong / answered))
    return points


def reliability_bins(predictions: Sequence[Prediction], labels: Sequence[str], bins: int = 10) -> list[Bin]:
    """Return the bins of equal width in confidence that have answers.

    Raises `ValueError` where predictions and labels are not as many, and for fewer than 1 bin.
    """
    if bins < 1:
        raise ValueError("give at least 1 bin")
    filled: dict[int, list[tuple[float, bool]]] = {}
    for prediction, label in zip(predictions, labels, strict=True):
        number = min(int(prediction.confidence * bins), bins - 1)
        filled.setdefault(number, []).append((prediction.confidence, prediction.answer == label))
    return [
        Bin(sum(c for c, _ in rows) / len(rows), sum(right for _, right in rows) / len(rows), len(rows))
        for _, rows in sorted(filled.items())
    ]


def risk_coverage(
    predictions: Sequence[Prediction],
    labels: Sequence[str],
    *,
    target_error: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of wrong answers against the share of inputs that are answered.

    `target_error` is drawn as a line. The curve shows these labels only: that new inputs keep to
    the line takes a certified gate. Raises as `risk_coverage_points`.
    """
    points = risk_coverage_points(predictions, labels)
    ax = ax or _axes()
    ax.plot([p.coverage for p in points], [p.risk for p in points], drawstyle="steps-post")
    if target_error is not None:
        ax.axhline(target_error, linestyle="--", color="gray")
        ax.annotate(f"target error {target_error:g}", (0.01, target_error), va="bottom", color="gray")
    ax.set(xlabel="coverage: share answered", ylabel="risk: share of answers wrong", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    return ax


def reliability(
    predictions: Sequence[Prediction], labels: Sequence[str], *, bins: int = 10, ax: Axes | None = None
) -> Axes:
    """Draw the share of right answers against the confidence, beside the diagonal of honest ones.

    The area of a point is proportional to its number of answers. Raises as `reliability_bins`.
    """
    found = reliability_bins(predictions, labels, bins)
    ax = ax or _axes()
    ax.plot([0, 1], [0, 1], linestyle="--", color="gray")
    most = max((b.answers for b in found), default=1)
    ax.scatter(
        [b.confidence for b in found], [b.accuracy for b in found], s=[200 * b.answers / most for b in found]
    )
    ax.set(xlabel="confidence", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    return ax


def label_board(
    diagnosis: Diagnosis | QuestionDiagnosis, texts: Sequence[str] = (), *, ax: Axes | None = None
) -> Axes:
    """Draw the labels that look wrong: a bar for each, as long as the held-out answer is probable.

    `texts` are the inputs of the support in their order; with them, a bar names its text.
    """
    suspects = sorted(diagnosis.suspects, key=lambda suspect: suspect.probability)
    names = [
        f"{_short(texts[s.index]) if texts else f'example {s.index}'}\n{s.label}, or {s.answer}?"
        for s in suspects
    ]
    ax = ax or _axes(height=1 + 0.5 * len(names))
    ax.barh(range(len(names)), [suspect.probability for suspect in suspects])
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set(xlim=(0, 1), xlabel="probability of the other label")
    ax.set_title("No label looks wrong" if not names else "Labels to look at", parse_math=False)
    return ax


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _axes(height: float = 4.0) -> Axes:
    from matplotlib import pyplot  # noqa: PLC0415

    ax: Axes = pyplot.subplots(figsize=(6, height), layout="constrained")[1]
    return ax
