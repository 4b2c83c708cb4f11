"""Whitening for the Gaussian process beside the adapter, from inputs of the training tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from abmll.adaptation.support import trunk_states
from abmll.meta.episodes import fitting_examples
from abmll.model import FewShotModel
from abmll.similarity.features import Whitening, mean_state
from abmll.text.prompting import options_differ
from abmll.text.tasks import Task

# Most inputs of a task whose states are used.
INPUTS = 128


def fit_whitening(model: FewShotModel, tasks: Sequence[Task], max_row_tokens: int) -> Whitening | None:
    """Return the whitening of up to `INPUTS` inputs of each task with fixed classes.

    The Gaussian process is only for such tasks; the result is None where there are none. Inputs of
    more than `max_row_tokens` (with their options) are left out. The same arguments give the same
    result. Raises `AbmllError` where no input of a task fits.
    """
    found = []
    for task in tasks:
        examples = fitting_examples(model.encoder, task, INPUTS, max_row_tokens, seed=0, balanced=False)
        prompts = [example.prompt for example in examples]
        if len(prompts[0].continuations) > 1 and not options_differ(prompts):
            states = trunk_states(model.backbone, [replace(prompt, continuations=()) for prompt in prompts])
            found.append(torch.stack([mean_state(hidden) for hidden in states]))
    return Whitening.of(found) if found else None
