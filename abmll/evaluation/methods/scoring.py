"""The one place where methods go behind `FewShotModel`: log-probabilities of whole texts, not normalised over options."""

from __future__ import annotations

from collections.abc import Sequence

from abmll.model import FewShotModel
from abmll.posterior import TaskPosterior
from abmll.predict import continuation_log_probs, sample_groups
from abmll.prompting import EncodedPrompt


def log_probs(model: FewShotModel, prompts: Sequence[EncodedPrompt]) -> list[list[float]]:
    """Log-probability in nats of every continuation of every prompt, under the mean of the model's theta."""
    groups = sample_groups(model.backbone, TaskPosterior.start(model.prior), 0, 0)
    return [row[0].tolist() for row in continuation_log_probs(model.backbone, groups, prompts)]
