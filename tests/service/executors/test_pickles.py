"""What crosses the pipe between server and worker, made by a real worker: its size is that of its
tensors.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.memory_plan import measure_costs
from abmll.model import FewShotModel
from abmll.prediction.settings import PredictSettings
from abmll.similarity.features import Whitening
from abmll.similarity.gaussian_process import SimilarityConfig
from abmll.similarity.sentence_encoder import SentenceEncoder
from abmll.text.prompting import LabelledPrompt
from abmll.text.tasks import Query
from service.executors.contract import AdaptJob, PredictJob, ServedModel
from service.executors.loop import WorkerLoop
from service.executors.messages import Done, Submit
from service.executors.worker import ModelWorker
from tests.tiny import HIDDEN, make_config, tiny_model, tiny_sentence_encoder, tiny_tokenizer

OPTIONS = ("good", "bad")
TEXTS = ("great film", "dull story", "money back", "the actors were great")


@pytest.fixture
def model() -> FewShotModel:
    """A model with a sentence encoder and an adapter large enough for its pickle to be mostly
    tensors.
    """
    torch.set_num_threads(1)
    config = make_config(rank=32, similarity=SimilarityConfig(sentence_encoder="tiny"))
    sentences = SentenceEncoder(*tiny_sentence_encoder(), max_tokens=40)
    model = FewShotModel(tiny_model(), tiny_tokenizer(), config, sentences=sentences)
    states = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(0))
    model.prior = replace(model.prior, whitening=Whitening.of([states]))
    return model


def done(loop: WorkerLoop, submit: Submit) -> Done:
    """The event that ends the job."""
    loop.submit(submit)
    events: list[Any] = []
    while not loop.idle:
        events += loop.turn()
    assert isinstance(events[-1], Done), events
    return events[-1]


def test_a_finished_adaptation_crosses_once_and_a_prediction_carries_no_weights(model: FewShotModel) -> None:
    served: Any = ServedModel
    worker = ModelWorker(model, served, measure_costs(model.backbone, model.prior).plan(10**9))
    loop = WorkerLoop(worker)
    prompts = tuple(model.encoder.encode(Query(text, OPTIONS)) for text in TEXTS)
    examples = tuple(LabelledPrompt(prompt, i % 2) for i, prompt in enumerate(prompts))
    fitted = done(loop, Submit(1, AdaptJob("adp_1", examples, AdaptSettings(steps=1), seed=0)))
    adapter = fitted.result.posterior  # type: ignore[union-attr]
    assert adapter.class_examples
    assert len(pickle.dumps(fitted)) <= 1.05 * adapter.nbytes

    job = PredictJob("adp_1", prompts, PredictSettings(samples=2))
    assert len(pickle.dumps(job)) < adapter.nbytes / 100
    asked = Submit(2, job, adapter)
    assert len(pickle.dumps(asked)) <= 1.05 * adapter.nbytes
    answered = done(loop, pickle.loads(pickle.dumps(asked)))
    assert len(pickle.dumps(answered)) < adapter.nbytes / 100
    assert answered.held == ("adp_1",)
    # From now on the name is enough.
    again = done(loop, pickle.loads(pickle.dumps(Submit(3, job))))
    assert again.result[0].predictive == answered.result[0].predictive  # type: ignore[index]
