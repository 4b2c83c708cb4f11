"""A worker with a tiny model, and jobs for it, for tests of what real tensors do on the way."""

from __future__ import annotations

from typing import Any

import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.memory_plan import measure_costs
from abmll.model import FewShotModel
from abmll.prediction.settings import PredictSettings
from abmll.text.prompting import LabelledPrompt, PromptEncoder, PromptTemplate
from abmll.text.tasks import Query
from service.executors.contract import AdaptJob, PredictJob
from service.executors.worker import ModelWorker
from tests.service.executors.fake import SERVED
from tests.tiny import make_config, tiny_model, tiny_tokenizer

OPTIONS = ("good", "bad")
TEXTS = ("great film", "dull story", "money back", "the actors were great")


def load_tiny() -> ModelWorker:
    torch.set_num_threads(1)
    model = FewShotModel(tiny_model(), tiny_tokenizer(), make_config(rank=4))
    return ModelWorker(model, SERVED, measure_costs(model.backbone, model.prior).plan(10**9))


def tiny_jobs() -> tuple[AdaptJob, PredictJob]:
    """Return an adaptation, and a prediction with its adapter."""
    encoder: Any = PromptEncoder(tiny_tokenizer(), PromptTemplate(), 512)
    prompts = tuple(encoder.encode(Query(text, OPTIONS)) for text in TEXTS)
    examples = tuple(LabelledPrompt(prompt, i % 2) for i, prompt in enumerate(prompts))
    return (
        AdaptJob("adp_1", examples, AdaptSettings(steps=3), seed=0),
        PredictJob("adp_1", prompts, PredictSettings(samples=4, seed=3)),
    )
