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
    to the name of each class. `question` are the token ids of the question that the classes answer,
    empty without an instruction. The model computes the features; this is a record of tensors.
    """

    features: Tensor
    labels: Tensor
    classes: tuple[tuple[int, ...], ...]
    names: Tensor
    question: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        prompts: Sequence[EncodedPrompt],
        hidden: Sequence[Tensor],
        labels: Sequence[int],
        features: Features,
    ) -> Self | None:
        """Return the record of examples of one question, from the trunk states `hidden` of each.

        The states are [tokens, d]. `labels` are the positions of their labels among their
        continuations. Returns None where the classes are not fixed.
        """
        classes = prompts[0].continuations
        if len(classes) < 2 or options_differ(prompts):
            return None
        own = [states[: prompt.input_tokens] for prompt, states in zip(prompts, hidden, strict=True)]
        numbers = [
            classes.index(prompt.continuations[label]) for prompt, label in zip(prompts, labels, strict=True)
        ]
        found = features(own, [prompt.text for prompt in prompts])
        names = features.names(prompts[0].meanings or prompts[0].options, found.shape[1])
        return cls(found, torch.tensor(numbers), classes, names, prompts[0].question)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return named tensors for a safetensors file. Without a question there is none of it."""
        longest = max(map(len, self.classes))
        padded = [[*ids, *[-1] * (longest - len(ids))] for ids in self.classes]
        found = {
            "states": self.features.contiguous(),
            "labels": self.labels,
            "classes": torch.tensor(padded),
            "names": self.names.contiguous(),
        }
        return found | ({"question": torch.tensor(self.question)} if self.question else {})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Read what `to_tensors` returned."""
        classes = tuple(tuple(i for i in row if i >= 0) for row in tensors["classes"].tolist())
        features = tensors["states"]
        names = tensors.get("names", features.new_zeros(len(classes), features.shape[1]))
        question = tuple(tensors["question"].tolist()) if "question" in tensors else ()
        return cls(features, tensors["labels"], classes, names, question)


# What names of tensors begin with: these are the names of existing files.
_PREFIX = "head."


def all_to_tensors(examples: Sequence[ClassExamples]) -> dict[str, Tensor]:
    """Return named tensors of the class examples of all questions for a safetensors file."""
    return {
        f"{_PREFIX}{f'{number}.' if number else ''}{name}": tensor
        for number, own in enumerate(examples)
        for name, tensor in own.to_tensors().items()
    }


def all_from_tensors(tensors: Mapping[str, Tensor]) -> tuple[ClassExamples, ...]:
    """Read what `all_to_tensors` returned; other tensors are left alone."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_PREFIX):
            *number, own = name.removeprefix(_PREFIX).split(".")
            found.setdefault(int(number[0]) if number else 0, {})[own] = tensor
    return tuple(ClassExamples.from_tensors(found[number]) for number in sorted(found))
