"""Prediction: what it averages, and that batches, order and packing do not matter."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from abmll.decoder.layout import unflatten
from abmll.decoder.rows import by_prompt, collate
from abmll.errors import OptionsError, PromptTooLongError
from abmll.model import FewShotModel
from abmll.posterior.config import TemperatureRule
from abmll.posterior.noise.point import Lora, LoraSamples, mean_samples
from abmll.posterior.plain_lora import sample_loras
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.generation import Writing
from abmll.text.prompting import EncodedPrompt
from abmll.text.tasks import Query
from tests.tiny import tiny_model

OPTIONS = ("positive", "negative", "not related")
QUERIES = [
    Query("the film was wonderful", OPTIONS),
    Query("a badly told story, I want my money back, and the actors were dull", OPTIONS),
    Query("great", ("Paris", "France")),
    Query("0 1 2 3 4", OPTIONS),
]
NOISES: dict[str, dict[str, Any]] = {
    "weight": {"family": "weight", "offset": 0.02},
    "output": {"family": "output", "offset": -4.0},
    "weight, readout": {"family": "weight", "offset": 0.02, "readout_scale": 3.0},
}


@pytest.mark.parametrize("noise", NOISES)
def test_one_by_one_in_any_order_and_in_one_batch_agree(
    noise: str, make_model: Callable[..., FewShotModel]
) -> None:
    model = make_model(**NOISES[noise])
    together = model.predict(None, QUERIES, samples=5, seed=7)
    backwards = model.predict(None, QUERIES[::-1], samples=5, seed=7)[::-1]
    alone = [model.predict(None, [query], samples=5, seed=7)[0] for query in QUERIES]
    for batch, reverse, single in zip(together, backwards, alone, strict=True):
        for other in (reverse, single):
            assert batch.predictive.options == other.predictive.options
            assert batch.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)
            assert batch.predictive.stds == pytest.approx(other.predictive.stds, abs=1e-4)


@pytest.mark.parametrize("readout_scale", [None, 4.0])
def test_the_predictive_is_the_average_of_the_samples_probabilities(
    readout_scale: float | None,
    make_model: Callable[..., FewShotModel],
) -> None:
    """The expected average is over dense models: the base with each sample's update added."""
    model = make_model(offset=0.05, readout_scale=readout_scale)
    posterior = TaskPosterior.start(model.prior)
    query, count = QUERIES[0], 10  # more than one group of samples
    predictive = model.predict(posterior, [query], samples=count, seed=3)[0].predictive
    prompt = model.encoder.encode(query)
    by_hand = []
    samples = _samples(model, count, seed=3)
    for n in range(count):
        dense = tiny_model()
        for site, lora in zip(model.prior.sites, samples.loras, strict=True):
            layer = dense.model.layers[site.layer]
            module = layer.self_attn if site.module in "qvo" else layer.mlp
            getattr(module, f"{site.module}_proj").weight.data += lora.b[n] @ lora.a[n]
        scores = []
        for continuation in prompt.continuations:
            ids = torch.tensor([prompt.prompt + continuation])
            with torch.no_grad():
                logs = dense(ids).logits[0].log_softmax(-1)
            start = len(prompt.prompt) - 1
            scores.append(sum(logs[start + k, token] for k, token in enumerate(continuation)))
        by_hand.append(torch.stack(scores).softmax(0))  # type: ignore[arg-type]
    sampled = torch.stack(by_hand)
    assert predictive.probabilities == pytest.approx(sampled.mean(0).tolist(), abs=1e-4)
    assert predictive.stds == pytest.approx(sampled.std(0).tolist(), abs=1e-4)
    assert max(predictive.stds) > 0.005


