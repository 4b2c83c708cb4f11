"""Examples of a task with fixed classes, as the Gaussian process beside the adapter uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from abmll.similarity.features import Features
from abmll.text.prompting import EncodedPrompt, options_differ


@dataclass(frozen=True)
class ClassExamples:
    """Features and classes of n examples with C fixed classes.

    `features` [n, d] are h of each example, `labels` [n] the numbers of their classes, and
    `classes` the token ids of each class. `names` [C, d] times h(x) is the likeness of an input x
    to the name of each class. The model computes the features; this is a record of tensors.
    """

    features: Tensor
    labels: Tensor
    classes: tuple[tuple[int, ...], ...]
    names: Tensor

    @classmethod
    def of(
        cls,
        prompts: Sequence[EncodedPrompt],
        hidden: Sequence[Tensor],
        labels: Sequence[int],
        features: Features,
    ) -> Self | None:
        """Return the record of examples, from the trunk states `hidden` [tokens, d] of each.

        `labels` are the positions of their labels among their continuations. Returns None where the
        classes are not fixed.
        """
        classes = prompts[0].continuations
        if len(classes) < 2 or options_differ(prompts):
            return None
        own = [states[: len(prompt.prompt)] for prompt, states in zip(prompts, hidden, strict=True)]
        numbers = [
            classes.index(prompt.continuations[label]) for prompt, label in zip(prompts, labels, strict=True)
        ]
        found = features(own, [prompt.text for prompt in prompts])
        names = features.names(prompts[0].options, found.shape[1])
        return cls(found, torch.tensor(numbers), classes, names)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return named tensors for a safetensors file. Their names are those of existing files."""
        longest = max(map(len, self.classes))
        padded = [[*ids, *[-1] * (longest - len(ids))] for ids in self.classes]
        return {
            "head.states": self.features.contiguous(),
            "head.labels": self.labels,
            "head.classes": torch.tensor(padded),
            "head.names": self.names.contiguous(),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Read what `to_tensors` returned. Returns None where `tensors` have no examples."""
        if "head.states" not in tensors:
            return None
        classes = tuple(tuple(i for i in row if i >= 0) for row in tensors["head.classes"].tolist())
        features = tensors["head.states"]
        names = tensors.get("head.names", features.new_zeros(len(classes), features.shape[1]))
        return cls(features, tensors["head.labels"], classes, names)
