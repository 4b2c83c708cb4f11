"""Checks of a request before any model work: counts, lengths, labels, options, context.

A function takes a request record and returns what is to be done, in tokens, or raises a
`ServiceError` whose `param` names the wrong field. Tokenising takes milliseconds, so call these
functions in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from abmll.adaptation.settings import settings_of
from abmll.assurance.folds import Fold, make_folds
from abmll.errors import AbmllError
from abmll.prediction.settings import AUTO_TEXT_SAMPLES, PredictSettings, Thresholds
from abmll.text.prompting import EncodedPrompt, LabelledPrompt
from abmll.text.questions import TypedQuestion
from abmll.text.tasks import (
    Example,
    Query,
    check_options,
    check_support,
    contradictions,
    examples_by_question,
    shared_options,
    spelt_otherwise,
    tells,
    unlabelled_options,
)
from service.engine.decisions import check_questions
from service.engine.requests import AdaptRequest, DiagnoseRequest, PredictRequest
from service.engine.specs import AdaptationSpec, PredictionSpec, encode_labelled, for_support
from service.errors import (
    InvalidOptionsError,
    InvalidRequestError,
    LimitExceededError,
    UndiagnosableError,
    UnknownModelError,
    from_exception,
    over_limit,
)
from service.executors.contract import ServedModel
from service.gating.confidence import confidence_kinds
from service.settings import Settings


def check_model(model: str | None, served: ServedModel) -> None:
    """Raise `UnknownModelError` unless `model` is the one that is served."""
    if model is not None and model != served.base.id:
        raise UnknownModelError(f"this server serves {served.base.id!r}, not {_short(model)!r}", "model")


def admit_adapt(request: AdaptRequest, served: ServedModel, settings: Settings) -> AdaptationSpec:
    """Return what `request` adapts to and how, with the served defaults where it sets nothing.

    That of a request to refine is the spec of the instant adapter, whose `refined` is its own.
    """
    check_model(request.model, served)
    check_questions([typed.question for typed in request.questions], settings)
    _check_limit(len(request.support), "examples", "max_support", settings, "support")
    for i, example in enumerate(request.support):
        _check_texts(f"support[{i}]", (example.input, example.output), example.options, settings)
    _check_limit(request.overrides.steps or 0, "steps", "max_steps", settings, "adapt.steps")
    for i, example in enumerate(request.support):
        _check_example(f"support[{i}]", example)
    try:
        check_support(request.support)
    except AbmllError as error:
        raise from_exception(error, "support") from error
    examples = tuple(
        _encoded(i, example, served, truncate=request.truncate) for i, example in enumerate(request.support)
    )
    applied = request.overrides.apply(served.defaults)
    if request.overrides.full:
        applied = for_support(applied, request.support, examples)
    folds = tuple(_calibration_folds(request, settings))
    spec = AdaptationSpec(
        served,
        request.support,
        examples,
        applied,
        request.seed,
        request.truncate,
        folds,
        request.questions,
    )
    return _instant(spec) if request.refine else spec


def _instant(refined: AdaptationSpec) -> AdaptationSpec:
    """Return the spec of the adapter that answers until `refined` is there."""
    if not refined.settings.steps:
        message = (
            "there is nothing to refine: the adapter of this request takes no gradient step itself; "
            "leave refine out, or set another effort"
        )
        raise InvalidRequestError(message, "adapt.refine")
    settings = settings_of("instant", refined.served.defaults)
    return replace(refined, settings=settings, folds=(), refined=refined)


def _encoded(number: int, example: Example, served: ServedModel, *, truncate: bool) -> LabelledPrompt:
    try:
        return encode_labelled(example, served, truncate=truncate)
    except AbmllError as error:
        raise from_exception(error, f"support[{number}].input") from error


def _calibration_folds(request: AdaptRequest, settings: Settings) -> list[Fold]:
    count, param = request.calibration_folds, "adapt.calibration_folds"
    if count is None:
        return []
    _check_limit(count, "folds", "max_folds", settings, param)
    if not request.support[0].options:
        raise InvalidRequestError(
            "free text has no temperature to choose: leave calibration_folds out", param
        )
    folds = make_folds(request.support, count)
    if not _asks_for_an_answer(folds, request.support):
        message = (
            "the support is too small to hold anything out: without an example one class only would be left"
        )
        raise InvalidRequestError(message, param)
    return folds


def _asks_for_an_answer(folds: Sequence[Fold], support: Sequence[Example]) -> bool:
    """Return whether an example whose input tells its answer is held out."""
    return any(tells(support[i]) for fold in folds for i in fold.held_out)


@dataclass(frozen=True)
class OptionRule:
    """What queries are asked that come without options.

    `query` is what all support examples are asked, with its options; None where they differ.
    `needed` says whether the support has options at all, so that a query must have some too.
    """

    query: Query | None
    needed: bool

    @classmethod
    def of(cls, support: Sequence[Example]) -> Self:
        """Return the rule of a support, of which all examples or none have options."""
        one = bool(shared_options(support))
        return cls(support[0].query if one else None, any(example.options for example in support))

    @property
    def shared(self) -> tuple[str, ...]:
        """Return the options that answers to such queries have; none where they differ."""
        return self.query.answers if self.query else ()

    def asked(self, query: Query) -> Query:
        """Return the query, with what all examples are asked where it has no options of its own."""
        return query if query.options or self.query is None else replace(self.query, input=query.input)


def admit_predict(
    request: PredictRequest,
    served: ServedModel,
    settings: Settings,
    support: Sequence[Example],
    *,
    own_temperature: bool,
    most_queries: int | None = None,
) -> PredictionSpec:
    """Return what `request` predicts and how, with an adapter of `support`.

    `own_temperature` says whether the adapter has a temperature of its own. `most_queries` is in
    place of the limit on inputs.
    """
    rule = OptionRule.of(support)
    if most_queries is None:
        _check_limit(len(request.queries), "inputs", "max_inputs", settings, "inputs")
    _check_amounts(request.settings, settings)
    for i, query in enumerate(request.queries):
        _check_texts(f"inputs[{i}]", (query.input,), query.options, settings)
    queries = tuple(map(rule.asked, request.queries))
    # With "auto", thresholds decide how many samples are drawn. The confidences of the calibration
    # were computed without thresholds, so those that are compared with it have to be as well.
    thresholds = Thresholds() if request.gate.needs_calibration else request.gate.thresholds
    if thresholds.of_text and all(query.options for query in queries):
        message = "the gate has a condition on free text, and every input has options"
        raise InvalidRequestError(message, "gate")
    prompts = tuple(_prompt(i, query, request, served, rule) for i, query in enumerate(queries))
    kinds = confidence_kinds(
        request.confidence,
        queries,
        own_temperature=own_temperature,
        questions=examples_by_question(support),
    )
    resolved = replace(request.settings, most_samples=settings.max_samples)
    if resolved.samples == "auto":
        resolved = replace(resolved, thresholds=thresholds)
    return PredictionSpec(
        queries,
        prompts,
        resolved,
        served.posterior_digest,
        kinds,
        spelling_warnings(queries, rule.shared),
        fixed_classes=bool(rule.shared),
        answer_tokens=0 if rule.needed else _longest_label(support, served),
    )


def _longest_label(support: Sequence[Example], served: ServedModel) -> int:
    """Return the most tokens of a label of free text, with the end of the text."""
    labels = [
        served.encoder.encode_example(Example("", example.output), truncate=True) for example in support
    ]
    return max((len(ids) for label in labels for ids in label.continuations), default=0)


def _check_amounts(asked: PredictSettings, settings: Settings) -> None:
    """Raise `LimitExceededError` for too many samples, texts or tokens."""
    if asked.samples != "auto":
        _check_limit(asked.samples, "samples", "max_samples", settings, "samples")
    writers = AUTO_TEXT_SAMPLES if asked.samples == "auto" else max(1, asked.samples)
    texts = asked.answers_per_sample * writers
    what = "texts an input, by sample and answer"
    _check_limit(texts, what, "max_samples", settings, "answers_per_sample")
    _check_limit(asked.max_new_tokens, "new tokens", "max_new_tokens", settings, "max_new_tokens")


def _prompt(
    number: int, query: Query, request: PredictRequest, served: ServedModel, rule: OptionRule
) -> EncodedPrompt:
    if rule.needed and not query.options:
        message = "this input has no options, and the support examples differ in theirs"
        raise InvalidOptionsError(message, f"inputs[{number}].options")
    try:
        return served.encoder.encode(
            query, truncate=request.truncate, max_new_tokens=request.settings.max_new_tokens
        )
    except AbmllError as error:
        raise from_exception(error, f"inputs[{number}]") from error


def admit_diagnosis(request: DiagnoseRequest, support: Sequence[Example], settings: Settings) -> list[Fold]:
    """Return the folds of an adapter's support that `request` asks for.

    Raises `UndiagnosableError` where nothing can be held out.
    """
    _check_limit(request.samples, "samples", "max_samples", settings, "samples")
    _check_limit(request.folds or 0, "folds", "max_folds", settings, "folds")
    if not support or not support[0].options:
        raise UndiagnosableError(
            "the adapter answers in free text: there is no right or wrong to count", "adapter_id"
        )
    folds = make_folds(support, request.folds)
    if not _asks_for_an_answer(folds, support):
        raise UndiagnosableError(
            "the support is too small: without an example one class only would be left", "adapter_id"
        )
    return folds


def support_warnings(support: Sequence[Example], questions: Sequence[TypedQuestion] = ()) -> tuple[str, ...]:
    """Return warnings about a support that is accepted: contradictory or missing labels.

    Labels of `questions` are missing where a question has some.
    """
    warnings = [
        f"the input {_short(text)!r} appears with different outputs" for text in contradictions(support)
    ]
    if questions:
        return tuple(warnings) + tuple(_unanswered(support, questions))
    if unseen := unlabelled_options(support):
        warnings.append(f"no support example is labelled {', '.join(map(repr, map(_short, unseen)))}")
    return tuple(warnings)


def _unanswered(support: Sequence[Example], questions: Sequence[TypedQuestion]) -> Iterator[str]:
    for question in (typed.question for typed in questions):
        given = {row.output for row in support if (row.instruction, frozenset(row.options)) == question.key}
        missing = [option for option in question.options if option not in given]
        if given and missing:
            shown = ", ".join(map(repr, map(_short, missing[:5]))) + (", ..." if len(missing) > 5 else "")
            yield f"no case answers {_short(question.name)!r} with {shown}"


def spelling_warnings(queries: Sequence[Query], known: Sequence[str]) -> tuple[str, ...]:
    """Return warnings about options of queries that only read like options of the adapter."""
    found = {
        option: own for query in queries for option, own in spelt_otherwise(query.options, known).items()
    }
    return tuple(
        f"the option {_short(option)!r} is not the adapter's {_short(own)!r}, which it learned"
        for option, own in found.items()
    )


def _check_limit(count: int, what: str, setting: str, settings: Settings, param: str) -> None:
    limit = getattr(settings, setting)
    if count > limit:
        raise LimitExceededError(over_limit(f"{count} {what}", limit, setting), param)


def _check_texts(param: str, texts: Sequence[str], options: Sequence[str], settings: Settings) -> None:
    _check_limit(len(options), "options", "max_options", settings, f"{param}.options")
    for text in (*texts, *options):
        if len(text) > settings.max_text_chars:
            found = f"a text of {len(text)} characters"
            raise LimitExceededError(over_limit(found, settings.max_text_chars, "max_text_chars"), param)


def _check_example(param: str, example: Example) -> None:
    if not example.options:
        return
    try:
        check_options(example.options)
    except AbmllError as error:
        raise from_exception(error, f"{param}.options") from error
    if example.output not in example.options:
        raise InvalidOptionsError(
            f"the output {_short(example.output)!r} is not among the options", f"{param}.output"
        )


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