@pytest.mark.parametrize("noise", NOISES)
def test_no_samples_is_the_noise_free_model_and_many_surround_it(
    noise: str, make_model: Callable[..., FewShotModel]
) -> None:
    small = {"weight": 0.002, "output": -12.0}[NOISES[noise]["family"]]
    model = make_model(**{**NOISES[noise], "offset": small}, random_prior=False)
    base = []
    for prompt in _prompts(model):
        rows = collate([prompt])
        with torch.no_grad():
            base.append(by_prompt(model.backbone.log_probs(model.backbone.trunk(rows), rows, None), rows))
    mean = model.predict(None, QUERIES, samples=0, seed=1)
    many = model.predict(None, QUERIES, samples=32, seed=1)
    for scores, none, some in zip(base, mean, many, strict=True):
        assert none.predictive.samples == 0
        assert none.predictive.probabilities == pytest.approx(scores[0].softmax(0).tolist(), abs=1e-5)
        assert set(none.predictive.stds) == {0.0}
        assert none.predictive.uncertainty.mutual_information == 0
        assert some.predictive.samples == 32
        assert 0 < max(some.predictive.stds) < 0.1
        assert some.predictive.probabilities == pytest.approx(none.predictive.probabilities, abs=0.05)


def _tensors(model: FewShotModel) -> list:  # type: ignore[type-arg]
    return unflatten(model.prior.values[None], model.prior.sites, model.prior.config.layout.rank)


def _samples(model: FewShotModel, count: int, seed: int) -> LoraSamples:
    """Return whole samples: the mean in layers without noise."""
    posterior = TaskPosterior.start(model.prior)
    found = [list(sample_loras(posterior, seed, number).values()) for number in range(count)]
    return LoraSamples(
        [
            Lora(torch.stack([one.a for one in of]), torch.stack([one.scaling * one.b for one in of]))
            for of in zip(*found, strict=True)
        ]
    )


def _prompts(model: FewShotModel) -> list[EncodedPrompt]:
    return [model.encoder.encode(query) for query in QUERIES]


@pytest.mark.parametrize("noise", NOISES)
def test_a_sample_is_the_same_however_many_are_drawn(
    noise: str, make_model: Callable[..., FewShotModel]
) -> None:
    model = make_model(**NOISES[noise])
    found = []
    for samples in (3, 11):
        run = model.begin_predict(None, QUERIES, samples=samples, seed=5)
        while not run.done:
            model.advance([run])
        found.append([run._scoring.scores_of(n) for n in range(len(QUERIES))])
    for short, long in zip(*found, strict=True):
        torch.testing.assert_close(short, long[:3], atol=1e-4, rtol=1e-4)


def test_antithetic_samples_lie_opposite_each_other(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model(offset=0.05)
    mean = mean_samples(model.prior.config.layout, _tensors(model)).loras
    for lora, middle in zip(_samples(model, 4, seed=1).loras, mean, strict=True):
        updates = lora.b @ lora.a
        for pair in (0, 2):
            torch.testing.assert_close(
                updates[pair : pair + 2].mean(0), middle.b[0] @ middle.a[0], atol=1e-5, rtol=1e-4
            )
        assert not torch.allclose(updates[0], updates[2])


@pytest.mark.parametrize("noise", NOISES)
def test_posteriors_together_predict_as_one_by_one(
    noise: str, make_model: Callable[..., FewShotModel]
) -> None:
    """One pass has several posteriors, temperatures, options, free text, samples and the mean.

    Their order does not matter.
    """
    model = make_model(**NOISES[noise])
    posteriors = [
        TaskPosterior(
            replace(model.prior.config, temperature=TemperatureRule(t)),
            model.prior.sites,
            model.prior.values * factor,
        )
        for factor, t in ((1.0, 1.0), (1.3, 2.0), (0.7, 0.5))
    ]
    work = [
        (posteriors[0], QUERIES, 5, 1),
        (posteriors[1], QUERIES[1:3], 12, 2),
        (posteriors[2], QUERIES[:1], 0, 3),
        (posteriors[1], [Query("the film"), QUERIES[0]], 4, 4),
    ]

    def run(item: tuple) -> object:  # type: ignore[type-arg]
        posterior, queries, samples, seed = item
        return model.begin_predict(posterior, queries, samples=samples, seed=seed, max_new_tokens=5)

    alone = [model.predict(p, q, samples=s, seed=seed, max_new_tokens=5) for p, q, s, seed in work]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        runs: dict[int, Any] = {i: run(work[i]) for i in order}
        while not all(r.done for r in runs.values()):
            model.advance(list(runs.values()))
        for i, r in runs.items():
            for one, other in zip(r.predictions(), alone[i], strict=True):
                assert one.predictive.options == other.predictive.options
                assert one.predictive.samples == other.predictive.samples == work[i][2]
                assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)


