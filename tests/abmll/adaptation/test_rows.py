"""Examples that ask about one input share a row: the same losses, gradients and work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from abmll.adaptation.run import AdaptRun, adapt_step
from abmll.adaptation.settings import MOST_STEPS, AdaptSettings, for_questions
from abmll.adaptation.support import Prepared, prepare
from abmll.decoder.rows import SHARED_ROW_TOKENS, group, packed_length, rows_of_inputs
from abmll.model import FewShotModel
from abmll.speed import counter_of
from abmll.text.questions import Case, Question, examples_of
from abmll.work import Work

TEXTS = ("the film was wonderful and the actors were great", "a dull story, badly told; I want my money back")
TOPIC = Question("topic", "choice", "What is it about?", ("film", "story"))
GOOD = Question("good", "predicate", "Is it good?", ("yes", "no"))
SUPPORT = examples_of(
    [TOPIC, GOOD],
    [
        Case(TEXTS[0], {"topic": "film", "good": "yes"}),
        Case(TEXTS[1], {"topic": "story", "good": None}),
        Case("dull", {"topic": "story", "good": "no"}),
    ],
)
SETTINGS = AdaptSettings(steps=2, learning_rate=0.01, batch_size=2)


def test_prompts_about_one_input_share_a_row_and_short_inputs_do_not(
    make_model: Callable[..., FewShotModel],
) -> None:
    prompts = [example.prompt for example in make_model().encode_support(SUPPORT)]
    assert rows_of_inputs(prompts) == [[0, 1], [2, 3], [4], [5]]
    plain = [replace(prompt, question=()) for prompt in prompts]
    assert rows_of_inputs(plain) == [[0], [1], [2], [3], [4], [5]]


def test_a_row_has_at_most_so_many_tokens(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model()
    asked = [Question("", "predicate", f"Is the film {i} great?", ("yes", "no")) for i in range(60)]
    prompts = [model.encoder.encode(question.query(TEXTS[0])) for question in asked]
    rows = rows_of_inputs(prompts)
    assert sorted(i for row in rows for i in row) == list(range(60))
    assert len(rows) > 1
    assert all(group([prompts[i] for i in row]).tokens <= SHARED_ROW_TOKENS for row in rows)


@pytest.mark.parametrize("max_tokens", [4096, 1])
def test_steps_on_rows_are_steps_on_their_examples(
    make_model: Callable[..., FewShotModel], max_tokens: int
) -> None:
    """Without noise; with noise, the examples of a row have one sample in common."""
    model = make_model(offset=0.0)
    prior = model.prior.without_noise()
    examples = model.encode_support(SUPPORT[:4])
    shared = prepare(model.backbone, examples)
    by_itself = [prepare(model.backbone, [example]) for example in examples]
    apart = Prepared(
        examples,
        [[i] for i in range(len(examples))],
        [one.hidden[0] for one in by_itself],
        [one.references[0] for one in by_itself],
    )
    runs = []
    for prepared, batches in ((shared, [[0, 1], [1, 0]]), (apart, [[0, 1, 2, 3], [2, 3, 0, 1]])):
        run = AdaptRun.start(model.backbone, prior, prepared, SETTINGS, batches, seed=3)
        for _ in batches:
            adapt_step(model.backbone, [run], max_tokens)
        runs.append(run)
    assert runs[0].losses == pytest.approx(runs[1].losses, abs=1e-5)
    # AdamW turns rounding of gradients near 0 into steps, so most values are compared.
    close = torch.isclose(runs[0].values, runs[1].values, atol=1e-4).float().mean()
    assert close > 0.99


def test_the_work_of_an_adaptation_counts_an_input_once(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model()
    examples, counter = model.encode_support(SUPPORT[:4]), counter_of(model)
    shared = prepare(model.backbone, examples)
    layers, tokens = counter.mean + counter.sampled, sum(map(len, shared.hidden))
    found: Work = counter.adaptation(examples, SETTINGS)
    assert found.learnt_tokens == layers * SETTINGS.steps * tokens
    assert found.learnt_rows == layers * SETTINGS.steps * 2
    whole = sum(packed_length(example.prompt) for example in examples)
    assert tokens < 0.8 * whole


@pytest.mark.parametrize(
    ("full", "rows", "questions", "steps"),
    [
        (AdaptSettings(6, batch_size=8), 256, 1, 6),  # one question
        (AdaptSettings(6, batch_size=8), 48, 9, 6),
        (AdaptSettings(6, batch_size=8), 49, 9, 7),
        (AdaptSettings(6, batch_size=8), 256, 9, MOST_STEPS),
        (AdaptSettings(2, batch_size=16), 40, 2, 3),
        (AdaptSettings(2, batch_size=4), 16, 2, 2),  # so few rows
        (AdaptSettings(0, batch_size=4), 256, 2, 0),  # no step at all
        (AdaptSettings(30, batch_size=8), 256, 9, 30),
    ],
)
def test_steps_grow_with_the_rows_of_several_questions(
    full: AdaptSettings, rows: int, questions: int, steps: int
) -> None:
    assert for_questions(full, rows, questions) == replace(full, steps=steps)


def test_every_row_of_several_questions_comes_at_least_once(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model()
    model.defaults = AdaptSettings(steps=1, learning_rate=0.01, batch_size=4)
    cases = [Case(f"film {i}", {"topic": "film", "good": "yes" if i % 2 else "no"}) for i in range(9)]
    run = model.begin_adapt(examples_of([TOPIC, GOOD], cases))
    assert len(run.prepared.rows) == 18  # inputs too short to share a row
    assert {row for batch in run.batches for row in batch} == set(range(18))
    assert len(run.batches) == 5
    asked = model.begin_adapt(examples_of([TOPIC, GOOD], cases), AdaptSettings(steps=2, batch_size=4))
    assert len(asked.batches) == 2
