"""The Gaussian process beside the adapter, against its closed forms and in batches of prompts."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.rows import collate, group
from abmll.errors import PosteriorMismatchError
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.seeds import SampleSeed, sample_seeds
from abmll.similarity.class_examples import ClassExamples
from abmll.similarity.features import Features, Whitening
from abmll.similarity.gaussian_process import (
    FARTHEST,
    NAMES,
    SHARPNESS,
    WEIGHTS,
    GaussianProcess,
    SimilarityConfig,
)
from abmll.similarity.sentence_encoder import SentenceEncoder
from abmll.text.prompting import EncodedPrompt
from abmll.text.tasks import Example, Query
from tests.tiny import tiny_sentence_encoder

OPTIONS = ("positive", "not related", "negative")
TEXTS = (
    "the film was wonderful",
    "a badly told story",
    "dull",
    "the actors were great",
    "Paris",
)
SUPPORT = [Example(text, OPTIONS[i % 3], OPTIONS) for i, text in enumerate(TEXTS)]
CLASSES = ((5,), (6, 7), (8,))
PROMPT = EncodedPrompt((1, 2, 3), CLASSES, options=OPTIONS)
NAMELESS = torch.zeros(3, 6)
WEIGHT, NOISE, SPREAD = 4.0, 0.5, 1.5
CONFIG = SimilarityConfig(WEIGHT, NOISE, SPREAD)


def unit(count: int, size: int, seed: int) -> torch.Tensor:
    """Return random vectors [count, size] of length 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=1)


@pytest.fixture
def examples() -> ClassExamples:
    return ClassExamples(unit(5, 6, seed=0), torch.tensor([0, 1, 2, 0, 0]), CLASSES, unit(3, 6, seed=7))


def expected_f(
    examples: ClassExamples, of: list[int], state: torch.Tensor, name: float
) -> tuple[torch.Tensor, float]:
    """Return the mean [C] and the variance of f at `state` given the examples `of`.

    The formulas are those of textbooks: m + k (K + noise I)^-1 (y - m) and
    k** - k (K + noise I)^-1 k. m is `name` times the likeness to the classes' names, minus the mean
    of the names.
    """
    states, names = examples.features.double(), (examples.names - examples.names.mean(0)).double()
    inverse = torch.linalg.inv(states[of] @ states[of].T + NOISE * torch.eye(len(of)))
    shares = torch.tensor([4 / 8, 2 / 8, 2 / 8]).double()  # of all five, smoothed by one
    observed = (torch.nn.functional.one_hot(examples.labels, 3).double() - shares)[of]
    k, prior = states[of] @ state.double(), name * states[of] @ names.T
    return name * names @ state.double() + k @ inverse @ (observed - prior), float(1 - k @ inverse @ k)


def expected_scores(examples: ClassExamples, state: torch.Tensor) -> torch.Tensor:
    """Return the scores [C] of the mean over weights and names.

    Each pair is weighted by the likelihood of every label in a fit without its example.
    """
    one_hot, likelihoods, scores = torch.nn.functional.one_hot(examples.labels, 3), [], []
    for name, factor in product(NAMES, WEIGHTS):
        likelihood = torch.zeros(()).double()
        for i, label in enumerate(examples.labels.tolist()):
            others = [j for j in range(5) if j != i]
            f, _ = expected_f(examples, others, examples.features[i], name)
            shares = (one_hot[others].sum(0) + 1) / 7
            likelihood += (shares.log() + WEIGHT * factor * f).log_softmax(0)[label]
        likelihoods.append(likelihood)
        scores.append(WEIGHT * factor * expected_f(examples, list(range(5)), state, name)[0])
    return torch.stack(likelihoods).softmax(0) @ torch.stack(scores)


def left_out_variance(examples: ClassExamples) -> float:
    """Return the mean of the variances of f at the examples, each given the others."""
    return (
        sum(
            expected_f(examples, [j for j in range(5) if j != i], examples.features[i], 0)[1]
            for i in range(5)
        )
        / 5
    )


def test_mean_and_samples_are_those_of_the_gaussian_process(examples: ClassExamples) -> None:
    fitted, state = GaussianProcess(examples, CONFIG), unit(1, 6, seed=9)[0]
    _, variance = expected_f(examples, list(range(5)), state, 0)
    spread = SPREAD * min(FARTHEST, (variance / left_out_variance(examples)) ** SHARPNESS)
    mean, variance = expected_scores(examples, state), spread**2 * variance
    torch.testing.assert_close(fitted.scores(PROMPT, state, None).double(), mean, atol=1e-6, rtol=1e-5)
    drawn = torch.stack([fitted.scores(PROMPT, state, SampleSeed(n)) for n in range(4000)]).double()
    error = (variance / len(drawn)) ** 0.5
    assert (drawn.mean(0) - mean).abs().max() < 4 * error
    covariance = torch.cov(drawn.T)
    torch.testing.assert_close(covariance, variance * torch.eye(3).double(), atol=0.1 * variance, rtol=0)


