"""What a worker does when a pass does not fit its memory: the same in smaller passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.settings import PredictSettings
from abmll.text.tasks import Query
from service.executors.contract import PredictJob
from service.executors.worker import ModelWorker
from tests.service.executors.test_model_worker import (
    ENCODER,
    TEXTS,
    Work,
    adapt_job,
    make_worker,
    model,
    predict_job,
    work,
)

__all__ = ["model"]  # a fixture


def text_job(adapter: TaskPosterior, samples: int = 3) -> Work:
    """Return a job that writes six answers to each of the texts: two by each sample."""
    prompts = tuple(ENCODER.encode(Query(text)) for text in TEXTS)
    settings = PredictSettings(samples, seed=3, max_new_tokens=20, answers_per_sample=2)
    return PredictJob("adp_a", prompts, settings), adapter


class Short:
    """Makes passes of more than `limit` rows or tokens fail, and counts all passes by size."""

    def __init__(self, call: Callable[..., Any], size: Callable[..., int], limit: int) -> None:
        self.call, self.size, self.limit = call, size, limit
        self.sizes: list[int] = []

    def __call__(self, *arguments: Any) -> Any:
        self.sizes.append(self.size(*arguments))
        if self.sizes[-1] > self.limit:
            raise torch.OutOfMemoryError("pretended")
        return self.call(*arguments)

    @property
    def failures(self) -> int:
        return sum(size > self.limit for size in self.sizes)


def rows_of(hidden: torch.Tensor, *_: Any) -> int:
    return len(hidden)


def texts_of(predictions: Any) -> list[Any]:
    return [[cluster.members for cluster in found.text.clusters] for found in predictions]


@pytest.mark.parametrize("limit", [1, 4, 11])
def test_writing_that_runs_out_of_memory_goes_on_with_fewer_prompts_and_answers(
    limit: int, model: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 answers in one batch do not fit; those of the smaller batches are the same."""
    adapter = TaskPosterior.start(model.prior)
    expected = work(make_worker(model), [text_job(adapter)])[0]
    short = Short(model.backbone.next_logits, rows_of, limit)
    monkeypatch.setattr(model.backbone, "next_logits", short)
    found = work(make_worker(model), [text_job(adapter)])[0]
    assert max(short.sizes) == 36
    assert 1 <= short.failures <= 6
    assert texts_of(found) == texts_of(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)


@pytest.mark.parametrize("step", [2, 7, 18])
def test_writing_that_runs_out_of_memory_in_its_middle_begins_its_batch_again(
    step: int, model: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caches grow with each token: a batch that could be read may not be written to its end."""
    adapter = TaskPosterior.start(model.prior)
    expected = work(make_worker(model), [text_job(adapter)])[0]
    passes = []

    def size(hidden: torch.Tensor, positions: torch.Tensor, *_: Any) -> int:
        passes.append(len(hidden))
        return len(hidden) if hidden.shape[1] == 1 and passes.count(36) > step else 0

    short = Short(model.backbone.next_logits, size, 20)
    monkeypatch.setattr(model.backbone, "next_logits", short)
    found = work(make_worker(model), [text_job(adapter)])[0]
    assert short.failures == 1
    assert texts_of(found) == texts_of(expected)


def test_what_is_written_beside_a_shortage_stays_the_same(
    model: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = TaskPosterior.start(model.prior)
    jobs = [text_job(adapter), predict_job(adapter, "adp_a"), text_job(adapter, samples=1)]
    expected = work(make_worker(model), jobs)
    short = Short(model.backbone.next_logits, rows_of, 8)
    monkeypatch.setattr(model.backbone, "next_logits", short)
    found = work(make_worker(model), jobs)
    assert short.failures > 0
    assert [texts_of(found[i]) for i in (0, 2)] == [texts_of(expected[i]) for i in (0, 2)]
    for one, other in zip(found[1], expected[1], strict=True):
        assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)


def test_a_support_that_runs_out_of_memory_is_prepared_in_smaller_chunks(
    model: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = work(make_worker(model), [adapt_job()])[0]
    short = Short(model.backbone.trunk, lambda rows: sum(rows.lengths), 60)
    worker = make_worker(model)
    monkeypatch.setattr(model.backbone, "trunk", short)
    found = work(worker, [adapt_job()])[0]
    assert short.failures > 0
    torch.testing.assert_close(found.posterior.values, expected.posterior.values, atol=1e-3, rtol=1e-2)


def test_a_step_that_runs_out_of_memory_after_a_rest_is_begun_again_in_smaller_passes(
    model: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = work(make_worker(model), [adapt_job()])[0]
    worker = make_worker(model, unit_tokens=20)
    last: list[int] = []  # the second layer of a pass fails, and what rests is lost

    def size(index: int, hidden: torch.Tensor, *_: Any) -> int:
        last.append(index)
        return len(hidden) if index == 2 else 0

    short = Short(model.backbone.layer, size, 50)
    monkeypatch.setattr(model.backbone, "layer", short)
    found = work(worker, [adapt_job()])[0]
    assert short.failures > 0
    assert last.count(1) > last.count(3)
    assert found.losses == pytest.approx(expected.losses, rel=1e-3)
    torch.testing.assert_close(found.posterior.values, expected.posterior.values, atol=1e-3, rtol=1e-2)


def never_fits(worker: ModelWorker, job: Any) -> None:
    run = worker.begin(*(job if isinstance(job, tuple) else (job, None)))
    with pytest.raises(torch.OutOfMemoryError, match="pretended"):
        while not run.done:
            worker.advance([run])
    worker.finish(run)


@pytest.mark.parametrize("kind", ["write", "score", "adapt", "prepare"])
def test_what_does_not_fit_in_the_smallest_passes_is_an_error_and_slows_nothing_later(
    kind: str, model: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long text alone is too much: it fails, after few tries, and others go on as before."""
    adapter = TaskPosterior.start(model.prior)
    jobs = {"write": text_job(adapter), "score": predict_job(adapter, "adp_a")}
    job: Any = jobs.get(kind) or adapt_job()
    name = {"write": "next_logits", "prepare": "trunk"}.get(kind, "log_probs")
    worker = make_worker(model)
    before = worker._step_tokens, worker._chunk_tokens
    with monkeypatch.context() as patch:
        short = Short(getattr(model.backbone, name), lambda *_: 1, 0)
        patch.setattr(model.backbone, name, short)
        never_fits(worker, job)
    assert 1 < len(short.sizes) < 12
    assert (worker._step_tokens, worker._chunk_tokens) == before
    expected = work(make_worker(model), [job])[0]
    found = work(worker, [job])[0]
    if kind in jobs:
        assert [p.predictive for p in found] == [p.predictive for p in expected]
    else:
        assert torch.equal(found.posterior.values, expected.posterior.values)
