"""A sentence encoder: texts to embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


class SentenceEncoder:
    """Embeddings of texts: the mean of the last layer's states over a text's tokens, at unit length (Reimers and Gurevych 2019).

    Takes a `transformers` encoder in evaluation mode and its tokenizer; of a text it reads the first `max_tokens`.
    """

    BATCH = 8

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int) -> None:
        self._model, self._tokenizer, self._max_tokens = model, tokenizer, max_tokens

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[n, e] in fp32 on the CPU, for at least one text."""
        order = sorted(
            range(len(texts)), key=lambda i: len(texts[i])
        )  # batches of like lengths have little padding
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, len(order), self.BATCH):
            chosen = order[start : start + self.BATCH]
            batch = self._tokenizer(
                [texts[i] or " " for i in chosen],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._model.device)
            weight = batch["attention_mask"][..., None].float()
            mean = (self._model(**batch).last_hidden_state * weight).sum(1) / weight.sum(1)
            for i, embedding in zip(chosen, normalize(mean.float(), dim=-1).cpu(), strict=True):
                found[i] = embedding
        return torch.stack(found)