def test_it_knows_less_of_an_input_that_is_like_no_example(examples: ClassExamples) -> None:
    examples = replace(examples, names=NAMELESS)
    fitted, known = GaussianProcess(examples, CONFIG), examples.features[0]
    unlike = torch.linalg.svd(examples.features).Vh[-1]  # at a right angle to all five
    spread = [
        torch.stack([fitted.scores(PROMPT, state, SampleSeed(n)) for n in range(2000)]).std(0).mean()
        for state in (known, unlike)
    ]
    assert fitted.scores(PROMPT, unlike, None) == pytest.approx([0, 0, 0], abs=1e-6)
    far = min(FARTHEST, (1 / left_out_variance(examples)) ** SHARPNESS)
    assert spread[1] == pytest.approx(SPREAD * far, rel=0.05)  # the prior's
    assert spread[0] < 0.2 * spread[1]


def test_examples_that_are_all_alike_leave_a_bounded_spread() -> None:
    states = unit(1, 6, seed=0).expand(5, 6)
    examples = ClassExamples(states, torch.tensor([0, 1, 2, 0, 0]), CLASSES, NAMELESS)
    fitted = GaussianProcess(examples, CONFIG)
    unlike = torch.linalg.svd(states).Vh[-1]
    drawn = torch.stack([fitted.scores(PROMPT, unlike, SampleSeed(n)) for n in range(2000)])
    assert drawn.std(0).mean() == pytest.approx(SPREAD * FARTHEST, rel=0.05)


def test_samples_lie_about_the_mean_as_far_as_the_spread_says(examples: ClassExamples) -> None:
    state, seed = unit(1, 6, seed=9)[0], SampleSeed(3)
    wide, half, none = (
        GaussianProcess(examples, replace(CONFIG, spread=spread)) for spread in (1.0, 0.5, 0.0)
    )
    mean = wide.scores(PROMPT, state, None)
    away = wide.scores(PROMPT, state, seed) - mean
    torch.testing.assert_close(half.scores(PROMPT, state, seed) - mean, away / 2, atol=1e-5, rtol=0)
    assert torch.equal(none.scores(PROMPT, state, seed), mean)


def scale(states: torch.Tensor, labels: torch.Tensor, names: torch.Tensor, at: torch.Tensor) -> float:
    """Return the score of the first of two classes minus that of the second, at a state."""
    fitted = GaussianProcess(ClassExamples(states, labels, ((5,), (6,)), names), CONFIG)
    a, b = fitted.scores(EncodedPrompt((1,), ((5,), (6,))), at, None).tolist()
    return float(a - b)


def test_examples_whose_likeness_tells_their_class_ask_for_more_weight() -> None:
    labels, none = torch.tensor([0, 1] * 6), torch.zeros(2, 2)
    clear, unclear = torch.eye(2)[labels], unit(12, 2, seed=1)
    assert scale(clear, labels, none, clear[0]) > 2 * scale(unclear, labels, none, unclear[0])


def test_names_count_where_the_examples_bear_them_out() -> None:
    labels, names = torch.tensor([0, 1] * 2), torch.eye(6)[:2]
    clear = torch.nn.functional.normalize(torch.eye(6)[labels] + torch.eye(6)[2:], dim=1)
    right, none, wrong = (
        scale(clear, labels, given, names[0]) for given in (names, torch.zeros(2, 6), names.flip(0))
    )
    assert right - none > 1
    assert abs(none - wrong) < 0.2


def test_a_class_that_no_example_shows_is_known_by_its_name() -> None:
    labels, names = torch.tensor([0, 1] * 6), torch.eye(3)
    examples = ClassExamples(names[labels], labels, CLASSES, names)
    unseen = GaussianProcess(examples, CONFIG).scores(PROMPT, names[2], None)
    assert unseen[2] - unseen[:2].max() > 1
    nameless = GaussianProcess(replace(examples, names=torch.zeros(3, 3)), CONFIG)
    assert nameless.scores(PROMPT, names[2], None).abs().max() < 1e-6


def test_typicality_is_the_rank_among_examples_and_input_left_out_one_at_a_time(
    examples: ClassExamples,
) -> None:
    fitted = GaussianProcess(examples, CONFIG)
    for state in unit(20, 6, seed=5):
        together = torch.cat([examples.features, state[None]]).double()
        found = []
        for i in range(6):
            others = together[[j for j in range(6) if j != i]]
            k = others @ together[i]
            found.append(float(1 - k @ torch.linalg.inv(others @ others.T + NOISE * torch.eye(5)) @ k))
        assert fitted.typicality(state) == pytest.approx(sum(v >= found[-1] for v in found) / 6)