def test_sampling_stops_when_the_rule_is_met_and_not_before(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model(offset=0.05)
    most = model.predict(None, QUERIES, samples="auto", most_samples=32, tolerance=1e-6, seed=1)
    few = model.predict(None, QUERIES, samples="auto", most_samples=32, tolerance=0.5, seed=1)
    fixed = model.predict(None, QUERIES, samples=8, seed=1)
    assert {p.predictive.samples for p in most} == {32}
    for one, other in zip(few, fixed, strict=True):
        assert one.predictive.samples == 8
        assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-5)


def written(
    model: FewShotModel, prompts: list[tuple[int, ...]], samples: int, seed: int, tokens: int
) -> list[list[tuple[int, ...]]]:
    writing = Writing(model.prior.config, model.prior.values, prompts, samples, seed, 0, tokens, 10_000)
    while not writing.done:
        writing.advance(model.backbone)
    return writing.written


@pytest.mark.parametrize("first_layer", [0, 2])
def test_greedy_text_of_the_mean_is_what_transformers_generates(
    first_layer: int, make_model: Callable[..., FewShotModel]
) -> None:
    model = make_model(random_prior=False, first_layer=first_layer)
    prompts = [(5, 6, 7, 8), (40, 41, 42, 43, 44, 45, 46), (9,)]
    for prompt, (ours,) in zip(prompts, written(model, prompts, 0, 0, 20), strict=True):
        theirs = tiny_model().generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        assert ours == tuple(theirs[0, len(prompt) :].tolist())


@pytest.mark.parametrize("readout_scale", [None, 4.0])
def test_each_sample_keeps_its_weights_for_the_whole_text(
    readout_scale: float | None, make_model: Callable[..., FewShotModel]
) -> None:
    """The greedy tokens from the caches are those of a full forward pass under the same sample."""
    model = make_model(offset=0.05, readout_scale=readout_scale)
    prompts = [(5, 6, 7, 8), (40, 41, 42, 43, 44, 45, 46)]
    found = written(model, prompts, 3, 2, 8)
    assert len({text for texts in found for text in texts}) > 2
    samples = _samples(model, 3, seed=2)
    for prompt, texts in zip(prompts, found, strict=True):
        for sample, text in enumerate(texts):
            for step, token in enumerate(text):
                upto = prompt + text[:step]
                # Every token of the vocabulary as an option: the written one must score best.
                rows = collate([EncodedPrompt(upto, tuple((i,) for i in range(320)))])
                draw = samples.for_rows([sample], rows.lengths)
                with torch.no_grad():
                    scores = model.backbone.log_probs(model.backbone.trunk(rows), rows, draw)
                assert int(scores.argmax()) == token


def test_free_text_probabilities_are_those_of_whole_sequences(
    make_model: Callable[..., FewShotModel],
) -> None:
    model = make_model(offset=0.03)
    predictions = model.predict(
        None, [Query("the film"), Query("What is the capital of France?")], samples=4, max_new_tokens=5
    )
    for prediction in predictions:
        predictive = prediction.predictive
        assert 1 <= len(predictive.options) <= 4
        assert 0 < sum(predictive.probabilities) <= 1 + 1e-6
        assert predictive.answer == predictive.options[predictive.top]
        assert predictive.uncertainty.total_entropy >= predictive.uncertainty.expected_entropy > 0
        assert 4 <= prediction.completion_tokens <= 20
    mixed = model.predict(None, [Query("great", OPTIONS), Query("the film")], samples=4, max_new_tokens=5)
    assert mixed[0].predictive.options == OPTIONS
    assert mixed[1].predictive.options == predictions[0].predictive.options


