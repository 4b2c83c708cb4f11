"""Work is what the model really runs: closed forms by hand, and the passes of a tiny model,
counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from abmll.adaptation.run import adapt_step
from abmll.adaptation.settings import AdaptSettings
from abmll.adaptation.support import Preparation
from abmll.decoder.backbone import Backbone
from abmll.model import FewShotModel
from abmll.prediction import option_runs
from abmll.prediction.settings import PredictSettings
from abmll.similarity.gaussian_process import SimilarityConfig
from abmll.similarity.sentence_encoder import SentenceEncoder
from abmll.speed import counter_of, measure_speed, probes_of
from abmll.text.prompting import RECOMMENDED_TEMPLATE, EncodedPrompt, LabelledPrompt
from abmll.text.tasks import Example, Query
from abmll.work import Speed, Work, WorkCounter
from tests.tiny import make_config, tiny_model, tiny_sentence_encoder, tiny_tokenizer

COUNTER = WorkCounter(
    trunk=1, mean=0, sampled=3, chunk_tokens=64, support_tokens=100, step_tokens=25,
    plain_tokens=32,
)  # fmt: skip
CLASSES = ("good", "bad", "neither of them")
TEXTS = ["great film", "a dull and badly told story", "Paris", "money back", "the actors were great", "0 1 2"]


def prompt(tokens: int, *options: int, first: int = 1) -> EncodedPrompt:
    """Return a prompt that begins with `first`, with options of these numbers of tokens."""
    ids = (first, *range(1, tokens))
    return EncodedPrompt(
        ids, tuple(tuple(range(1, n + 1)) for n in options), options=tuple(map(str, range(len(options))))
    )


# ---- closed forms --------------------------------------------------------------------------------


def test_a_prediction_is_one_trunk_and_each_sample_of_the_layers_above() -> None:
    # One row of 10 + 2 tokens; chunks of 64 tokens hold 5 samples of it, and so 4, which are pairs.
    found = COUNTER.prediction([prompt(10, 1, 3)], PredictSettings(6))
    assert found == Work(
        frozen_passes=1, frozen_tokens=12, sampled_passes=2 * 3, sampled_tokens=6 * 3 * 12, draws=6 * 3,
        scored=6 * 3, pairs=(1 + 6 * 3) * 12**2,
    )  # fmt: skip


def test_layers_under_the_mean_run_once_however_many_samples_there_are() -> None:
    shared = replace(COUNTER, mean=3, sampled=0)
    found = shared.prediction([prompt(10, 1, 3)], PredictSettings(6))
    assert (found.mean_passes, found.mean_tokens) == (3, 3 * 12)
    assert (found.sampled_tokens, found.scored, found.moved) == (0, 2 * 3, 6 * 3)
    assert found.pairs == 12**2 * (1 + 3)


def test_the_mean_is_one_sample_and_auto_is_priced_at_its_fewest() -> None:
    one = [prompt(10, 1, 3)]
    assert COUNTER.prediction(one, PredictSettings(0)) == COUNTER.prediction(one, PredictSettings(1))
    assert COUNTER.prediction(one, PredictSettings("auto")) == COUNTER.prediction(one, PredictSettings(8))
    few = PredictSettings("auto", most_samples=4)
    assert COUNTER.prediction(one, few) == COUNTER.prediction(one, PredictSettings(4))


def test_a_long_row_is_a_pass_of_its_own_whose_pairs_are_those_of_the_padded_row() -> None:
    found = COUNTER.prediction([prompt(100, 1, 1)], PredictSettings(2))
    assert (found.pairs, found.long_pairs) == (0, (1 + 2 * 3) * 112**2)
    assert found.sampled_passes == 2 * 3  # one sample a chunk


def test_a_prefix_that_prompts_share_is_counted_once() -> None:
    ids = tuple(range(20))
    both = [EncodedPrompt((*ids, last), ((1,), (2,)), options=("a", "b")) for last in (7, 8)]
    assert COUNTER.prediction(both, PredictSettings(0)).frozen_tokens == 22


def test_steps_are_cut_into_passes() -> None:
    # Rows of 14 tokens: passes of 25 tokens hold one of them.
    examples = [LabelledPrompt(prompt(12, 2, 2, first=n), 0) for n in range(4)]
    found = COUNTER.adaptation(examples, AdaptSettings(steps=3, batch_size=4))
    assert (found.frozen_passes, found.frozen_tokens) == (1, 56)
    assert found.learnt_passes == 3 * 4 * 3
    assert found.learnt_tokens == 3 * 4 * 3 * 14
    assert found.learnt_rows == 3 * 4 * 3
    assert found.learnt_pairs == 3 * 4 * 3 * 14**2
    assert found.scored == 2 * 3 * 4 * 3
    assert COUNTER.adaptation(examples, AdaptSettings(steps=0)) == COUNTER.trunk_of(
        [example.prompt for example in examples]
    )


def test_the_sentence_encoder_reads_inputs_in_batches_and_names_of_classes() -> None:
    counter = replace(COUNTER, embedded_tokens=20, chunk_tokens=1000)
    examples = [LabelledPrompt(prompt(n, 1, 1), 0) for n in (5, 6, 7, 8, 9, 10, 11, 12, 90)]
    found = counter.adaptation(examples, AdaptSettings(steps=1))
    assert (found.embedded_batches, found.embedded) == (3, 8 * 12 + 20 + 2 * 3)
    differ = [*examples[:-1], LabelledPrompt(prompt(9, 1, 2), 0)]
    assert counter.adaptation(differ, AdaptSettings(steps=1)).embedded == 0
    queries = [example.prompt for example in examples]
    assert counter.prediction(queries, PredictSettings(0), with_process=True).embedded == 8 * 12 + 20
    assert counter.prediction(queries, PredictSettings(0)).embedded == 0


def test_answers_are_written_token_by_token_and_then_scored() -> None:
    settings = PredictSettings(2, max_new_tokens=8)
    free = EncodedPrompt(tuple(range(10)))
    found = COUNTER.prediction([free], settings, answer_tokens=3)
    written = EncodedPrompt(free.prompt, ((0, 0, 0),) * 2, options=("", ""))
    scoring = COUNTER.prediction([written], settings)
    assert found.frozen_passes - scoring.frozen_passes == 1 + 3
    assert found.sampled_tokens - scoring.sampled_tokens == 3 * 2 * (10 + 3)
    assert found.scored - scoring.scored == 2 * (1 + 3)
    capped = COUNTER.prediction([free], settings, answer_tokens=100)
    assert capped == COUNTER.prediction([free], settings, answer_tokens=8)


def test_seconds_are_amounts_times_what_one_of_them_takes() -> None:
    speed = Speed(tuple(float(n == 1) + 10 * (n == 7) for n in range(len(fields(Work)))))
    assert speed.seconds(Work(frozen_tokens=3, scored=2, pairs=7)) == 23
    assert speed.seconds((Work(frozen_tokens=3) + Work(scored=2)) * 2) == 46


# ---- what really runs ----------------------------------------------------------------------------


class Counted(FewShotModel):
    """A model that counts the layers, rows and tokens of its passes."""

    def __init__(self, readout_scale: float | None = None, **more: Any) -> None:
        config = make_config(
            rank=2,
            first_layer=1,
            similarity=SimilarityConfig(sentence_encoder="tiny"),
            readout_scale=readout_scale,
        )
        super().__init__(
            tiny_model(), tiny_tokenizer(), config, template=RECOMMENDED_TEMPLATE,
            sentences=SentenceEncoder(*tiny_sentence_encoder(), max_tokens=16),
        )  # fmt: skip
        self.counted: Counter[str] = Counter()
        self.counter = replace(counter_of(self), plain_tokens=512, **more)

    def note(self, kind: str, layers: int, lengths: tuple[int, ...]) -> None:
        found, squares = self.counted, sum(length**2 for length in lengths)
        found[f"{kind}_passes"] += layers
        found[f"{kind}_tokens"] += layers * sum(lengths)
        found["learnt_pairs" if kind == "learnt" else "pairs"] += layers * squares
        found["learnt_rows"] += layers * len(lengths) * (kind == "learnt")


@pytest.fixture(params=[None, 2.0], ids=["noise at every site", "noise in the readout"])
def model(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Counted:
    torch.set_num_threads(1)
    model = Counted(request.param, chunk_tokens=100, support_tokens=50, step_tokens=40)
    packed, draw, moved = Backbone._packed, option_runs._draw, Backbone.readout_log_probs

    def counting(self: Backbone, part: Any, rows: Any, **inputs: Any) -> Any:
        last = part is not self._trunk
        kind = "learnt" if torch.is_grad_enabled() else "mean" if request.param else "sampled"
        kind = "frozen" if self._call.draw is None else kind
        model.note(kind, len(part.layers), rows.lengths)
        if last:
            twice = kind == "learnt" or part is self._top_without_norm
            model.counted["scored"] += len(rows.scored) * (2 if twice else 1)
        return packed(self, part, rows, **inputs)

    def drawing(backbone: Backbone, chunks: Any) -> Any:
        model.counted["draws"] += model.counter.sampled * sum(chunk.copies for chunk in chunks)
        return draw(backbone, chunks)

    def moving(self: Backbone, readout: Any, noise: Any, rows: Any) -> Any:
        found = moved(self, readout, noise, rows)
        model.counted["moved"] += len(found) * len(readout.states)
        return found

    monkeypatch.setattr(Backbone, "readout_log_probs", moving)
    monkeypatch.setattr(Backbone, "_packed", counting)
    monkeypatch.setattr(option_runs, "_draw", drawing)
    return model


def examples_of(model: FewShotModel, options: list[tuple[str, ...]]) -> list[LabelledPrompt]:
    support = [
        Example(text, own[n % len(own)], own)
        for n, (text, own) in enumerate(zip(TEXTS, options, strict=True))
    ]
    return model.encode_support(support)


def but_embedded(work: Work) -> dict[str, float]:
    """Return what is not zero of what the tests count: all but the sentence encoder's tokens."""
    return {name: n for name, n in vars(work).items() if n and not name.startswith("embedded")}


