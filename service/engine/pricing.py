"""Prices of requests: what an idle worker would take for them, known before any model work.

A price is an estimate (benchmarks/results/prices.md). Nothing but the refusal of what cannot be
done before its deadline depends on it. The functions count tokens, so call them in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from abmll.assurance.folds import Fold
from abmll.assurance.held_out import SAMPLES
from abmll.prediction.settings import PredictSettings
from abmll.text.prompting import EncodedPrompt, LabelledPrompt
from abmll.text.tasks import shared_options
from service.engine.specs import AdaptationSpec, PredictionSpec
from service.errors import PriceExceedsDeadlineError
from service.executors.contract import Prices, ServedModel

REFUSED_ABOVE = 1.5
"""What would take so many times its deadline is refused. Prices were up to 1.3 times too high."""


@dataclass(frozen=True)
class Price:
    """Seconds of an idle worker, to adapt and to predict.

    `at_least` says that it may take longer: samples are drawn until the gate is decided.
    """

    adapt_seconds: float = 0.0
    predict_seconds: float = 0.0
    at_least: bool = False

    @property
    def seconds(self) -> float:
        """Return the seconds of both."""
        return self.adapt_seconds + self.predict_seconds

    def check(self, deadline_seconds: float, setting: str = "deadline_seconds") -> None:
        """Raise `PriceExceedsDeadlineError` where the request would certainly not be done in time."""
        if self.seconds > REFUSED_ABOVE * deadline_seconds:
            raise PriceExceedsDeadlineError(
                f"the request would take {self.describe()}, and its deadline is {deadline_seconds:g} s: "
                f"send fewer or shorter texts, or raise {setting}"
            )

    def describe(self) -> str:
        """Return the price in words."""
        about = "at least" if self.at_least else "about"
        parts = f"{_shown(self.adapt_seconds)} to adapt, {_shown(self.predict_seconds)} to predict"
        return f"{about} {_shown(self.seconds)} on an idle worker ({parts})"


def price_of(
    served: ServedModel, adaptation: AdaptationSpec | None, prediction: PredictionSpec | None
) -> Price | None:
    """Return the price of an adaptation, a prediction, or both; None where the speed is not known."""
    if served.prices is None:
        return None
    adapt = _adapt_seconds(adaptation, served.prices) if adaptation else 0.0
    if prediction is None:
        return Price(adapt)
    work = served.prices.counter.prediction(
        prediction.prompts,
        prediction.settings,
        with_process=prediction.fixed_classes,
        answer_tokens=prediction.answer_tokens,
    )
    drawn = prediction.settings.samples == "auto" and any(prompt.options for prompt in prediction.prompts)
    return Price(adapt, served.prices.speed.seconds(work), at_least=drawn)


def price_of_diagnosis(
    whole: AdaptationSpec, folds: Sequence[Fold], samples: int, demonstrated: Sequence[EncodedPrompt]
) -> Price | None:
    """Return the price of a diagnosis of the adapter `whole` by `folds`.

    `demonstrated` are the prompts of the held-out examples with demonstrations.
    """
    prices = whole.served.prices
    if prices is None:
        return None
    held_out = [i for fold in folds for i in fold.held_out]
    mean = PredictSettings(0)
    adapt, predict = 0.0, _answers_seconds(whole, whole.prompts(held_out), mean, prices)
    predict += _answers_seconds(whole, demonstrated, mean, prices)
    for fold in folds:
        adapt += _adapt_seconds(whole.part(fold.kept), prices)
        predict += _answers_seconds(whole, whole.prompts(fold.held_out), PredictSettings(samples), prices)
    return Price(adapt, predict)


def _adapt_seconds(spec: AdaptationSpec, prices: Prices) -> float:
    """Return the seconds of an adaptation, with those of its folds and their answers."""
    work = prices.counter.adaptation(spec.examples, spec.settings, spec.seed)
    seconds = prices.speed.seconds(work)
    for fold in spec.folds:
        seconds += _adapt_seconds(spec.part(fold.kept), prices)
        seconds += _answers_seconds(spec, spec.prompts(fold.held_out), PredictSettings(SAMPLES), prices)
    return seconds


def _answers_seconds(
    spec: AdaptationSpec, prompts: Sequence[EncodedPrompt], settings: PredictSettings, prices: Prices
) -> float:
    fixed = bool(shared_options(spec.support))
    return prices.speed.seconds(prices.counter.prediction(prompts, settings, with_process=fixed))


@dataclass(frozen=True)
class DryRun:
    """What a request means, and what it would take; nothing is done for it.

    `options` are those that all texts have, none where they differ or there are none. `tokens`
    are those of all texts with their options, `longest_tokens` those of the longest.
    `made_already` says that the adapter is there. `refusal` is the message with which the request
    would be refused; None where it would run. `price` is None where the speed is not known.
    """

    examples: int
    inputs: int
    options: tuple[str, ...]
    tokens: int
    longest_tokens: int
    made_already: bool
    price: Price | None
    refusal: str | None

    @classmethod
    def of(
        cls,
        adaptation: AdaptationSpec | None,
        prediction: PredictionSpec | None,
        price: Price | None,
        deadline_seconds: float,
        *,
        made_already: bool = False,
    ) -> Self:
        """Return the dry run of an adaptation, a prediction, or both, at their `price`."""
        if price is not None and made_already:
            price = replace(price, adapt_seconds=0.0)
        prompts = [example.prompt for example in adaptation.examples] if adaptation else []
        prompts += prediction.prompts if prediction else ()
        lengths, options = [prompt.tokens for prompt in prompts], {prompt.options for prompt in prompts}
        refusal = None
        try:
            if price is not None:
                price.check(deadline_seconds)
        except PriceExceedsDeadlineError as error:
            refusal = error.message
        return cls(
            examples=len(adaptation.examples) if adaptation else 0,
            inputs=len(prediction.prompts) if prediction else 0,
            options=options.pop() if len(options) == 1 else (),
            tokens=sum(lengths),
            longest_tokens=max(lengths, default=0),
            made_already=made_already,
            price=price,
            refusal=refusal,
        )


@dataclass(frozen=True)
class WorkedExample:
    """The price of a request that anyone can picture: texts of one length, classes of one token.

    `count` is the number of support examples of an adaptation with the served settings, or of
    inputs. `samples` is None for an adaptation.
    """

    what: Literal["adapt", "predict"]
    count: int
    tokens: int
    options: int
    samples: int | None
    seconds: float


def worked_examples(served: ServedModel) -> tuple[WorkedExample, ...]:
    """Return the prices of some requests; none where the speed is not known."""
    return tuple(_worked(served, served.prices)) if served.prices else ()


def _worked(served: ServedModel, prices: Prices) -> Iterator[WorkedExample]:
    for count, tokens, options in ((16, 64, 4), (16, 1024, 4), (16, 64, 128)):
        examples = [LabelledPrompt(_prompt(n, tokens, options), n % options) for n in range(count)]
        work = prices.counter.adaptation(examples, served.defaults)
        yield WorkedExample("adapt", count, tokens, options, None, prices.speed.seconds(work))
    for count, tokens, options in ((1, 64, 4), (64, 64, 4), (1, 1024, 4), (1, 64, 128)):
        settings = PredictSettings()
        prompts = [_prompt(n, tokens, options) for n in range(count)]
        work = prices.counter.prediction(prompts, settings, with_process=True)
        samples = settings.option_samples
        yield WorkedExample("predict", count, tokens, options, samples, prices.speed.seconds(work))


def _prompt(number: int, tokens: int, options: int) -> EncodedPrompt:
    """Return a prompt that shares no prefix with one of another number."""
    names = tuple(map(str, range(options)))
    return EncodedPrompt((number, *range(1, tokens)), tuple((n,) for n in range(options)), options=names)


def _shown(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