def test_an_input_like_the_examples_is_seldom_called_unlike_them_and_another_is() -> None:
    """At most a proportion p of inputs has a typicality of at most p, for any distribution."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 12, generator=generator)

    def drawn(count: int, about: float) -> torch.Tensor:
        found = torch.randn(count, 4, generator=generator).exp() @ mixing + about
        return torch.nn.functional.normalize(found, dim=1)

    like, unlike = [], []
    for _ in range(400):
        examples = ClassExamples(drawn(19, 3.0), torch.arange(19) % 3, CLASSES, torch.zeros(3, 12))
        fitted = GaussianProcess(examples, CONFIG)
        like.append(fitted.typicality(drawn(1, 3.0)[0]))
        unlike.append(fitted.typicality(drawn(1, -3.0)[0]))
    found = torch.tensor(like)
    for p in (0.05, 0.1, 0.5):
        assert float((found <= p + 1e-9).float().mean()) == pytest.approx(
            p, abs=3 * (p * (1 - p) / 400) ** 0.5
        )
    assert min(unlike) == 0.05
    assert sum(unlike) / 400 < 0.1


def test_an_input_that_is_the_only_example_is_typical() -> None:
    fitted = GaussianProcess(ClassExamples(unit(1, 6, seed=0), torch.tensor([0]), CLASSES, NAMELESS), CONFIG)
    assert fitted.typicality(unit(1, 6, seed=0)[0]) == 1
    assert fitted.typicality(unit(1, 6, seed=1)[0]) == 1


def test_antithetic_samples_average_to_the_mean(examples: ClassExamples) -> None:
    fitted, state = GaussianProcess(examples, CONFIG), unit(1, 6, seed=9)[0]
    pair = [fitted.scores(PROMPT, state, sample) for sample in sample_seeds(3, 0, 2, paired=True)]
    assert not torch.allclose(pair[0], pair[1], atol=0.1)
    torch.testing.assert_close(sum(pair) / 2, fitted.scores(PROMPT, state, None), atol=1e-5, rtol=0)


def test_classes_are_found_by_their_tokens_and_others_get_nothing(examples: ClassExamples) -> None:
    fitted, state = GaussianProcess(examples, CONFIG), examples.features[0]
    whole = fitted.scores(PROMPT, state, None)
    some = fitted.scores(replace(PROMPT, continuations=(CLASSES[2], CLASSES[0])), state, None)
    assert some.tolist() == [whole[2], whole[0]]
    unknown = fitted.scores(replace(PROMPT, continuations=(CLASSES[0], (9,))), state, None)
    assert unknown.tolist() == [0, 0]
    assert fitted.scores(EncodedPrompt((1,)), state, None).tolist() == []


def test_class_examples_are_of_fixed_classes_in_any_order() -> None:
    hidden = [torch.randn(4, 6) for _ in range(3)]
    prompts = [PROMPT, replace(PROMPT, continuations=CLASSES[::-1]), PROMPT]
    features = Features(Whitening(torch.ones(6), torch.diag(torch.arange(6.0))))
    found = ClassExamples.of(prompts, hidden, [0, 0, 1], features)
    assert found is not None
    assert found.labels.tolist() == [0, 2, 1]
    own = [states[:3] for states in hidden]  # the prompt has three tokens
    torch.testing.assert_close(found.features, features(own, ["", "", ""]))
    others = [PROMPT, replace(PROMPT, continuations=((5,), (9,)))]
    assert ClassExamples.of(others, hidden[:2], [0, 0], features) is None
    assert (
        ClassExamples.of([EncodedPrompt((1, 2, 3), ((4, 0),))], hidden[:1], [0], features) is None
    )  # free text


def with_process(model: FewShotModel, *, encoder: bool = False) -> FewShotModel:
    prior = model.prior
    d = model.backbone.model.config.hidden_size
    states = [torch.randn(20, d, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    config = replace(prior.config, similarity=SimilarityConfig(WEIGHT))
    if encoder:
        config = replace(config, similarity=SimilarityConfig(WEIGHT, sentence_encoder="tiny"))
        model.sentences = SentenceEncoder(*tiny_sentence_encoder(), max_tokens=40)
    model.prior = replace(prior, config=config, whitening=Whitening.of(states))
    return model


def test_without_any_step_theta_learns_the_classes(make_model: Callable[..., FewShotModel]) -> None:
    model = with_process(make_model())
    instant = model.adapt(SUPPORT, AdaptSettings(steps=0)).posterior
    assert torch.equal(instant.values, model.prior.values)
    assert instant.class_examples
    query = SUPPORT[0].query
    (known,) = model.predict(instant, [query], samples=0)
    (alone,) = model.predict(None, [query], samples=0)
    assert known.predictive.probabilities != pytest.approx(alone.predictive.probabilities, abs=1e-3)
    assert known.typicality is not None
    assert alone.typicality is None


@pytest.mark.parametrize(("samples", "encoder"), [(0, False), (4, False), (0, True), (4, True)])
def test_a_prediction_adds_it_to_every_samples_scores(
    samples: int, encoder: bool, make_model: Callable[..., FewShotModel]
) -> None:
    model = with_process(make_model(), encoder=encoder)
    posterior = model.adapt(SUPPORT, AdaptSettings(2, 1e-3, 4)).posterior
    assert posterior.class_examples
    query = Query("a wonderful story", OPTIONS)
    runs = [
        model.begin_predict(p, [query], samples=samples, seed=3)
        for p in (posterior, replace(posterior, class_examples=()))
    ]
    model.advance(runs)
    prompt = model.encoder.encode(query)
    rows = collate([replace(prompt, continuations=())])
    (state,) = model.features([model.backbone.trunk(rows)], [query.input])
    assert posterior.config.similarity is not None
    fitted = GaussianProcess(posterior.class_examples[0], posterior.config.similarity)
    seeds = sample_seeds(3, 0, samples, paired=True) if samples else [None]
    added = torch.stack([fitted.scores(prompt, state, seed) for seed in seeds]).double()
    assert runs[0].predictions()[0].typicality == fitted.typicality(state)
    assert runs[1].predictions()[0].typicality is None
    with_it, without = (run._scoring.scores_of(0) for run in runs)
    torch.testing.assert_close(with_it - without, added, atol=1e-4, rtol=1e-4)
    assert added.abs().max() > 0.1


@pytest.mark.parametrize("encoder", [False, True])
def test_together_is_the_same_as_one_by_one(encoder: bool, make_model: Callable[..., FewShotModel]) -> None:
    """Prompts share a prefix, and one task has class examples while the other has none."""
    model = with_process(make_model(), encoder=encoder)
    start = "the film was wonderful and the actors were great and the story was told " * 2
    queries = [Query(start + end, OPTIONS) for end in ("well", "badly", "in Paris")]
    choices = [Example(t, ("yes", "no", t)[i % 3], ("yes", "no", t)) for i, t in enumerate(TEXTS)]
    settings = AdaptSettings(2, 1e-3, 4)
    fixed, open_ = (model.adapt(support, settings).posterior for support in (SUPPORT, choices))
    assert not open_.class_examples
    assert group([model.encoder.encode(query) for query in queries]).shared > 16
    asked = [(fixed, queries), (open_, queries)]
    for together, (posterior, _) in zip(model.predict_many(asked, samples=4, seed=3), asked, strict=True):
        for query, found in zip(queries, together, strict=True):
            (alone,) = model.predict(posterior, [query], samples=4, seed=3)
            expected = pytest.approx(alone.predictive.probabilities, abs=1e-4)
            assert found.predictive.probabilities == expected
            assert found.typicality == alone.typicality
            assert (found.typicality is None) == (not posterior.class_examples)


def test_it_is_kept_with_the_posterior(
    examples: ClassExamples, make_model: Callable[..., FewShotModel]
) -> None:
    start = TaskPosterior.start(make_model().prior)
    for posterior in (start, replace(start, class_examples=(examples,))):
        again = TaskPosterior.from_tensors(posterior.config, posterior.sites, posterior.to_tensors())
        assert torch.equal(again.values, posterior.values)
        if not posterior.class_examples:
            assert not again.class_examples
        else:
            assert again.class_examples
            assert torch.equal(again.class_examples[0].features, examples.features)
            assert torch.equal(again.class_examples[0].labels, examples.labels)
            assert torch.equal(again.class_examples[0].names, examples.names)
            assert again.class_examples[0].classes == examples.classes


def test_a_kept_posterior_answers_as_before(make_model: Callable[..., FewShotModel]) -> None:
    """The whitening and the encoder belong to the model and are not kept with the posterior."""
    model = with_process(make_model(), encoder=True)
    posterior = model.adapt(SUPPORT, AdaptSettings(2, 1e-3, 4)).posterior
    again = TaskPosterior.from_tensors(posterior.config, posterior.sites, posterior.to_tensors())
    before, after = (
        model.predict(p, [Query("a wonderful story", OPTIONS)], samples=4) for p in (posterior, again)
    )
    assert after[0].predictive.probabilities == before[0].predictive.probabilities


def test_a_posterior_that_names_an_encoder_needs_it(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model()
    prior = replace(
        model.prior, config=replace(model.prior.config, similarity=SimilarityConfig(sentence_encoder="tiny"))
    )
    with pytest.raises(PosteriorMismatchError, match="encoder tiny"):
        FewShotModel(model.backbone.model, model.encoder.tokenizer, prior)
