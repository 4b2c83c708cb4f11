"""Sentence encoder: texts to embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


class SentenceEncoder:
    """Encoder of texts: the mean of the last layer's states over a text's tokens, at length 1.

    The method is that of Reimers and Gurevych (2019). `model` is a `transformers` encoder in
    evaluation mode, and `tokenizer` its tokenizer. Of a text, the first `max_tokens` are read.
    """

    BATCH = 8

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int) -> None:
        self._model, self._tokenizer, self.max_tokens = model, tokenizer, max_tokens

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings [n, e] of at least one text, in fp32 on the CPU."""
        # Batches of similar lengths have little padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, len(order), self.BATCH):
            chosen = order[start : start + self.BATCH]
            batch = self._tokenizer(
                [texts[i] or " " for i in chosen],
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                split_special_tokens=True,  # what reads like a control token is text
                return_tensors="pt",
            ).to(self._model.device)
            weight = batch["attention_mask"][..., None].float()
            mean = (self._model(**batch).last_hidden_state * weight).sum(1) / weight.sum(1)
            for i, embedding in zip(chosen, normalize(mean.float(), dim=-1).cpu(), strict=True):
                found[i] = embedding
        return torch.stack(found)
