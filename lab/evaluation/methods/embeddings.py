"""Sentence embeddings and logistic regression, for tasks with fixed classes only.

This is what a few lines of older tools give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from abmll.errors import AbmllError
from abmll.model import FewShotModel
from abmll.text.tasks import Example, Query
from lab.evaluation.cells import Answer, Effort
from lab.evaluation.methods.contract import Method

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Embeddings(Method):
    """Answers by logistic regression on sentence embeddings, without the language model.

    `encoder` names the model's sentence encoder. `inverse_penalty` is scikit-learn's C.
    """

    kind: Literal["embeddings"] = "embeddings"
    inverse_penalty: float = 1.0
    encoder: str = "all-minilm-l6-v2"

    needs_fixed_classes: ClassVar[bool] = True

    @property
    def sentence_encoder(self) -> str:
        """See `Method`."""
        return self.encoder

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`.

        Raises `AbmllError` for multiple choice, and where the model has no sentence encoder.
        """
        if len({item.options for item in support} | {query.options for query in queries}) != 1:
            raise AbmllError("embeddings need a task whose items all have the same options")
        options = support[0].options
        encoder = model.sentences
        if encoder is None:
            raise AbmllError(f"embeddings need a model with the sentence encoder {self.encoder}")
        classes, probabilities = fit_and_predict(
            support,
            [q.input for q in queries],
            lambda texts: encoder(texts).numpy(),
            self.inverse_penalty,
        )
        # A class that no example shows: its probability is that of add-one smoothing.
        unseen = 1 / (len(support) + len(options))
        rows = np.full((len(queries), len(options)), unseen)
        seen_share = 1 - unseen * (len(options) - len(classes))
        rows[:, [options.index(name) for name in classes]] = seen_share * probabilities
        return [Answer(tuple(row)) for row in rows.tolist()], Effort()


def fit_and_predict(
    support: Sequence[Example], inputs: Sequence[str], encode: Encode, inverse_penalty: float
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the classes that the support has, and their probabilities [n, classes] by input."""
    features = encode([*(example.input for example in support), *inputs])
    outputs = [example.output for example in support]
    if len(set(outputs)) == 1:
        return outputs[:1], np.ones((len(inputs), 1))
    regression = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(features[: len(support)], outputs)
    return list(regression.classes_), regression.predict_proba(features[len(support) :])
