"""The torch worker: many jobs in one batch, slots, and what happens when memory is short."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.backbone import Call
from abmll.decoder.rows import packed_length
from abmll.memory_plan import measure_costs
from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.prompting import LabelledPrompt, PromptEncoder, PromptTemplate
from abmll.text.tasks import Example, Query
from service.executors.contract import AdapterNotHeldError, AdaptJob, Job, PredictJob, ServedModel
from service.executors.worker import ModelWorker
from tests.tiny import make_config, tiny_model, tiny_tokenizer

OPTIONS = ("good", "bad", "neither of them")
TEXTS = [
    "great film",
    "a dull and badly told story",
    "Paris",
    "money back",
    "the actors were great",
    "0 1 2 3",
]


ENCODER = PromptEncoder(tiny_tokenizer(), PromptTemplate(), 512)


@pytest.fixture
def model() -> FewShotModel:
    torch.set_num_threads(1)
    config = make_config(rank=4, alpha=8.0, first_layer=1, offset=0.02)
    model = FewShotModel(tiny_model(), tiny_tokenizer(), config)
    noise = 0.05 * torch.randn(model.prior.values.shape, generator=torch.Generator().manual_seed(1))
    model.prior = GlobalPosterior(config, model.prior.sites, model.prior.values + noise)
    return model


def make_worker(model: FewShotModel, slots: int = 4, unit_tokens: int = 4096) -> ModelWorker:
    costs = measure_costs(model.backbone, model.prior)
    plan = costs.plan(10**9)
    served: Any = ServedModel
    worker = ModelWorker(model, served, plan, unit_tokens)
    worker._slots._count = slots
    return worker


def adapt_job(number: int = 0, steps: int = 3) -> AdaptJob:
    support = tuple(Example(t, OPTIONS[(i + number) % 3], OPTIONS) for i, t in enumerate(TEXTS))
    examples = tuple(
        LabelledPrompt(ENCODER.encode_example(e), OPTIONS.index(e.output)) for e in support[: 6 - number]
    )
    return AdaptJob(f"adp_{number}", examples, AdaptSettings(steps, 0.01, 3), seed=number)


Work = tuple[Job, TaskPosterior | None]


def predict_job(posterior: TaskPosterior | None, name: str, samples: Any = 6, **more: Any) -> Work:
    prompts = tuple(ENCODER.encode(Query(text, OPTIONS)) for text in TEXTS)
    return PredictJob(name, prompts, PredictSettings(samples, seed=3, max_new_tokens=4, **more)), posterior


def work(worker: ModelWorker, jobs: Sequence[Job | Work]) -> list[Any]:
    """Return the results of all jobs, done side by side, one unit of each at a time.

    A prediction is a pair of its job and its adapter, or None.
    """
    runs = [worker.begin(*(job if isinstance(job, tuple) else (job, None))) for job in jobs]
    while open_ := [run for run in runs if not run.done]:
        worker.advance(open_)
    for run in runs:
        worker.finish(run)
    return [run.result() for run in runs]


def test_jobs_side_by_side_give_what_they_give_alone(model: FewShotModel) -> None:
    worker = make_worker(model)
    jobs: list[Job] = [adapt_job(0), adapt_job(1, steps=5), adapt_job(2)]
    alone = [work(worker, [job])[0] for job in jobs]
    for together in (work(worker, jobs), work(worker, jobs[::-1])[::-1]):
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.posterior.values, other.posterior.values, atol=1e-3, rtol=1e-2)
    predicting = [predict_job(a.posterior, f"adp_{i}") for i, a in enumerate(alone)]
    singles = [work(worker, [job])[0] for job in predicting]
    for one, other in zip(work(worker, predicting), singles, strict=True):
        for p, q in zip(one, other, strict=True):
            assert p.predictive.probabilities == pytest.approx(q.predictive.probabilities, abs=1e-4)


def test_samples_depend_on_the_adapter_and_are_shared_by_its_requests(model: FewShotModel) -> None:
    worker, posterior = make_worker(model), TaskPosterior.start(model.prior)
    first, again, other = (
        [q for p in work(worker, [predict_job(posterior, name)])[0] for q in p.predictive.probabilities]
        for name in ("adp_a", "adp_a", "adp_b")
    )
    assert first == pytest.approx(again, rel=1e-4)
    assert first != pytest.approx(other, rel=1e-2)


def test_an_adapter_in_a_slot_needs_no_posterior_and_one_that_is_gone_is_asked_for(
    model: FewShotModel,
) -> None:
    worker = make_worker(model, slots=1)
    # With a temperature of its own, so that an answer with theta's would differ.
    posterior = TaskPosterior.start(model.prior).with_temperature_times(3)
    (given,) = work(worker, [predict_job(posterior, "adp_a")])
    assert worker.held() == ("adp_a",)
    (held,) = work(worker, [predict_job(None, "adp_a")])
    assert held[0].predictive == given[0].predictive
    work(worker, [predict_job(posterior, "adp_b")])
    with pytest.raises(AdapterNotHeldError):
        worker.begin(*predict_job(None, "adp_a"))


def test_what_no_step_moved_leaves_the_worker_without_values_and_answers_as_theta(
    model: FewShotModel,
) -> None:
    worker = make_worker(model)
    adapted, (moved,) = work(worker, [adapt_job(steps=0)])[0], work(worker, [adapt_job(1)])
    assert moved.posterior.has_values
    assert not adapted.posterior.has_values
    whole = adapted.posterior.with_values(model.prior)
    assert torch.equal(whole.values, model.prior.values)
    (found,) = work(worker, [predict_job(adapted.posterior, "adp_a")])
    (held,) = work(worker, [predict_job(None, "adp_a")])
    (expected,) = work(make_worker(model), [predict_job(whole, "adp_a")])
    assert [p.predictive for p in found] == [p.predictive for p in expected]
    assert [p.predictive for p in held] == [p.predictive for p in expected]


def test_more_adapters_at_a_time_than_slots_are_served_from_copies(model: FewShotModel) -> None:
    worker, posterior = make_worker(model, slots=1), TaskPosterior.start(model.prior)
    results = work(worker, [predict_job(posterior, f"adp_{i}") for i in range(3)])
    assert len(results) == 3
    assert worker.held() == ("adp_0",)


def test_auto_samples_until_the_gate_is_decided(model: FewShotModel) -> None:
    worker, posterior = make_worker(model), TaskPosterior.start(model.prior)
    easy, hard = (
        work(worker, [predict_job(posterior, "adp_a", "auto", tolerance=1e-9, thresholds=thresholds)])[0]
        for thresholds in (Thresholds(min_confidence=0.0), Thresholds())
    )
    counts = [[p.predictive.samples for p in predictions] for predictions in (easy, hard)]
    assert max(counts[1]) == 64
    assert all(8 <= few <= many for few, many in zip(*counts, strict=True))
    assert sum(counts[0]) < sum(counts[1])


def test_a_support_of_long_texts_is_many_bounded_units_and_gives_the_same(model: FewShotModel) -> None:
    """No unit counts more than `unit_tokens`; whole steps give the same posterior."""
    support = tuple(Example("a long story " * 20 + t, OPTIONS[i % 3], OPTIONS) for i, t in enumerate(TEXTS))
    examples = tuple(LabelledPrompt(ENCODER.encode_example(e), OPTIONS.index(e.output)) for e in support)
    job = AdaptJob("adp_long", examples, AdaptSettings(3, 0.01, 4), seed=0)
    longest = max(packed_length(example.prompt) for example in examples)
    units, values = {}, {}
    for unit_tokens in (longest // 2, 4 * longest, 10**6):
        worker = make_worker(model, unit_tokens=unit_tokens)
        run = worker.begin(job)
        sizes = []
        while not run.done:
            sizes.append(run.next_tokens())
            worker.advance([run])
        assert max(sizes) <= unit_tokens
        units[unit_tokens], values[unit_tokens] = len(sizes), run.result().posterior.values
    few, some, many = (units[unit_tokens] for unit_tokens in sorted(units, reverse=True))
    assert few == 1 + 3
    assert few < some < many
    for other in values.values():
        torch.testing.assert_close(other, values[10**6], atol=1e-3, rtol=1e-2)


def long_jobs(adapter: TaskPosterior) -> list[Any]:
    """Return an adaptation and predictions of which each unit of 40 tokens is a part of one pass."""
    long = "a long story, badly told " * 8
    example = Example(long, OPTIONS[0], OPTIONS)
    adapt = AdaptJob(
        "adp_long",
        (LabelledPrompt(ENCODER.encode_example(example), 0),) * 2,
        AdaptSettings(2, 0.01, 2),
        seed=0,
    )
    settings = PredictSettings(3, seed=3, max_new_tokens=4)
    return [
        adapt,
        (PredictJob("adp_a", (ENCODER.encode(Query(long, OPTIONS)),), settings), adapter),
        (PredictJob("adp_b", (ENCODER.encode(Query(long)),), settings), adapter),
    ]


def test_passes_that_rest_go_on_beside_each_other(model: FewShotModel) -> None:
    """Long jobs, one piece of each at a time, give what they give one after the other, in whole
    passes.
    """
    adapter = TaskPosterior.start(model.prior)
    jobs = [*long_jobs(adapter), adapt_job(1), predict_job(adapter, "adp_a")]
    whole = [work(make_worker(model), [job])[0] for job in jobs]
    worker = make_worker(model, unit_tokens=40)
    runs = [worker.begin(*(job if isinstance(job, tuple) else (job, None))) for job in jobs]
    rested = set()
    while open_ := [run for run in runs if not run.done]:
        worker.advance([run for run in open_ if run.lane == "adapt"])
        worker.advance([run for run in open_ if run.lane == "predict"])
        rested |= {runs.index(run) for run in open_ if run.resting is not None}
    assert rested >= {0, 1, 2}
    found = [run.result() for run in runs]
    for i in (0, 3):
        torch.testing.assert_close(found[i].posterior.values, whole[i].posterior.values, atol=1e-3, rtol=1e-2)
    for i in (1, 2, 4):
        for one, other in zip(found[i], whole[i], strict=True):
            assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_ends_in_a_rest_leaves_nothing_behind(number: int, model: FewShotModel) -> None:
    """A run that is cancelled, or whose pass fails, in the middle: the next ones are as without it."""
    adapter = TaskPosterior.start(model.prior)
    job = long_jobs(adapter)[number]
    expected = work(make_worker(model, unit_tokens=40), [predict_job(adapter, "adp_a")])[0]
    worker = make_worker(model, unit_tokens=40)
    room = worker._room.tokens
    for fails in (False, True):
        run = worker.begin(*(job if isinstance(job, tuple) else (job, None)))
        while run.resting is None:
            worker.advance([run])
        if fails:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="broken"):
                patch.setattr("abmll.decoder.attention.additive_mask", broken)
                patch.setattr(model.backbone, "layer", broken)
                patch.setattr(model.backbone, "continue_trunk", broken)
                while not run.done:
                    worker.advance([run])
            assert run.resting is None
        worker.finish(run)
        assert model.backbone._call == Call()
        assert worker._room.tokens == room
        assert work(worker, [predict_job(adapter, "adp_a")])[0][0].predictive == expected[0].predictive


def broken(*_: Any) -> None:
    raise ValueError("broken")


@pytest.mark.parametrize("limit", [40, 90])
def test_a_pass_that_runs_out_of_memory_is_split_and_the_results_stay(
    limit: int, model: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass of more than `limit` tokens fails; the results are the same."""
    support, queries = adapt_job(), predict_job(TaskPosterior.start(model.prior), "adp_a")
    expected = [work(make_worker(model), [job])[0] for job in (support, queries)]
    log_probs, sizes = model.backbone.log_probs, []

    def short_of_memory(hidden: torch.Tensor, *arguments: Any) -> torch.Tensor:
        sizes.append(len(hidden))
        if len(hidden) > limit:
            raise torch.OutOfMemoryError("pretended")
        return log_probs(hidden, *arguments)

    worker = make_worker(model)
    monkeypatch.setattr(model.backbone, "log_probs", short_of_memory)
    adapted, predicted = (work(worker, [job])[0] for job in (support, queries))
    assert max(sizes) > limit
    torch.testing.assert_close(adapted.posterior.values, expected[0].posterior.values, atol=1e-3, rtol=1e-2)
    for one, other in zip(predicted, expected[1], strict=True):
        assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)
    failures = sum(size > limit for size in sizes)
    work(worker, [support])
    assert sum(size > limit for size in sizes) == failures, "later passes are small from the start"


def test_what_is_no_shortage_of_memory_is_raised(
    model: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(model)
    run = worker.begin(adapt_job())
    worker.advance([run])

    def broken(*_: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("service.executors.worker.adapt_step", broken)
    with pytest.raises(RuntimeError, match="something else"):
        worker.advance([run])
