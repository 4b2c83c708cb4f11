"""Prediction, unit by unit: the average over S posterior samples, in probability space.

See docs/method.md 5. With options, it is the mean over samples of the softmax of the options'
scores. Free text is written first: each sample's weights write one answer greedily, and more by
drawing tokens where `answers_per_sample` is above 1. Then every distinct answer is scored under
every sample. Answers that mean the same are one outcome (`semantic.py`). The rest of the
probability belongs to texts that no sample wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from abmll.decoder.backbone import Backbone
from abmll.decoder.passes import Pace, Resting, finish
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.generation import Writing
from abmll.prediction.option_runs import (
    TOKENS_PER_CHUNK,
    Chunk,
    OptionRun,
    Sampling,
    resting_scores,
    score_chunk,
)
from abmll.prediction.semantic import Candidate, Equivalence, NormalisedMatch, TextAnswer, read_answers
from abmll.prediction.settings import PredictSettings
from abmll.prediction.stopping import StopRule
from abmll.prediction.uncertainty import Predictive, summarise
from abmll.similarity.features import Features
from abmll.text.prompting import EncodedPrompt, PromptEncoder


@dataclass(frozen=True)
class Prediction:
    """The prediction for one query, and the tokens it took.

    It is not `settled` while more samples are to come. Free text has `text`, and its predictive is
    over meanings. `typicality` says how like the adapter's examples the input is
    (`GaussianProcess.typicality`); it is None where the adapter has no class examples. A declinable
    query has `answerable`, the probability that its input tells the answer; its predictive is given
    that it does.
    """

    predictive: Predictive
    prompt_tokens: int
    completion_tokens: int
    settled: bool = True
    text: TextAnswer | None = None
    typicality: float | None = None
    answerable: float | None = None


class QueryRun:
    """The predictions for some queries, options and free text mixed, unit by unit.

    The next unit has a `kind`: a unit `score` is a chunk of an `OptionRun` and may share its pass
    with chunks of other runs, a unit `write` may not. `equivalence` says which free-text answers
    mean the same. `features` is the model's feature function.
    """

    def __init__(
        self,
        posterior: TaskPosterior,
        prompts: Sequence[EncodedPrompt],
        settings: PredictSettings,
        encoder: PromptEncoder,
        *,
        equivalence: Equivalence | None = None,
        max_tokens: int = TOKENS_PER_CHUNK,
        features: Features | None = None,
    ) -> None:
        self._equivalence = equivalence or NormalisedMatch()
        self._prompts, self._encoder = prompts, encoder
        self._posterior, self._max_tokens = posterior, max_tokens
        self._with_options = [i for i, prompt in enumerate(prompts) if prompt.options]
        self._free = [i for i, prompt in enumerate(prompts) if not prompt.options]
        stop = StopRule(settings.thresholds, settings.tolerance) if settings.samples == "auto" else None
        self._scoring = OptionRun(
            posterior,
            [prompts[i] for i in self._with_options],
            Sampling(settings.option_samples, settings.seed, stop),
            max_tokens,
            features,
        )
        self._text_sampling = Sampling(settings.text_samples, settings.seed)
        self._writing = Writing(
            posterior.config, posterior.values, [prompts[i].prompt for i in self._free],
            settings.text_samples, settings.seed, encoder.end_of_text, settings.max_new_tokens, max_tokens,
            settings.answers_per_sample,
        ) if self._free else None  # fmt: skip
        self._text_scoring: OptionRun | None = None
        self._candidates: list[dict[str, tuple[int, ...]]] = []
        self._known: dict[int, Prediction] = {}

    @property
    def done(self) -> bool:
        """Return whether every query has its prediction."""
        return self._scoring.done and (
            self._writing is None or (self._text_scoring is not None and self._text_scoring.done)
        )

    @property
    def kind(self) -> Literal["score", "write"]:
        """Return the kind of the next unit."""
        return "score" if not self._scoring.done or self._text_scoring is not None else "write"

    @property
    def next_tokens(self) -> int:
        """Return the number of tokens of the next unit."""
        if self.kind == "score":
            return self._current.next_tokens
        assert self._writing is not None
        return self._writing.next_tokens

    @property
    def once_tokens(self) -> int:
        """Return the tokens that are to be computed once, before the next unit of kind `score`."""
        return self._current.once_tokens if self.kind == "score" else 0

    @property
    def _current(self) -> OptionRun:
        return self._scoring if not self._scoring.done or self._text_scoring is None else self._text_scoring

    @property
    def held_tokens(self) -> int:
        """Return the tokens that the next unit holds in memory, which `shrink` makes fewer.

        Writing keeps the tokens of earlier units in its caches.
        """
        if self.kind == "score":
            return self._current.next_tokens
        assert self._writing is not None
        return self._writing.held_tokens

    def shrink(self, max_tokens: int) -> None:
        """Make the next units smaller: of fewer samples and rows, or of fewer prompts and answers."""
        self._max_tokens = max_tokens
        if self.kind == "score":
            self._current.shrink(max_tokens)
        elif self._writing is not None:
            self._writing.shrink(max_tokens)

    def next_chunk(self) -> Chunk:
        """Return the next unit of kind `score`."""
        return self._current.next_chunk()

    def write(self, backbone: Backbone, pace: Pace | None = None) -> Resting[None]:
        """Do the next unit of kind `write`, with rests: some tokens of the answers.

        The last such unit prepares the scoring of the answers.
        """
        assert self._writing is not None
        yield from self._writing.unit(backbone, pace)
        if self._writing.done:
            self._candidates = [_distinct(texts, self._encoder) for texts in self._writing.written]
            scored = [
                EncodedPrompt(self._prompts[i].prompt, tuple(found.values()))
                for i, found in zip(self._free, self._candidates, strict=True)
            ]
            # Class examples say nothing about written texts.
            posterior = replace(self._posterior, class_examples=())
            self._text_scoring = OptionRun(posterior, scored, self._text_sampling, self._max_tokens)

    def predictions(self) -> list[Prediction]:
        """Return one prediction for each query, in order.

        Raises `RuntimeError` before the run is done.
        """
        found = [prediction for prediction in self.partial() if prediction is not None]
        if not self.done or len(found) < len(self._prompts):
            raise RuntimeError("the run is not done")
        return found

    def partial(self) -> list[Prediction | None]:
        """Return what the samples so far predict for each query, in order.

        It is None for a query without a sample; free text has none before all answers are written.
        Only what is new since the last call is computed.
        """
        for run, numbers in ((self._scoring, self._with_options), (self._text_scoring, self._free)):
            if run is None:
                continue
            unsettled = run.unsettled
            for n, i in enumerate(numbers):
                known, settled = self._known.get(i), n not in unsettled
                if run.scores[n] and (
                    known is None or (known.predictive.samples, known.settled) != (run.drawn(n), settled)
                ):
                    self._known[i] = self._predict(run, n, i, settled=settled)
        return [self._known.get(i) for i in range(len(self._prompts))]

    def _predict(self, run: OptionRun, n: int, i: int, *, settled: bool) -> Prediction:
        prompt = self._prompts[i]
        drawn = run.drawn(n)
        if run is self._scoring:
            found = summarise(
                prompt.options[:-1] if prompt.declinable else prompt.options,
                run.probabilities(n),
                samples=drawn,
                paired=run.paired,
                temperature=run.temperature(n),
            )
            options = prompt.tokens - len(prompt.prompt)
            return Prediction(
                found,
                len(prompt.prompt),
                options,
                settled,
                typicality=run.typicality(n),
                answerable=run.answerable(n),
            )
        assert self._writing is not None
        candidates = [
            Candidate(text, len(ids), ids[-1] == self._encoder.end_of_text)
            for text, ids in self._candidates[n].items()
        ]
        found, text = read_answers(
            prompt.text, candidates, run.scores_of(n), self._equivalence,
            samples=drawn, paired=run.paired,
        )  # fmt: skip
        completion = sum(map(len, self._writing.written[n]))
        return Prediction(found, len(prompt.prompt), completion, settled, text=text)


def advance(backbone: Backbone, runs: Sequence[QueryRun]) -> None:
    """Do one unit of every run.

    The chunks to score share passes. The units of writing run one by one.
    """
    chunks = [run.next_chunk() for run in runs if run.kind == "score"]
    writing = [run for run in runs if run.kind == "write"]
    if chunks:
        score_chunk(backbone, chunks)
    for run in writing:
        finish(run.write(backbone))


def resting_advance(backbone: Backbone, run: QueryRun, pace: Pace) -> Resting[None]:
    """Do one unit of a run alone, with rests."""
    if run.kind == "score":
        yield from resting_scores(backbone, [run.next_chunk()], pace)
    else:
        yield from run.write(backbone, pace)


def _distinct(written: Sequence[tuple[int, ...]], encoder: PromptEncoder) -> dict[str, tuple[int, ...]]:
    """Return the different texts of the answers, with their token ids.

    Answers that decode to the same text count once, with the ids of the first.
    """
    texts: dict[str, tuple[int, ...]] = {}
    for ids in written:
        texts.setdefault(encoder.decode(ids), ids)
    return texts
