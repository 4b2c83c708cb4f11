"""A fake model: probabilities come from a hash, so the request determines the answer."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from abmll.adaptation.run import Adaptation
from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.layout import Site, flat_size
from abmll.errors import PromptTooLongError
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.run import Prediction
from abmll.prediction.semantic import Candidate, NormalisedMatch, read_answers
from abmll.prediction.uncertainty import summarise
from abmll.text.prompting import EncodedPrompt
from abmll.text.tasks import Example, Query, check_options
from model_store.pretrained.identity import BaseIdentity
from service.executors.contract import GLOBAL, AdaptJob, Job, Lane, PredictJob, ServedModel, lane_of
from tests.tiny import make_config

CONFIG = make_config(rank=1, modules=("q",))
SITES = (Site(0, "q", 4, 4),)
MAX_TOKENS = 256
PRIOR = TaskPosterior(CONFIG, SITES, torch.zeros(flat_size(SITES, CONFIG.layout.rank)))
# Free-text answers, and weights of their probabilities that make the first the most probable.
TEXTS = ("some text", "Some text!", "another")
TEXT_WEIGHTS = torch.tensor([0.9, 1e-4, 1e-4], dtype=torch.float64)


class FakeEncoder:
    """Encoder with a token a character; the context has `MAX_TOKENS`."""

    max_tokens = MAX_TOKENS

    def encode(self, query: Query, *, truncate: bool = False, max_new_tokens: int = 0) -> EncodedPrompt:
        if query.options:
            check_options(query.options)
        continuations = tuple(tuple(map(ord, option)) for option in query.options)
        reserved = 0 if query.options else max_new_tokens
        question = tuple(map(ord, query.instruction))
        room = MAX_TOKENS - reserved - max(map(len, continuations), default=0) - len(question)
        if len(query.input) > room and (room < 1 or not truncate):
            raise PromptTooLongError(len(query.input) + MAX_TOKENS - room, MAX_TOKENS)
        text = query.input[:room]
        return EncodedPrompt(
            (*map(ord, text), *question),
            continuations,
            text=text,
            options=query.options,
            question=question,
            declinable=query.declinable,
        )

    def encode_example(self, example: Example, *, truncate: bool = False) -> EncodedPrompt:
        return self.encode(example.query, truncate=truncate)


def served_model(posterior_digest: str = "d" * 64) -> ServedModel:
    return ServedModel(
        base=BaseIdentity("fake-1b", "sha256:0", "none"),
        posterior_id="fake-posterior",
        posterior_digest=posterior_digest,
        template={"after_input": "\nAnswer:"},
        defaults=AdaptSettings(),
        encoder=FakeEncoder(),
    )


@dataclass(eq=False)
class FakeRun:
    """Run of a single unit, which is batched with no other."""

    job: Job
    adapter: TaskPosterior | None = None
    outcome: Any = None

    @property
    def lane(self) -> Lane:
        return lane_of(self.job)

    @property
    def done(self) -> bool:
        return self.outcome is not None

    def next_tokens(self) -> int:
        return 1

    def partial(self) -> Any:
        return () if isinstance(self.job, AdaptJob) else [None] * len(self.job.prompts)

    def result(self) -> Any:
        return self.outcome


class FakeWorker:
    """Worker that records its jobs.

    Clear `load_gate`, `adapt_gate` or `predict_gate` to stop it in the middle of that work. Set
    `fail` to have it raise.
    """

    tokens_per_unit = 1
    adaptations_at_once = 64

    def __init__(self, served: ServedModel | None = None) -> None:
        self.served = served or served_model()
        self.adapted: list[AdaptJob] = []
        self.predicted: list[PredictJob] = []
        self.load_gate, self.adapt_gate, self.predict_gate = (threading.Event() for _ in range(3))
        for gate in (self.load_gate, self.adapt_gate, self.predict_gate):
            gate.set()
        self.fail: Exception | None = None

    def load(self) -> FakeWorker:
        assert self.load_gate.wait(30)
        if self.fail:
            raise self.fail
        return self

    def begin(self, job: Job, adapter: TaskPosterior | None = None) -> FakeRun:
        return FakeRun(job, adapter)

    def advance(self, runs: Sequence[FakeRun]) -> None:
        for run in runs:
            if isinstance(run.job, AdaptJob):
                run.outcome = self._adapt(run.job)
            else:
                assert (run.adapter is None) == (run.job.adapter_id == GLOBAL)
                run.outcome = self._predict_all(run.job, run.adapter or PRIOR)

    def finish(self, run: FakeRun) -> None:
        pass

    def held(self) -> Sequence[str]:
        return ()

    def _adapt(self, job: AdaptJob) -> Adaptation:
        self.adapted.append(job)
        assert self.adapt_gate.wait(30)
        if self.fail:
            raise self.fail
        determining = repr(replace(job, posterior="")).replace(", posterior=''", "")
        generator = torch.Generator().manual_seed(_number(determining) % 2**62)
        values = torch.rand(flat_size(SITES, CONFIG.layout.rank), generator=generator)
        losses = tuple(1.0 / (step + 1) for step in range(job.settings.steps))
        tokens = sum(example.prompt.tokens for example in job.examples)
        posterior = TaskPosterior(CONFIG, SITES, values)
        unmoved = not job.settings.steps and not job.needs_values
        return Adaptation(posterior.without_values() if unmoved else posterior, losses, tokens)

    def _predict_all(self, job: PredictJob, adapter: TaskPosterior) -> Sequence[Prediction]:
        self.predicted.append(job)
        assert self.predict_gate.wait(30)
        if self.fail:
            raise self.fail
        return [self._predict(job, adapter, prompt) for prompt in job.prompts]

    def _predict(self, job: PredictJob, adapter: TaskPosterior, prompt: EncodedPrompt) -> Prediction:
        options, settings = prompt.options or TEXTS, job.settings
        samples = 16 if settings.samples == "auto" else settings.samples
        weights = adapter.values.tolist()
        asked = "".join(map(chr, prompt.question))
        about = f"{prompt.text} {asked}" if asked else prompt.text
        rows = [
            [
                1 + _number(f"{weights} {about} {option} {settings.seed if samples else ''} {n}") % 1000
                for option in options
            ]
            for n in range(max(1, samples))
        ]
        probabilities = torch.tensor(rows, dtype=torch.float64)
        probabilities /= probabilities.sum(-1, keepdim=True)
        if prompt.declinable:
            given, options = probabilities[:, :-1], options[:-1]
            found = summarise(options, given / given.sum(-1, keepdim=True), samples=samples)
            answerable = 1 - float(probabilities[:, -1].mean())
            return Prediction(found, len(prompt.text), 0, answerable=answerable)
        if prompt.options:
            return Prediction(summarise(options, probabilities, samples=samples), len(prompt.text), 0)
        candidates = [Candidate(text, len(text) + 1, complete=True) for text in TEXTS]
        scores = (TEXT_WEIGHTS * probabilities).log()
        predictive, text = read_answers(prompt.text, candidates, scores, NormalisedMatch(), samples=samples)
        return Prediction(predictive, len(prompt.text), sum(map(len, TEXTS)), text=text)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
