"""Everything a request is refused for, before any model work: counts, lengths, labels, options, context.

Functions take a domain request and give the job to run, or raise a `ServiceError` whose `param` names the field. They
tokenise, so they take milliseconds and belong off the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from abmll.assurance.folds import Fold, make_folds
from abmll.errors import AbmllError
from abmll.text.tasks import Example, Query, check_options, check_support, contradictions
from service.engine.requests import AdaptRequest, DiagnoseRequest, PredictRequest
from service.errors import (
    InvalidOptionsError,
    InvalidRequestError,
    LimitExceededError,
    UndiagnosableError,
    UnknownModelError,
    from_exception,
)
from service.executors.contract import AUTO_TEXT_SAMPLES, AdaptJob, ServedModel
from service.settings import Settings


def check_model(model: str | None, served: ServedModel) -> None:
    """Raise `UnknownModelError` unless `model` is the one that is served."""
    if model is not None and model != served.base.id:
        raise UnknownModelError(f"this server serves {served.base.id!r}, not {_short(model)!r}", "model")


def admit_adapt(
    request: AdaptRequest, served: ServedModel, settings: Settings
) -> tuple[AdaptJob, list[Fold]]:
    """The adaptation that `request` asks for, its settings resolved; and the folds that are to choose its temperature, if any."""
    check_model(request.model, served)
    _check_count("support", len(request.support), settings.max_support, "examples")
    for i, example in enumerate(request.support):
        _check_texts(f"support[{i}]", (example.input, example.output), example.options, settings)
    steps = request.overrides.steps or 0
    if steps > settings.max_steps:
        raise LimitExceededError(f"{steps} steps; the limit is {settings.max_steps}", "adapt.steps")
    for i, example in enumerate(request.support):
        _check_example(f"support[{i}]", example)
    try:
        check_support(request.support)
    except AbmllError as error:
        raise from_exception(error, "support") from error
    for i, example in enumerate(request.support):
        try:
            served.encoder.encode_example(example, truncate=request.truncate)
        except AbmllError as error:
            raise from_exception(error, f"support[{i}].input") from error
    applied = request.overrides.apply(served.defaults)
    job = AdaptJob(request.support, applied, request.seed, request.truncate)
    return job, _calibration_folds(request, settings)


def _calibration_folds(request: AdaptRequest, settings: Settings) -> list[Fold]:
    count, param = request.calibration_folds, "adapt.calibration_folds"
    if count is None:
        return []
    if count > settings.max_folds:
        raise LimitExceededError(f"{count} folds; the limit is {settings.max_folds}", param)
    if not request.support[0].options:
        raise InvalidRequestError(
            "free text has no temperature to choose: leave calibration_folds out", param
        )
    folds = make_folds(request.support, count)
    if not folds:
        message = (
            "the support is too small to hold anything out: without an example one class only would be left"
        )
        raise InvalidRequestError(message, param)
    return folds


@dataclass(frozen=True)
class OptionRule:
    """What a query without options of its own gets: the support's shared options. `needed` if the support has any at all."""

    shared: tuple[str, ...]
    needed: bool

    @classmethod
    def of(cls, support: Sequence[Example]) -> OptionRule:
        """The rule of a support set, which is free text throughout or has options throughout."""
        return cls(shared_options(support), any(example.options for example in support))


def admit_queries(
    request: PredictRequest, served: ServedModel, settings: Settings, rule: OptionRule
) -> tuple[Query, ...]:
    """The queries that `request` asks to answer, their options resolved."""
    _check_count("inputs", len(request.queries), settings.max_inputs, "inputs")
    if request.samples != "auto" and request.samples > settings.max_samples:
        raise LimitExceededError(f"{request.samples} samples; the limit is {settings.max_samples}", "samples")
    writers = AUTO_TEXT_SAMPLES if request.samples == "auto" else max(1, request.samples)
    texts = request.answers_per_sample * writers
    if texts > settings.max_samples:
        message = f"{texts} texts an input, by sample and answer; the limit is {settings.max_samples}"
        raise LimitExceededError(message, "answers_per_sample")
    if request.max_new_tokens > settings.max_new_tokens:
        message = f"{request.max_new_tokens} new tokens; the limit is {settings.max_new_tokens}"
        raise LimitExceededError(message, "max_new_tokens")
    for i, query in enumerate(request.queries):
        _check_texts(f"inputs[{i}]", (query.input,), query.options, settings)
    queries = tuple(
        query if query.options else replace(query, options=rule.shared) for query in request.queries
    )
    if request.gate.of_text and all(query.options for query in queries):
        message = "the gate has a condition on free text, and every input has options"
        raise InvalidRequestError(message, "gate")
    for i, query in enumerate(queries):
        if rule.needed and not query.options:
            message = "this input has no options, and the support examples differ in theirs"
            raise InvalidOptionsError(message, f"inputs[{i}].options")
        reserve = 0 if query.options else request.max_new_tokens
        try:
            served.encoder.encode(query, truncate=request.truncate, reserve_tokens=reserve)
        except AbmllError as error:
            raise from_exception(error, f"inputs[{i}]") from error
    return queries


def admit_diagnosis(request: DiagnoseRequest, support: Sequence[Example], settings: Settings) -> list[Fold]:
    """The folds that `request` asks for on an adapter's support. Raises `UndiagnosableError` where nothing can be held out."""
    if request.samples > settings.max_samples:
        raise LimitExceededError(f"{request.samples} samples; the limit is {settings.max_samples}", "samples")
    if request.folds is not None and request.folds > settings.max_folds:
        raise LimitExceededError(f"{request.folds} folds; the limit is {settings.max_folds}", "folds")
    if not support or not support[0].options:
        raise UndiagnosableError(
            "the adapter answers in free text: there is no right or wrong to count", "adapter_id"
        )
    folds = make_folds(support, request.folds)
    if not folds:
        raise UndiagnosableError(
            "the support is too small: without an example one class only would be left", "adapter_id"
        )
    return folds


def shared_options(support: Sequence[Example]) -> tuple[str, ...]:
    """The options that all examples have, in the order of the first; empty where they differ or there are none."""
    alike = len({frozenset(example.options) for example in support}) == 1
    return support[0].options if alike else ()


def count_labels(support: Sequence[Example]) -> dict[str, int]:
    """Examples by label in the order of the shared options, labels never shown included; empty without shared options."""
    counts = Counter(example.output for example in support)
    return {option: counts[option] for option in shared_options(support)}


def support_warnings(support: Sequence[Example]) -> tuple[str, ...]:
    """What is accepted but worth telling."""
    warnings = [
        f"the input {_short(text)!r} appears with different outputs" for text in contradictions(support)
    ]
    unseen = [label for label, n in count_labels(support).items() if n == 0]
    if unseen:
        warnings.append(f"no support example is labelled {', '.join(map(repr, map(_short, unseen)))}")
    return tuple(warnings)


def _check_count(param: str, count: int, limit: int, what: str) -> None:
    if count > limit:
        raise LimitExceededError(f"{count} {what}; the limit is {limit}", param)


def _check_texts(param: str, texts: Sequence[str], options: Sequence[str], settings: Settings) -> None:
    _check_count(f"{param}.options", len(options), settings.max_options, "options")
    for text in (*texts, *options):
        if len(text) > settings.max_text_chars:
            raise LimitExceededError(
                f"a text of {len(text)} characters; the limit is {settings.max_text_chars}", param
            )


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
