"""Each method on a tiny model, against the facade where it must agree, else against an oracle."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.assurance.folds import make_folds
from abmll.cross_fitting import adapt_at_own_temperature
from abmll.errors import AbmllError
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.uncertainty import tempered
from abmll.seeds import derive_seed
from abmll.similarity.sentence_encoder import SentenceEncoder
from abmll.text.demonstrations import demonstrate, fitting
from abmll.text.draws import draw_uniformly
from abmll.text.prompting import EncodedPrompt, PromptTemplate
from abmll.text.tasks import Example, Query
from lab.evaluation.cell_runner import run_cell
from lab.evaluation.cells import Answer, Cell, Episode
from lab.evaluation.methods.adapted import Adapted
from lab.evaluation.methods.averaged import Dropout, Ensemble, masked_posteriors
from lab.evaluation.methods.channel import Channel, channel_prompt
from lab.evaluation.methods.contextual import CONTENT_FREE, ContextualCalibration
from lab.evaluation.methods.contract import Method
from lab.evaluation.methods.embeddings import Embeddings, fit_and_predict
from lab.evaluation.methods.in_context import InContext
from lab.evaluation.methods.prior import Prior
from lab.evaluation.methods.scoring import log_probs
from lab.evaluation.methods.tfb import IsotropicNoise, isotropic, largest_within, support_nll
from tests.tiny import make_config, tiny_model, tiny_sentence_encoder, tiny_tokenizer

SETTINGS = AdaptSettings(steps=3, learning_rate=0.01, batch_size=4)
LABELS = ("positive", "negative", "not related")
QUERIES = [Query("wonderful", LABELS), Query("a dull story", LABELS), Query("Paris", LABELS)]


def point_model(template: PromptTemplate | None = None) -> FewShotModel:
    config = make_config(rank=4, alpha=8.0, first_layer=1, offset=0.0)
    model = FewShotModel(tiny_model(), tiny_tokenizer(), config, template=template, defaults=SETTINGS)
    model.prior = model.prior.without_noise()
    return model


@pytest.fixture
def model(make_model: Callable[..., FewShotModel]) -> FewShotModel:
    made = make_model()
    made.defaults = SETTINGS
    return made


def distributions(answers: list[Answer]) -> list[tuple[float, ...]]:
    return [answer.probabilities for answer in answers]


# ---- what the facade does ------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 4])
def test_adapted_is_the_facade(model: FewShotModel, support: list[Example], samples: int) -> None:
    answers, effort = Adapted(samples=samples).answer(model, support, QUERIES, 21)
    posterior = model.adapt(support, SETTINGS, 21).posterior
    expected = model.predict(posterior, QUERIES, samples=samples, seed=21)
    assert distributions(answers) == [found.predictive.probabilities for found in expected]
    assert math.isnan(answers[0].mutual_information) == (samples == 0)
    assert effort.gradient_steps == 3
    asked = sum(found.prompt_tokens + found.completion_tokens for found in expected)
    learnt = sum(example.prompt.tokens for example in model.encode_support(support))
    assert effort.tokens == round(3 * 4 * learnt / len(support)) + asked * max(1, samples)


def test_adapted_with_folds_has_the_temperature_that_they_choose(
    model: FewShotModel, support: list[Example]
) -> None:
    found, effort = Adapted(samples=2, calibration_folds=3).answer(model, support, QUERIES, seed=3)
    plain, less = Adapted(samples=2).answer(model, support, QUERIES, seed=3)
    _, held_out = adapt_at_own_temperature(model, support, make_folds(support, 3), seed=3)
    for one, other in zip(found, plain, strict=True):
        expected = tempered(torch.tensor(other.probabilities), held_out.temperature_factor)
        assert one.probabilities == pytest.approx(expected.tolist(), abs=2e-3)
    assert (effort.gradient_steps, less.gradient_steps) == (4 * SETTINGS.steps, SETTINGS.steps)
    assert effort.tokens > less.tokens


def test_the_prior_answers_as_theta_and_untrained_as_the_base_model(
    model: FewShotModel, support: list[Example]
) -> None:
    answers, effort = Prior().answer(model, support, QUERIES, 1)
    assert distributions(answers) == [
        found.predictive.probabilities for found in model.predict(None, QUERIES, samples=0)
    ]
    assert effort.gradient_steps == 0
    base = tiny_model()
    untrained = distributions(Prior().answer(point_model(), support, QUERIES, 1)[0])
    for query, probabilities in zip(QUERIES, untrained, strict=True):
        scores = [plain_log_prob(base, f"{query.input}\nAnswer:", f" {option}") for option in LABELS]
        assert probabilities == pytest.approx(torch.tensor(scores).softmax(0).tolist(), abs=1e-5)


def plain_log_prob(model: object, prompt: str, text: str) -> float:
    """Return the log-probability of `text` after `prompt`, by one forward pass of the base."""
    tokenizer = tiny_tokenizer()
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0]  # type: ignore[operator]
    scores = logits.log_softmax(-1)
    return sum(float(scores[len(before) - 1 + i, token]) for i, token in enumerate(after))


def test_a_point_stays_one_under_adaptation(support: list[Example]) -> None:
    """Samples of the posterior are its mean, as in regular LoRA."""
    model = point_model()
    posterior = model.adapt(support, SETTINGS, 3).posterior
    assert all(not t.spread_a.any() and not t.spread_b.any() for t in posterior.by_site())
    assert any(t.mean_b.any() for t in posterior.by_site())
    mean, sampled = (
        distributions(Adapted(samples=n, settings=SETTINGS).answer(model, support, QUERIES, 3)[0])
        for n in (0, 4)
    )
    assert np.array(sampled) == pytest.approx(np.array(mean), abs=1e-6)


# ---- prompts -------------------------------------------------------------------------------------


def test_demonstrations_are_the_plain_sequence_of_solved_prompts(support: list[Example]) -> None:
    template = PromptTemplate(before_input="Text: ", after_input="\nAnswer:", before_output=" ")
    model = point_model(template)
    shown = demonstrate(support[:2], QUERIES[0], template)
    prompt = model.encoder.decode(model.encoder.encode(shown).prompt)
    one, two = support[:2]
    assert prompt == (
        f"Text: {one.input}\nAnswer: {one.output}\n\nText: {two.input}\nAnswer: {two.output}\n\nText: wonderful\nAnswer:"
    )
    assert demonstrate([], QUERIES[0], template) == QUERIES[0]


def test_demonstrations_show_inputs_as_the_template_asks_them() -> None:
    example = Example("Where? \n (A) Paris (B) Rome", "Rome", ("Paris", "Rome"))
    template = PromptTemplate(bare=True)
    shown = demonstrate([example], Query("Who?", ("she", "he")), template)
    assert shown.input == "Where?\nAnswer: Rome\n\nWho?"


def test_as_many_demonstrations_as_fit(support: list[Example]) -> None:
    encoder = point_model().encoder
    lengths = [
        encoder.encode(demonstrate(support[:n], QUERIES[1], encoder.template)).tokens for n in range(7)
    ]
    for count, length in enumerate(lengths):
        assert fitting(support, QUERIES[1], encoder, encoder.template, length) == demonstrate(
            support[:count], QUERIES[1], encoder.template
        )
    assert fitting(support, QUERIES[1], encoder, encoder.template, 1) == QUERIES[1]


def test_in_context_without_room_is_zero_shot(support: list[Example]) -> None:
    model = point_model()
    zero = distributions(Prior().answer(model, support, QUERIES, 0)[0])
    assert distributions(InContext(max_tokens=1).answer(model, support, QUERIES, 0)[0]) == zero
    assert distributions(InContext().answer(model, support, QUERIES, 0)[0]) != zero


def test_contextual_calibration_makes_neutral_inputs_neutral(support: list[Example]) -> None:
    model = point_model()
    plain = distributions(Prior().answer(model, support, QUERIES, 0)[0])
    neutral = model.predict(None, [Query(text, LABELS) for text in CONTENT_FREE], samples=0)
    bias = np.mean([found.predictive.probabilities for found in neutral], 0)
    expected = np.array(plain) / bias
    found = distributions(ContextualCalibration().answer(model, support, QUERIES, 0)[0])
    assert np.array(found) == pytest.approx(expected / expected.sum(1, keepdims=True))
    of_demonstrations = ContextualCalibration(of=InContext())
    assert distributions(of_demonstrations.answer(model, support, QUERIES, 0)[0]) != found


def test_channel_scores_the_input_behind_each_option(support: list[Example]) -> None:
    model, base = point_model(), tiny_model()
    found = distributions(Channel().answer(model, support[:2], QUERIES, 0)[0])
    shown = "".join(f"{example.output}\n{example.input}\n\n" for example in support[:2])
    for query, probabilities in zip(QUERIES, found, strict=True):
        scores = [plain_log_prob(base, f"{shown}{option}\n", query.input) for option in LABELS]
        assert probabilities == pytest.approx(torch.tensor(scores).softmax(0).tolist(), abs=1e-4)
    prompt = channel_prompt(support, Query("dull " * 500, LABELS), "positive", model.encoder, 100)
    assert prompt.tokens == 100
    (alone,) = log_probs(model, [EncodedPrompt((5, 6), ((7,),))])
    with torch.no_grad():
        assert alone[0] == pytest.approx(
            float(base(torch.tensor([[5, 6]])).logits[0, -1].log_softmax(0)[7]), abs=1e-5
        )


# ---- averages ------------------------------------------------------------------------------------


def test_an_ensemble_averages_differently_started_adaptations(support: list[Example]) -> None:
    model = point_model()
    before = model.prior
    one, three = (Ensemble(members=n).answer(model, support, QUERIES, 5) for n in (1, 3))
    assert model.prior is before
    assert math.isnan(one[0][0].mutual_information)
    assert three[0][0].mutual_information > 0
    assert three[1].gradient_steps == 9
    two = Ensemble(members=2).answer(model, support, QUERIES, 5)[0]
    # A larger ensemble has the members of a smaller one.
    second = 2 * np.array(distributions(two)) - np.array(distributions(one[0]))
    third = 3 * np.array(distributions(three[0])) - 2 * np.array(distributions(two))
    for member in (second, third):
        assert (member > 0).all()
        assert member.sum(1) == pytest.approx([1, 1, 1])
    assert second != pytest.approx(np.array(distributions(one[0])), abs=1e-4)


def test_an_ensemble_from_theta_is_of_adaptations_to_parts_of_the_support(
    model: FewShotModel, support: list[Example]
) -> None:
    ensemble = Ensemble(members=2, start="theta", share=0.5)
    answers, effort = ensemble.answer(model, support, QUERIES, 5)
    members = []
    for member in range(2):
        seed = derive_seed(5, "member", member)
        seen = draw_uniformly(support, max(2, round(len(support) / 2)), seed)
        posterior = model.adapt(seen, model.defaults, seed).posterior
        members.append([p.predictive.probabilities for p in model.predict(posterior, QUERIES, samples=0)])
    assert np.array(distributions(answers)) == pytest.approx(np.mean(members, axis=0))
    assert answers[0].mutual_information > 0
    assert effort.gradient_steps == 2 * model.defaults.steps


def test_an_ensemble_is_of_points(model: FewShotModel, support: list[Example]) -> None:
    with pytest.raises(AbmllError, match="noise"):
        Ensemble().answer(model, support, QUERIES, 0)


def test_dropout_of_nothing_is_the_mean_and_masks_are_unbiased(support: list[Example]) -> None:
    model = point_model()
    mean = np.array(distributions(Adapted(samples=0).answer(model, support, QUERIES, 2)[0]))
    none = Dropout(rate=0.0, samples=3).answer(model, support, QUERIES, 2)[0]
    assert np.array(distributions(none)) == pytest.approx(mean)
    assert none[0].mutual_information == pytest.approx(0, abs=1e-9)
    some = Dropout(rate=0.3, samples=8).answer(model, support, QUERIES, 2)[0]
    assert some[0].mutual_information > 0
    start = TaskPosterior.start(model.prior)
    masked = torch.stack([m.by_site()[0].mean_a for m in masked_posteriors(start, 0.25, 800, 0)])
    columns = masked[0].ne(0).float().mean(0)
    assert set(columns.tolist()) == {0.0, 1.0}  # one mask of the input zeroes whole columns
    torch.testing.assert_close(masked.mean(0), start.by_site()[0].mean_a, atol=0.03, rtol=0)


# ---- variance from the support -------------------------------------------------------------------


def test_bisection_keeps_the_end_that_holds() -> None:
    for limit in (0.0005, 0.01, 0.2):
        found = largest_within(lambda scale, limit=limit: scale > limit, 1e-4, 0.3, 12)
        assert found <= limit
        assert found == pytest.approx(limit, rel=0.01)
    assert largest_within(lambda scale: False, 1e-4, 0.3, 5) == 0.3
    assert largest_within(lambda scale: True, 1e-4, 0.3, 5) == 0.0


def test_isotropic_noise_hardly_raises_the_supports_loss(support: list[Example]) -> None:
    model = point_model()
    method = IsotropicNoise(samples=4, settings=SETTINGS, halvings=5)
    answers, _ = method.answer(model, support, QUERIES, 4)
    posterior = model.adapt(support, SETTINGS, 4).posterior
    flat = isotropic(posterior)
    known = [example.query for example in support]
    limit = 1.003 * support_nll(model.predict(flat, known, samples=0), support)
    grid = np.geomspace(method.smallest, method.largest, 2**5 + 1)
    nll = [
        support_nll(model.predict(flat.with_noise_scale(s), known, samples=4, seed=4), support) for s in grid
    ]
    # Every crossing of the limit on the grid that bisection goes over.
    candidates = [
        scale
        for i, scale in enumerate(grid)
        if nll[i] <= limit and (i + 1 == len(grid) or nll[i + 1] > limit)
    ]
    matches = [
        np.allclose(
            [
                f.predictive.probabilities
                for f in model.predict(flat.with_noise_scale(s), QUERIES, samples=4, seed=4)
            ],
            distributions(answers),
            atol=1e-6,
        )
        for s in candidates
    ]
    assert any(matches)
    nothing = replace(method, tolerance=-1.0).answer(model, support, QUERIES, 4)[0]
    mean = Adapted(samples=0, settings=SETTINGS).answer(model, support, QUERIES, 4)[0]
    assert np.array(distributions(nothing)) == pytest.approx(np.array(distributions(mean)))


# ---- embeddings ----------------------------------------------------------------------------------


def test_embeddings_are_logistic_regression_on_features() -> None:
    """With one orthogonal feature a class and little penalty, every class is recognised.

    One class alone has a probability of 1.
    """
    words = ["film", "money", "Paris"]
    pool = [Example(f"{word} {i}", LABELS[c], LABELS) for c, word in enumerate(words[:2]) for i in range(4)]

    def encode(texts: object) -> np.ndarray:
        return np.array([[float(word in text) for word in words] for text in texts], np.float32)  # type: ignore[attr-defined]

    classes, found = fit_and_predict(pool, ["a film", "money"], encode, 1e4)
    assert classes == ["negative", "positive"]
    assert found.argmax(1).tolist() == [1, 0]
    assert found.max(1).min() > 0.99
    assert fit_and_predict(pool[:4], ["money"], encode, 1.0)[1].tolist() == [[1.0]]


def test_a_class_without_examples_has_the_probability_of_add_one_smoothing(support: list[Example]) -> None:
    model = point_model()
    model.sentences = SentenceEncoder(*tiny_sentence_encoder(), max_tokens=40)
    seen = [example for example in support if example.output != LABELS[2]]
    answers, _ = Embeddings().answer(model, seen, QUERIES, 0)
    for answer in answers:
        assert answer.probabilities[2] == pytest.approx(1 / (len(seen) + 3))
        assert sum(answer.probabilities) == pytest.approx(1)


def test_embeddings_need_fixed_classes_and_an_encoder(support: list[Example]) -> None:
    model = point_model()
    with pytest.raises(AbmllError, match="same options"):
        Embeddings().answer(model, support, [Query("x", ("this", "that"))], 0)
    with pytest.raises(AbmllError, match="sentence encoder all-minilm-l6-v2"):
        Embeddings().answer(model, support, QUERIES, 0)


# ---- all of them ---------------------------------------------------------------------------------

METHODS: list[Method] = [
    Prior(), Adapted(samples=0), Adapted(samples=3), InContext(), Channel(), Channel(demonstrations=False),
    ContextualCalibration(), Ensemble(members=2), Dropout(samples=2), IsotropicNoise(samples=2, halvings=2),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_cell_repeats_and_keeps_every_answer(method: Method, support: list[Example]) -> None:
    data = Episode(
        tuple(support), tuple(QUERIES), (0, 1, 2), (Query("story", LABELS), Query("money", LABELS))
    )
    one, other = (
        run_cell(Cell("m", "t", "6", 13), method, point_model(), data, LABELS, lambda: lambda: 7)
        for _ in range(2)
    )
    assert one.probabilities.shape == (3, 3)
    assert one.foreign_probabilities.shape == (2, 3)
    assert one.probabilities.sum(1) == pytest.approx([1, 1, 1])
    assert np.array_equal(one.probabilities, other.probabilities)
    assert np.array_equal(one.foreign_information, other.foreign_information, equal_nan=True)
    assert one.cost.tokens == other.cost.tokens > 0
    assert one.cost.peak_memory_bytes == 7
    assert one.cost.seconds >= one.cost.adapt_seconds
