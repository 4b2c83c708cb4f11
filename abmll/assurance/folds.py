"""Folds: which support examples are held out together, and the answers to them.

docs/confidence.md says what they are for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abmll.text.tasks import Example, Query, one_class_only

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction

# Up to this many examples, each is a fold by itself. A larger support has FOLDS folds.
LEAVE_ONE_OUT = 16
FOLDS = 8
SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Fold:
    """Positions in a support: those held out, and those that an adapter is fitted to instead."""

    held_out: tuple[int, ...]
    kept: tuple[int, ...]

    def support(self, support: Sequence[Example]) -> tuple[Example, ...]:
        """Return the examples that the adapter is fitted to."""
        return tuple(support[i] for i in self.kept)

    def queries(self, support: Sequence[Example]) -> tuple[Query, ...]:
        """Return the held-out examples without their labels."""
        return tuple(support[i].query for i in self.held_out)


@dataclass(frozen=True)
class HeldOutAnswer:
    """Answer to a labelled example: a probability for each of its options.

    `index` is the example's position in the support. `label` is the position of the right option.
    """

    index: int
    probabilities: tuple[float, ...]
    label: int

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
        """Return the negative log-likelihood of the label, in nats."""
        return -math.log(max(self.probabilities[self.label], SMALLEST_PROBABILITY))


def make_folds(support: Sequence[Example], count: int | None = None) -> list[Fold]:
    """Return `count` folds whose sizes and labels are as equal as possible.

    By default each example is a fold, up to `LEAVE_ONE_OUT` examples; a larger support has `FOLDS`
    folds. The same support gives the same folds. An example without which only one class would be
    left is never held out, since nothing can be adapted to one class. The list is empty where
    nothing can be held out, as with a single example.
    """
    size = len(support)
    if count is None:
        count = size if size <= LEAVE_ONE_OUT else FOLDS
    of_label = Counter(example.output for example in support)
    order = sorted(range(size), key=lambda i: (list(of_label).index(support[i].output), i))
    dealt = [order[start::count] for start in range(min(count, size))]
    folds = []
    for members in dealt:
        held_out = sorted(members)
        if one_class_only(_without(support, held_out)):
            held_out = [i for i in held_out if of_label[support[i].output] > 1]
        kept = tuple(i for i in range(size) if i not in held_out)
        if held_out and kept and not one_class_only([support[i] for i in kept]):
            folds.append(Fold(tuple(held_out), kept))
    return folds


def _without(support: Sequence[Example], held_out: Sequence[int]) -> list[Example]:
    return [example for i, example in enumerate(support) if i not in held_out]


def held_out_answers(
    support: Sequence[Example], indices: Sequence[int], predictions: Sequence[Prediction]
) -> list[HeldOutAnswer]:
    """Return the predictions for the examples at `indices`, each with its label.

    The examples have options.
    """
    return [
        HeldOutAnswer(i, found.predictive.probabilities, support[i].options.index(support[i].output))
        for i, found in zip(indices, predictions, strict=True)
    ]
