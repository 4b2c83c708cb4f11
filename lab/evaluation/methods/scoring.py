"""Log-probabilities of whole texts, not normalised over options.

This is the one place where methods reach behind `FewShotModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.option_runs import OptionRun, Sampling, score_chunk
from abmll.text.prompting import EncodedPrompt


def log_probs(model: FewShotModel, prompts: Sequence[EncodedPrompt]) -> list[list[float]]:
    """Return the log-probability in nats of every continuation of every prompt.

    It is that under the mean of the model's theta.
    """
    theta = TaskPosterior.start(model.prior)
    theta = replace(theta, values=theta.values.to(model.backbone.device))
    run = OptionRun(theta, prompts, Sampling(samples=0, seed=0))
    while not run.done:
        score_chunk(model.backbone, [run.next_chunk()])
    return [run.scores_of(number)[0].tolist() for number in range(len(prompts))]