@pytest.mark.parametrize(
    "options", [[CLASSES] * 6, [(f"{n} {n}", "Paris", "0") for n in range(6)]], ids=["classes", "choices"]
)
def test_an_adaptation_runs_the_passes_that_are_counted(model: Counted, options: Any) -> None:
    counter, settings = model.counter, AdaptSettings(steps=3, batch_size=4)
    examples = examples_of(model, options)
    preparation = Preparation(examples, counter.support_tokens)
    while not preparation.done:
        preparation.advance(model.backbone)
    run = model.adapt_prepared(preparation.result(), settings, seed=5)
    while not run.done:
        adapt_step(model.backbone, [run], counter.step_tokens)
    assert +model.counted == but_embedded(counter.adaptation(examples, settings, 5))


@pytest.mark.parametrize("samples", [0, 1, 5, 16])
def test_a_prediction_runs_the_passes_that_are_counted(model: Counted, samples: int) -> None:
    queries = [Query(text, CLASSES) for text in TEXTS] + [Query("one more", ("yes", "no, no", "Paris"))]
    settings = PredictSettings(samples)
    prompts = model.encode_queries(queries, settings)
    run = model.start_predict(None, prompts, settings, model.counter.chunk_tokens)
    while not run.done:
        model.advance([run])
    assert +model.counted == but_embedded(model.counter.prediction(prompts, settings))


