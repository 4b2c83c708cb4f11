"""Equivalence of answers, judged by a natural-language-inference model."""

from __future__ import annotations

from typing import Any

import torch

from abmll.errors import UnsupportedModelError
from abmll.prediction.semantic import normalise


class EntailmentMatch:
    """An `Equivalence`: with the query before both, `a` entails `b` and `b` entails `a`.

    `model` is a `transformers` sequence classifier in evaluation mode with a class `entailment`.
    Its `tokenizer` must cut from the left: a long query loses its beginning, and the answers
    stay whole. Answers that `normalise` to the same text are the same without the model. Raises
    `UnsupportedModelError` for a model without that class, and `ValueError` for a tokenizer that
    cuts from the right.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        names = {str(name).casefold(): int(i) for i, name in model.config.id2label.items()}
        if "entailment" not in names:
            raise UnsupportedModelError(f"no class `entailment` among {', '.join(sorted(names))}")
        if tokenizer.truncation_side != "left":
            raise ValueError("the tokenizer must cut from the left")
        self._model, self._tokenizer, self._entailment = model, tokenizer, names["entailment"]
        self._max_tokens = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    @torch.no_grad()
    def same(self, query_text: str, a: str, b: str) -> bool:
        """See `Equivalence`. One pass has both directions."""
        if normalise(a) == normalise(b):
            return True
        one, other = f"{query_text} {a}", f"{query_text} {b}"
        inputs = self._tokenizer(
            [one, other],
            [other, one],
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            split_special_tokens=True,  # what reads like a control token is text
            return_tensors="pt",
        ).to(self._model.device)
        verdicts = self._model(**inputs).logits.argmax(-1)
        return bool((verdicts == self._entailment).all())
