"""Scores of options: against one sequence for each option, and equal in every batch."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.decoder import option_references as options
from abmll.errors import AbmllError
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.text.prompting import OptionScore, PromptEncoder, PromptTemplate
from abmll.text.tasks import Example, Query, without_listed_options
from tests.tiny import tiny_model, tiny_tokenizer

OPTIONS = ("positive", "not related", "negative")
QUERIES = [
    Query("the film was wonderful", OPTIONS),
    Query("a badly told story, I want my money back", ("Paris", "France")),
    Query("dull", OPTIONS),
]


def scoring(model: FewShotModel, score: OptionScore) -> FewShotModel:
    """Give the model a template with this score, and return it."""
    encoder = model.encoder
    template = replace(encoder.template, score=score)
    model.encoder = PromptEncoder(encoder.tokenizer, template, encoder.max_tokens)
    return model


def log_prob(prompt: tuple[int, ...], continuation: tuple[int, ...]) -> float:
    """Return the log-probability of the continuation under the base, as one sequence."""
    with torch.no_grad():
        logs = tiny_model()(torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
    return math.fsum(float(logs[len(prompt) - 1 + k, token]) for k, token in enumerate(continuation))


@pytest.mark.parametrize("score", ["total", "mean", "pmi"])
def test_scores_are_those_of_one_sequence_per_option(
    score: OptionScore, make_model: Callable[..., FewShotModel]
) -> None:
    model = scoring(make_model(random_prior=False), score)
    neutral = tuple(model.encoder.tokenizer("\nAnswer:")["input_ids"])
    for query, found in zip(QUERIES, model.predict(None, QUERIES, samples=0), strict=True):
        encoded = model.encoder.encode(query)
        expected = []
        for ids in encoded.continuations:
            value = log_prob(encoded.prompt, ids)
            if score == "pmi":
                value -= log_prob(neutral, ids)
            expected.append(value if score == "total" else value / len(ids))
        assert len({len(ids) for ids in encoded.continuations}) > 1
        wanted = torch.tensor(expected).softmax(0).tolist()
        assert found.predictive.probabilities == pytest.approx(wanted, abs=1e-4)


def test_an_input_that_says_nothing_prefers_no_option(make_model: Callable[..., FewShotModel]) -> None:
    model = scoring(make_model(random_prior=False), "pmi")
    (found,) = model.predict(None, [Query("", OPTIONS)], samples=0)
    assert found.predictive.probabilities == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_the_reference_is_the_base_models_and_no_samples(make_model: Callable[..., FewShotModel]) -> None:
    """Compare two scores: in every sample they differ by the log-probability under the base."""
    logits = {}
    for score in ("mean", "pmi"):
        model = scoring(make_model(offset=0.05), score)
        run = model.begin_predict(TaskPosterior.start(model.prior), QUERIES, samples=4, seed=3)
        while not run.done:
            model.advance([run])
        logits[score] = [run._scoring.scores_of(n) for n in range(len(QUERIES))]
    neutral = tuple(model.encoder.tokenizer("\nAnswer:")["input_ids"])
    for query, mean, pmi in zip(QUERIES, logits["mean"], logits["pmi"], strict=True):
        encoded = model.encoder.encode(query)
        base = torch.tensor([log_prob(neutral, ids) / len(ids) for ids in encoded.continuations])
        torch.testing.assert_close(mean - pmi, base.double().expand(4, -1), atol=1e-3, rtol=0)


def test_together_and_one_by_one_agree(
    make_model: Callable[..., FewShotModel], support: list[Example]
) -> None:
    model = scoring(make_model(), "pmi")
    settings = AdaptSettings(steps=3, learning_rate=0.01, batch_size=3)
    supports = [support, [replace(e, options=OPTIONS) for e in support[::-1]]]
    together = model.adapt_many(supports, settings)
    for part, adaptation in zip(supports, together, strict=True):
        alone = model.adapt(part, settings)
        assert adaptation.losses == pytest.approx(alone.losses, abs=1e-4)
    phi = together[0].posterior
    batch = model.predict(phi, QUERIES, samples=5, seed=7)
    single = [model.predict(phi, [query], samples=5, seed=7)[0] for query in QUERIES]
    for one, other in zip(batch, single, strict=True):
        assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=1e-4)


def test_the_first_loss_is_that_of_the_scores(
    make_model: Callable[..., FewShotModel], support: list[Example]
) -> None:
    model = scoring(make_model(random_prior=False, offset=0.0), "pmi")
    found = model.predict(None, [example.query for example in support], samples=0)
    expected = [
        -math.log(one.predictive.probabilities[example.options.index(example.output)])
        for one, example in zip(found, support, strict=True)
    ]
    first = model.adapt(support, AdaptSettings(steps=1, batch_size=len(support))).losses[0]
    assert first == pytest.approx(math.fsum(expected) / len(support), abs=1e-4)


def test_what_options_have_behind_no_input_is_kept_for_predictions(
    make_model: Callable[..., FewShotModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "MOST_REMEMBERED", 2)
    model = scoring(make_model(), "pmi")
    first = model.predict(None, QUERIES, samples=0)
    kept = dict(model.backbone.offsets)
    assert len(kept) == 2  # of three queries, two sets of options
    again = model.predict(None, QUERIES, samples=0)
    assert [one.predictive for one in again] == [one.predictive for one in first]
    assert all(model.backbone.offsets[prompt] is kept[prompt] for prompt in kept)
    model.predict(None, [Query("great", ("Rome", "Paris", "Berlin"))], samples=0)
    assert len(model.backbone.offsets) == 2
    assert len(kept.keys() & model.backbone.offsets.keys()) == 1


def test_a_template_without_text_has_nothing_to_compare_with() -> None:
    with pytest.raises(AbmllError, match="leaves empty"):
        PromptEncoder(tiny_tokenizer(), PromptTemplate(after_input="", score="pmi"), 100)


def test_free_text_is_scored_as_a_whole(make_model: Callable[..., FewShotModel]) -> None:
    examples = [Example("great film", "Paris"), Example("dull", "France")]
    plain = make_model().adapt(examples, AdaptSettings(steps=2))
    other = scoring(make_model(), "pmi").adapt(examples, AdaptSettings(steps=2))
    assert other.losses == plain.losses


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("Which city? \n (A) Paris (B) Rome", "Which city?"),
        ("Which city? \n (A) Paris (B) Rome \n She lives there.", "Which city? \n She lives there."),
        ("Which city?", "Which city?"),
        ("Which city? \n (A) Rome (B) Paris", "Which city? \n (A) Rome (B) Paris"),
        ("(A) Paris (B) Rome", "(A) Paris (B) Rome"),
    ],
)
def test_a_list_of_the_querys_own_options_is_left_out(text: str, bare: str) -> None:
    assert without_listed_options(Query(text, ("Paris", "Rome"))) == bare
    assert without_listed_options(Query(text)) == text
    template = PromptTemplate(bare=True)
    assert template.shown(Query(text, ("Paris", "Rome"))) == bare
    assert PromptTemplate().shown(Query(text, ("Paris", "Rome"))) == text


def test_behind_an_instruction_the_global_posterior_scores_options_after_inputs_that_say_nothing(
    make_model: Callable[..., FewShotModel],
) -> None:
    """The reference is the mean over such inputs of what theta's own mean gives the option."""
    model = make_model()
    template = PromptTemplate(score="pmi", content_free=("nothing", "N/A"))
    total = PromptTemplate(score="mean")
    query = Query("the film was dull", ("yes", "no"), "Is it good?")

    def scores(template: PromptTemplate, *texts: str) -> list[torch.Tensor]:
        model.encoder = PromptEncoder(model.encoder.tokenizer, template, 256)
        found = model.predict(None, [replace(query, input=text) for text in texts], samples=0)
        return [torch.tensor(one.predictive.probabilities, dtype=torch.float64).log() for one in found]

    (found,) = scores(template, query.input)
    own, *free = scores(total, query.input, "nothing", "N/A")
    expected = own - torch.stack(free).mean(0)
    assert torch.allclose(found, expected.log_softmax(-1), atol=1e-4)
    # What an input that says nothing is asked has equal probabilities.
    alike = model_scores_alike(model, template)
    assert alike == pytest.approx(0.5, abs=1e-4)


def model_scores_alike(model: FewShotModel, template: PromptTemplate) -> float:
    """The probability of an option behind the only input that says nothing."""
    model.encoder = PromptEncoder(model.encoder.tokenizer, replace(template, content_free=("N/A",)), 256)
    query = Query("N/A", ("yes", "no"), "Is it good?")
    return model.predict(None, [query], samples=0)[0].predictive.probabilities[0]