@pytest.mark.parametrize(("samples", "each"), [(0, 1), (3, 2), (12, 1)])
def test_free_text_reads_and_writes_the_tokens_that_are_counted(
    model: Counted, monkeypatch: pytest.MonkeyPatch, samples: int, each: int
) -> None:
    """With an end that is never written, all answers have `max_new_tokens` tokens."""
    continue_trunk, next_logits = Backbone.continue_trunk, Backbone.next_logits
    continue_readout, readout_logits = Backbone.continue_readout, Backbone.readout_logits
    found, counter = model.counted, model.counter

    def note(kind: str, layers: int, tokens: int) -> None:
        found[f"{kind}_passes"] += layers
        found[f"{kind}_tokens"] += layers * tokens

    def trunk(self: Backbone, ids: Any, *more: Any) -> Any:
        note("frozen", counter.trunk, ids.numel())
        return continue_trunk(self, ids, *more)

    def top(self: Backbone, hidden: Any, *more: Any) -> Any:
        note("mean" if counter.mean else "sampled", counter.mean + counter.sampled, hidden[..., 0].numel())
        found["scored"] += len(hidden)
        return next_logits(self, hidden, *more)

    def shared(self: Backbone, hidden: Any, *more: Any) -> Any:
        note("mean", counter.mean, hidden[..., 0].numel())
        return continue_readout(self, hidden, *more)

    def read_out(self: Backbone, states: Any, noise: Any) -> Any:
        found["scored"] += len(states)
        return readout_logits(self, states, noise)

    monkeypatch.setattr(Backbone, "continue_trunk", trunk)
    monkeypatch.setattr(Backbone, "next_logits", top)
    monkeypatch.setattr(Backbone, "continue_readout", shared)
    monkeypatch.setattr(Backbone, "readout_logits", read_out)
    model.encoder.end_of_text = -1
    settings = PredictSettings(samples, max_new_tokens=3, answers_per_sample=each)
    prompts = model.encode_queries([Query(text) for text in TEXTS[:4]], settings)
    run = model.start_predict(None, prompts, settings, model.counter.chunk_tokens)
    while run.kind == "write":
        model.advance([run])
    counted = counter._writing(prompts, samples, each, 3, 3)
    for name in vars(counted).keys() - {"draws", "long_pairs"}:
        assert found[name] == getattr(counted, name), name


