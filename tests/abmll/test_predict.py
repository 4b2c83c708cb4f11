"""Prediction: what it averages, and that batches, order and packing do not matter."""

from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache

from abmll.errors import OptionsError, PromptTooLongError
from abmll.model import FewShotModel
from abmll.noise import mean_samples
from abmll.posterior import TaskPosterior
from abmll.predict import continuation_log_probs, generate, sample_groups
from abmll.prompting import EncodedPrompt
from abmll.tasks import Query
from tests.tiny import tiny_model

OPTIONS = ("positive", "negative", "not related")
QUERIES = [
    Query("the film was wonderful", OPTIONS),
    Query("a badly told story, I want my money back, and the actors were dull", OPTIONS),
    Query("great", ("Paris", "France")),
    Query("0 1 2 3 4", OPTIONS),
]
FAMILIES = {"weight": 0.02, "output": -4.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_by_one_in_any_order_and_in_one_batch_agree(
    family: str, make_model: Callable[..., FewShotModel]
) -> None:
    model = make_model(noise=family, spread_offset=FAMILIES[family])
    together = model.predict(None, QUERIES, samples=5, seed=7)
    backwards = model.predict(None, QUERIES[::-1], samples=5, seed=7)[::-1]
    alone = [model.predict(None, [query], samples=5, seed=7)[0] for query in QUERIES]
    for batch, reverse, single in zip(together, backwards, alone, strict=True):
        for other in (reverse, single):
            assert batch.predictive.options == other.predictive.options
            assert batch.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)
            assert batch.predictive.stds == pytest.approx(other.predictive.stds, abs=1e-4)


def test_the_predictive_is_the_average_of_the_samples_probabilities(
    make_model: Callable[..., FewShotModel],
) -> None:
    """Each sample, materialised as dense weights and added to the base, gives the probabilities that are averaged."""
    model = make_model(spread_offset=0.05)
    posterior = TaskPosterior.start(model.prior)
    query, count = QUERIES[0], 10  # more than one group of samples
    predictive = model.predict(posterior, [query], samples=count, seed=3)[0].predictive
    prompt = model.encoder.encode(query)
    by_hand = []
    for size, samples in sample_groups(model.backbone, posterior, count, 3):
        for n in range(size):
            dense = tiny_model()
            for site, lora in zip(model.prior.sites, samples.loras, strict=True):  # type: ignore[attr-defined]
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
    assert max(predictive.stds) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_no_samples_is_the_noise_free_model_and_many_surround_it(
    family: str, make_model: Callable[..., FewShotModel]
) -> None:
    small = {"weight": 0.002, "output": -12.0}[family]
    model = make_model(noise=family, spread_offset=small, random_prior=False)
    base = [
        continuation_log_probs(model.backbone, [(1, mean_samples(model.prior.config, _tensors(model)))], [p])
        for p in _prompts(model)
    ]
    mean = model.predict(None, QUERIES, samples=0, seed=1)
    many = model.predict(None, QUERIES, samples=32, seed=1)
    for scores, none, some in zip(base, mean, many, strict=True):
        assert none.predictive.samples == 0
        assert none.predictive.probabilities == pytest.approx(scores[0][0].softmax(0).tolist(), abs=1e-5)
        assert set(none.predictive.stds) == {0.0}
        assert none.predictive.uncertainty.mutual_information == 0
        assert some.predictive.samples == 32
        assert 0 < max(some.predictive.stds) < 0.1
        assert some.predictive.probabilities == pytest.approx(none.predictive.probabilities, abs=0.05)


def _tensors(model: FewShotModel) -> list:  # type: ignore[type-arg]
    from abmll.posterior import unflatten

    return unflatten(model.prior.values[None], model.prior.sites, model.prior.config.rank)


def _prompts(model: FewShotModel) -> list[EncodedPrompt]:
    return [model.encoder.encode(query) for query in QUERIES]


def test_a_sample_is_the_same_however_many_are_drawn(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model(spread_offset=0.05)
    posterior = TaskPosterior.start(model.prior)
    prompts = _prompts(model)
    few = continuation_log_probs(model.backbone, sample_groups(model.backbone, posterior, 3, 5), prompts)
    many = continuation_log_probs(model.backbone, sample_groups(model.backbone, posterior, 11, 5), prompts)
    for short, long in zip(few, many, strict=True):
        torch.testing.assert_close(short, long[:3], atol=1e-4, rtol=1e-4)


def test_greedy_text_of_the_mean_is_what_transformers_generates(
    make_model: Callable[..., FewShotModel],
) -> None:
    model = make_model(random_prior=False)
    prompts = [(5, 6, 7, 8), (40, 41, 42, 43, 44, 45, 46), (9,)]
    (_, samples), *_ = sample_groups(model.backbone, TaskPosterior.start(model.prior), 0, 0)
    found = generate(model.backbone, samples, 1, prompts, end=0, max_new_tokens=12)
    for prompt, (ours,) in zip(prompts, found, strict=True):
        theirs = tiny_model().generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert ours == tuple(theirs[0, len(prompt) :].tolist())


def test_each_sample_keeps_its_weights_for_the_whole_text(make_model: Callable[..., FewShotModel]) -> None:
    """Greedy tokens from the KV cache are the ones a full forward pass under the same sample prefers at every step."""
    model = make_model(spread_offset=0.05)
    posterior = TaskPosterior.start(model.prior)
    prompts = [(5, 6, 7, 8), (40, 41, 42, 43, 44, 45, 46)]
    ((count, samples),) = sample_groups(model.backbone, posterior, 3, 2)
    found = generate(model.backbone, samples, count, prompts, end=0, max_new_tokens=8)
    assert len({text for texts in found for text in texts}) > 2
    for prompt, texts in zip(prompts, found, strict=True):
        for sample, text in enumerate(texts):
            ids = torch.tensor([prompt + text])
            visible = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
            for step in range(len(text)):
                upto = len(prompt) + step
                logits = model.backbone.next_logits(
                    ids[:, :upto], torch.arange(upto)[None], visible[:, :upto, :upto], DynamicCache(),
                    samples.for_rows(torch.tensor([sample]), torch.ones(1, upto, dtype=torch.bool)),
                )  # fmt: skip
                assert int(logits.argmax()) == text[step]


def test_free_text_probabilities_are_those_of_whole_sequences(
    make_model: Callable[..., FewShotModel],
) -> None:
    model = make_model(spread_offset=0.03)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_of_a_pass_does_not_matter(
    family: str, make_model: Callable[..., FewShotModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(noise=family, spread_offset=FAMILIES[family])
    large = model.predict(None, QUERIES, samples=10, seed=7)
    monkeypatch.setattr("abmll.predict.TOKENS_PER_PASS", 48)
    monkeypatch.setattr("abmll.predict.SAMPLES_PER_PASS", 3)
    small = model.predict(None, QUERIES, samples=10, seed=7)
    for one, other in zip(large, small, strict=True):
        assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)
        assert one.predictive.stds == pytest.approx(other.predictive.stds, abs=1e-4)
