"""Folds: which support examples are held out together, and the answers to them.

docs/confidence.md says what they are for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abmll.text.tasks import (
    Example,
    Query,
    QuestionKey,
    examples_by_question,
    one_class_only,
    question_key,
)

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction

# Up to this many examples, or cases, each is a fold by itself. A larger support has FOLDS folds.
LEAVE_ONE_OUT = 16
FOLDS = 8
SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Fold:
    """Positions in a support: those held out, and those that an adapter is fitted to instead.

    With several questions some positions may be in neither (`make_folds`).
    """

    held_out: tuple[int, ...]
    kept: tuple[int, ...]

    def support(self, support: Sequence[Example]) -> tuple[Example, ...]:
        """Return the examples that the adapter is fitted to."""
        return tuple(support[i] for i in self.kept)

    def demonstrations(self, support: Sequence[Example], query: Query) -> tuple[Example, ...]:
        """Return the examples of the question of `query` that the adapter is fitted to."""
        key = question_key(query)
        return tuple(example for example in self.support(support) if question_key(example) == key)

    def queries(self, support: Sequence[Example]) -> tuple[Query, ...]:
        """Return the held-out examples without their labels."""
        return tuple(support[i].query for i in self.held_out)


@dataclass(frozen=True)
class HeldOutAnswer:
    """Answer to a labelled example: a probability for each of its options but `CANNOT_TELL`.

    `index` is the example's position in the support. `label` is the position of the right option,
    which is one beyond the probabilities where the input does not tell the answer. `answerable` is
    the probability that it does, if the example is declinable.
    """

    index: int
    probabilities: tuple[float, ...]
    label: int
    answerable: float | None = None

    @property
    def tellable(self) -> bool:
        """Return whether the input tells the answer; if not, only `answerable` can be judged."""
        return self.label < len(self.probabilities)

    @property
    def answer(self) -> int:
        """Return the position of the most probable option, the first of several equal ones."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def correct(self) -> bool:
        """Return whether the answer is the label."""
        return self.answer == self.label

    @property
    def nll(self) -> float:
        """Return the negative log-likelihood of the label, in nats. It must be `tellable`."""
        return -math.log(max(self.probabilities[self.label], SMALLEST_PROBABILITY))


def make_folds(support: Sequence[Example], count: int | None = None) -> list[Fold]:
    """Return `count` folds whose sizes and labels are as equal as possible.

    By default each example is a fold, up to `LEAVE_ONE_OUT` examples; a larger support has `FOLDS`
    folds. The same support gives the same folds. An example without which only one class would be
    left is never held out, since nothing can be adapted to one class. The list is empty where
    nothing can be held out, as with a single example.

    With several questions, folds are of cases in place of examples. A case is all examples with one
    input: what an adapter was fitted to must say nothing about the inputs that it is asked for. An
    example is not asked for where the other cases show its question fewer than two labels, although
    the support shows two.
    """
    if len(examples_by_question(support)) > 1:
        return _folds_of_cases(support, count)
    of_label = Counter(example.output for example in support)
    ranks = {label: rank for rank, label in enumerate(of_label)}
    dealt = _dealt([(ranks[example.output],) for example in support], count)
    folds = []
    for members in dealt:
        only = one_class_only(_without(support, members))
        held_out = [i for i in members if not only or of_label[support[i].output] > 1]
        kept = tuple(i for i in range(len(support)) if i not in held_out)
        if held_out and kept and not one_class_only([support[i] for i in kept]):
            folds.append(Fold(tuple(held_out), kept))
    return folds


def _folds_of_cases(support: Sequence[Example], count: int | None) -> list[Fold]:
    of_input: dict[str, list[int]] = {}
    for i, example in enumerate(support):
        of_input.setdefault(example.input, []).append(i)
    cases, questions = list(of_input.values()), examples_by_question(support)
    # The labels of a case, by question. A question that it does not answer has the rank 0.
    ranks = [[0] * len(questions) for _ in cases]
    number_of_case = {i: number for number, case in enumerate(cases) for i in case}
    for column, own in enumerate(questions.values()):
        labels = list(dict.fromkeys(support[i].output for i in own))
        for i in own:
            ranks[number_of_case[i]][column] = 1 + labels.index(support[i].output)
    fewest = {key: min(2, len({support[i].output for i in own})) for key, own in questions.items()}
    folds = []
    for members in _dealt(list(map(tuple, ranks)), count):
        out = {i for number in members for i in cases[number]}
        kept = tuple(i for i in range(len(support)) if i not in out)
        shown: dict[QuestionKey, set[str]] = {key: set() for key in questions}
        for i in kept:
            shown[question_key(support[i])].add(support[i].output)
        keys = {i: question_key(support[i]) for i in out}
        held_out = tuple(sorted(i for i, key in keys.items() if len(shown[key]) >= fewest[key]))
        if held_out:
            folds.append(Fold(held_out, kept))
    return folds


def _dealt(labels: Sequence[tuple[int, ...]], count: int | None) -> list[list[int]]:
    """Return the positions of `labels` in `count` parts of sizes and labels as equal as possible."""
    size = len(labels)
    if count is None:
        count = size if size <= LEAVE_ONE_OUT else FOLDS
    order = sorted(range(size), key=lambda i: (labels[i], i))
    return [sorted(order[start::count]) for start in range(min(count, size))]


def _without(support: Sequence[Example], held_out: Sequence[int]) -> list[Example]:
    return [example for i, example in enumerate(support) if i not in held_out]


def held_out_answers(
    support: Sequence[Example], indices: Sequence[int], predictions: Sequence[Prediction]
) -> list[HeldOutAnswer]:
    """Return the predictions for the examples at `indices`, each with its label.

    The examples have options.
    """
    return [
        HeldOutAnswer(
            i, found.predictive.probabilities, support[i].options.index(support[i].output), found.answerable
        )
        for i, found in zip(indices, predictions, strict=True)
    ]
