"""What whitens the states that the Gaussian process beside the adapter sees (`abmll/head.py`): training tasks' inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from abmll.adapt import TOKENS_PER_TRUNK
from abmll.head import Whitening, mean_state
from abmll.meta.episodes import fitting_examples
from abmll.model import FewShotModel
from abmll.rows import collate, packed_length, token_batches
from abmll.tasks import Task

# Inputs of a task whose states are looked at.
INPUTS = 128


def fit_whitening(model: FewShotModel, tasks: Sequence[Task], max_row_tokens: int) -> Whitening | None:
    """That of up to `INPUTS` inputs of each task with fixed classes, for which the process is; None if there is no such task.

    Inputs of more than `max_row_tokens` (with their options) are left out. The same arguments give the same map.
    Raises `AbmllError` where none of a task's fits.
    """
    found = []
    for task in tasks:
        if len({frozenset(example.options) for example in task.train}) != 1 or not task.train[0].options:
            continue
        examples = fitting_examples(model.encoder, task, INPUTS, max_row_tokens, seed=0, balanced=False)
        prompts = [replace(example.prompt, continuations=()) for example in examples]
        states = []
        for chunk in token_batches([packed_length(prompt) for prompt in prompts], TOKENS_PER_TRUNK):
            rows = collate([prompts[i] for i in chunk], model.backbone.device)
            states += [mean_state(hidden) for hidden in model.backbone.trunk(rows).split(rows.lengths)]
        found.append(torch.stack(states))
    return Whitening.of(found) if found else None