def test_what_does_not_fit_is_refused_or_cut_when_asked(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model()
    long = Query("word " * 400, OPTIONS)
    with pytest.raises(PromptTooLongError, match="at most 256"):
        model.predict(None, [long], samples=0)
    (cut,) = model.predict(None, [long], samples=0, truncate=True)
    assert cut.prompt_tokens < 256
    encoded = model.encoder.encode(long, truncate=True)
    assert model.encoder.tokenizer.decode(encoded.prompt).endswith("\nAnswer:")
    assert encoded.tokens == 256
    with pytest.raises(PromptTooLongError):
        model.predict(None, [Query("a")], samples=0, max_new_tokens=254)
    with pytest.raises(OptionsError, match="at least two"):
        model.predict(None, [Query("a", ("x",))], samples=0)


@pytest.mark.parametrize("noise", NOISES)
def test_the_size_of_a_chunk_does_not_matter(
    noise: str, make_model: Callable[..., FewShotModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(**NOISES[noise])
    large = model.predict(None, QUERIES, samples=10, seed=7)
    monkeypatch.setattr("abmll.prediction.option_runs.SAMPLES_PER_CHUNK", 3)
    run = model.begin_predict(None, QUERIES, samples=10, seed=7, max_tokens=48)
    while not run.done:
        model.advance([run])
    for one, other in zip(large, run.predictions(), strict=True):
        assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)


def followed(model: FewShotModel, queries: list[Query], **settings: Any) -> tuple[list[Any], Any]:
    """Return what is known after each unit, and the run when it is done."""
    run = model.begin_predict(None, queries, seed=7, **settings)
    partials = [run.partial()]
    while not run.done:
        with pytest.raises(RuntimeError, match="not done"):
            run.predictions()
        model.advance([run])
        partials.append(run.partial())
    return partials, run


@pytest.mark.parametrize("noise", NOISES)
def test_what_is_known_midway_is_the_prediction_of_so_many_samples(
    noise: str, make_model: Callable[..., FewShotModel]
) -> None:
    """In small chunks, block after block, each partial prediction is the one of a shorter run.

    Samples that differ in the readout alone come all at once.
    """
    model = make_model(**NOISES[noise])
    partials, run = followed(model, QUERIES, samples=10, max_tokens=60)
    shorter = {n: model.predict(None, QUERIES, samples=n, seed=7) for n in range(1, 11)}
    assert partials[0] == [None] * len(QUERIES)
    assert partials[-1] == run.predictions()
    seen = set()
    for before, after in itertools.pairwise(partials):
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            if new is None:
                assert old is None
                continue
            count = new.predictive.samples
            assert old is None or old.predictive.samples <= count
            assert new.settled is (count == 10)
            expected = shorter[count][i]
            assert (new.prompt_tokens, new.completion_tokens) == (
                expected.prompt_tokens,
                expected.completion_tokens,
            )
            assert new.predictive.probabilities == pytest.approx(expected.predictive.probabilities, abs=1e-4)
            seen.add((i, count))
    assert len(seen) > 2 * len(QUERIES) or model.prior.config.noise.readout_scale is not None
    assert any(None in partial and any(partial) for partial in partials)


def test_a_query_that_is_settled_early_keeps_its_prediction(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model(offset=0.05)
    partials, run = followed(model, QUERIES, samples="auto", tolerance=0.005)
    final = run.predictions()
    counts = [prediction.predictive.samples for prediction in final]
    assert min(counts) < max(counts)
    assert any(partial[i] and partial[i].settled for i in range(len(QUERIES)) for partial in partials[:-1])
    for partial in partials:
        for known, last in zip(partial, final, strict=True):
            if known is not None and known.settled:
                assert known == last


def test_texts_are_known_from_when_they_are_scored(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model(offset=0.03)
    queries = [Query("the film"), Query("great", OPTIONS)]
    partials, run = followed(model, queries, samples=16, max_new_tokens=5)
    text = [partial[0] for partial in partials]
    assert [p and (p.predictive.samples, p.settled) for p in text if p] == [(8, False), (16, True)]
    assert text.index(None) == 0 and text.count(None) >= 4
    assert {frozenset(p.predictive.options) for p in text if p} == {
        frozenset(run.predictions()[0].predictive.options)
    }
    (mean,) = followed(model, queries[:1], samples=0, max_new_tokens=5)[1].predictions()
    assert (mean.predictive.samples, mean.settled) == (0, True)
