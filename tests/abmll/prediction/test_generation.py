"""Several answers of a sample: the first is greedy, and each is the same beside any others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from abmll.model import FewShotModel
from abmll.prediction.generation import Writing, _choose
from abmll.seeds import derive_seed
from abmll.text.tasks import Query
from tests.tiny import tiny_model

PROMPTS = [(5, 6, 7, 8), (40, 41, 42, 43, 44, 45, 46)]
NOISES: dict[str, dict[str, Any]] = {
    "weight": {"family": "weight", "offset": 0.02},
    "output": {"family": "output", "offset": -4.0},
    "weight, readout": {"family": "weight", "offset": 0.02, "readout_scale": 3.0},
}


def write(
    model: FewShotModel, samples: int, per_sample: int, prompts: list[tuple[int, ...]] = PROMPTS
) -> list[list[tuple[int, ...]]]:
    config, values = model.prior.config, model.prior.values
    writing = Writing(config, values, prompts, samples, 3, 0, 6, 10_000, per_sample)
    while not writing.done:
        writing.advance(model.backbone)
    return writing.written


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("samples", [0, 4])
def test_an_answer_is_the_same_however_many_are_written(
    noise: str, samples: int, make_model: Callable[..., FewShotModel]
) -> None:
    """Answer j of sample n is written with or without other prompts, beside 3 or 5 answers."""
    model, count = make_model(**NOISES[noise]), max(1, samples)
    greedy, three, five = (write(model, samples, m) for m in (1, 3, 5))
    for prompt in range(2):
        for n in range(count):
            assert three[prompt][n * 3] == five[prompt][n * 5] == greedy[prompt][n]
            assert three[prompt][n * 3 + 1 : n * 3 + 3] == five[prompt][n * 5 + 1 : n * 5 + 3]
        assert write(model, samples, 3, [PROMPTS[prompt]])[0] == three[prompt]
        assert len(set(five[prompt])) > len(set(greedy[prompt]))


def test_a_drawn_answer_follows_its_stream_on_the_dense_model(
    make_model: Callable[..., FewShotModel],
) -> None:
    """The test draws tokens from whole sequences, with the stream of seed, sample and answer."""
    model = make_model(random_prior=False)
    (answers,) = write(model, 0, 3, [PROMPTS[0]])
    dense = tiny_model()
    for j in (1, 2):
        stream = torch.Generator().manual_seed(derive_seed(3, "answer", 0, j))
        ids = PROMPTS[0]
        for token in answers[j]:
            with torch.no_grad():
                probabilities = dense(torch.tensor([ids])).logits[0, -1].softmax(-1)
            waits = torch.empty(len(probabilities)).exponential_(generator=stream)
            assert int((probabilities / waits).argmax()) == token
            ids += (token,)


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 4000
    streams = [torch.Generator().manual_seed(n) for n in range(count)]
    drawn = _choose(probabilities.log().repeat(count, 1), streams)[:, 0].bincount(minlength=4) / count
    error = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((drawn - probabilities).abs() < 4 * error).all()
    assert _choose(probabilities.log().repeat(2, 1), [None, None]).tolist() == [[0], [0]]


def test_more_answers_find_more_meanings_and_leave_less_unwritten(
    make_model: Callable[..., FewShotModel],
) -> None:
    model, query = make_model(offset=0.02), Query("What is the capital of France?")
    few, many = (
        model.predict(None, [query], samples=4, seed=3, answers_per_sample=m, max_new_tokens=2)[0]
        for m in (1, 8)
    )
    assert few.text is not None and many.text is not None
    texts = [{m for c in found.text.clusters for m in c.members} for found in (few, many) if found.text]
    assert texts[0] < texts[1]
    assert sum(few.predictive.probabilities) < sum(many.predictive.probabilities) <= 1
    assert few.text.entropy.total < many.text.entropy.total
    assert many.completion_tokens > few.completion_tokens