# ---- the speed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("readout_scale", [None, 2.0])
def test_a_speed_is_found_again_from_the_times_that_it_gives(readout_scale: float | None) -> None:
    """A clock that goes on by the seconds of each probe: every kind of work is told apart."""
    model = Counted(readout_scale)
    truth = Speed(tuple(1e-8 * (1 + n % 5) for n in range(len(fields(Work)))))
    spent = [truth.seconds(probe.work) for probe in probes_of(model)]
    ticks = [*spent, *(3 * seconds for seconds in spent)]  # the second round is slow, and does not count
    now = [0.0]
    times = iter([t for seconds in ticks for t in (0.0, seconds)])

    def clock() -> float:
        now[0] += next(times)
        return now[0]

    found = measure_speed(model, clock=clock)
    has = [bool(sum(amounts)) for amounts in zip(*(p.work.amounts for p in probes_of(model)), strict=True)]
    lacking = ("sampled", "draws") if readout_scale else ("mean", "moved")
    assert has == [not field.name.startswith(lacking) for field in fields(Work)]
    expected = [seconds * there for seconds, there in zip(truth.seconds_of, has, strict=True)]
    assert found.seconds_of == pytest.approx(expected, rel=1e-3)


def test_a_measured_speed_is_of_this_model() -> None:
    found = measure_speed(Counted())
    assert all(seconds >= 0 for seconds in found.seconds_of)
    assert 0 < found.seconds(Work(frozen_passes=3, frozen_tokens=300, pairs=3 * 100**2)) < 10
