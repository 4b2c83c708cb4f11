"""From questions, inputs and cases of any wire to the engine's requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.questions import TypedQuestion, examples_of
from service import schemas
from service.api.native.requests import adapt_fields, gate_request
from service.api.typed_questions import LabelledInput, Location, cases_of
from service.engine.requests import AdaptRequest, DecideRequest
from service.errors import InvalidRequestError, ServiceError

EXTRAS: Location = ("abmll",)


@dataclass(frozen=True)
class CasesBody:
    """Questions with cases to learn from, of any wire. Errors are placed `below` where cases lie."""

    questions: Sequence[TypedQuestion]
    labelled: Sequence[LabelledInput]
    below: Location = EXTRAS

    def adaptation(
        self, adapt: schemas.Adapt | None, seed: int, *, truncate: bool, model: str | None = None
    ) -> AdaptRequest:
        """Return the adaptation to the cases.

        Raises `ServiceError`, placed, for cases that cannot be learned from.
        """
        cases = cases_of(self.questions, self.labelled, self.below)
        support = examples_of([typed.question for typed in self.questions], cases)
        return AdaptRequest(
            tuple(support),
            seed=seed,
            truncate=truncate,
            model=model,
            questions=tuple(self.questions),
            **adapt_fields(adapt),
        )

    def place(self, param: str) -> Location:
        """Return the place here of the engine's field `param`, such as `support[7].input`."""
        head, *rest = _parts(param)
        if head == "support" and rest:
            return self._place_of_example(int(rest[0]), in_input=rest[1:] == ["input"])
        return (*self.below, "cases") if head == "support" else (*self.below, head, *rest)

    def _place_of_example(self, index: int, *, in_input: bool) -> Location:
        """Return the place of the example at `index`; their order is that of `examples_of`."""
        places = [
            (*self.below, "cases", number, *(("input",) if in_input else ("answers", typed.question.name)))
            for number, row in enumerate(self.labelled)
            for typed in self.questions
            if typed.question.name in row.answers
        ]
        return places[index]


@dataclass(frozen=True)
class DecisionBody:
    """A request of a wire, in the words that all wires have in common.

    Errors are placed at `model`, `questions`, `input` or, with several inputs, `inputs`, and
    `below` where the `extras` lie. `model` None stands for the base model.
    """

    model: str | None
    inputs: tuple[str, ...]
    questions: Sequence[TypedQuestion]
    extras: schemas.DecideOptions
    labelled: Sequence[LabelledInput] | None = None
    below: Location = EXTRAS

    @property
    def taught(self) -> CasesBody:
        """Return the questions with their cases."""
        return CasesBody(self.questions, self.labelled or (), self.below)

    def request(self, base_id: str, *aliases: str) -> DecideRequest:
        """Return the engine's request; the base model has the id `base_id`, and `aliases`.

        Raises `InvalidRequestError`, placed, for cases that cannot be learned from, and parameters
        that exclude each other.
        """
        extras, named = self.extras, self.model not in {None, base_id, *aliases}
        if named and extras.adapter_id is not None:
            message = f"model names an adapter already, {self.model!r:.80}: leave adapter_id out"
            raise InvalidRequestError(message).placed((*self.below, "adapter_id"))
        adapted = named or extras.adapter_id is not None
        if adapted and self.labelled is not None:
            message = f"cases make an adapter of the base model: name {base_id!r} as model, and no adapter"
            raise InvalidRequestError(message).placed((*self.below, "cases"))
        if extras.adapt is not None and self.labelled is None:
            message = "adapt applies to cases: it says how to learn from them"
            raise InvalidRequestError(message).placed((*self.below, "adapt"))
        if extras.gate is not None and extras.gate.calibrated and not adapted:
            message = "target_error and target_coverage need an adapter: it is an adapter that is calibrated"
            raise InvalidRequestError(message).placed((*self.below, "gate"))
        return DecideRequest(
            questions=tuple(typed.question for typed in self.questions),
            inputs=self.inputs,
            adapter=extras.adapter_id if self.labelled is None else self._adaptation(),
            settings=PredictSettings(samples=extras.samples, seed=extras.seed),
            gate=gate_request(extras.gate),
            gates=self._gates(),
            confidence=extras.confidence,
            truncate=extras.truncate,
            model=self.model,
        )

    def _adaptation(self) -> AdaptRequest:
        """Return the adaptation to the cases.

        It has those questions only that they answer, so that others do not make another adapter.
        """
        extras = self.extras
        request = self.taught.adaptation(extras.adapt, extras.seed, truncate=extras.truncate)
        answered = {name for row in self.labelled or () for name in row.answers}
        known = tuple(typed for typed in request.questions if typed.question.name in answered)
        return replace(request, questions=known)

    def _gates(self) -> Mapping[str, Thresholds]:
        """Return the thresholds of questions with a gate of their own, by name."""
        gates, shared = self.extras.gates or {}, self.extras.gate
        if gates and shared is not None and shared.calibrated:
            message = "a gate by target_error or target_coverage is for all questions: leave gates out"
            raise InvalidRequestError(message).placed((*self.below, "gates"))
        names = {typed.question.name for typed in self.questions}
        found = {}
        for name, gate in gates.items():
            place = (*self.below, "gates", name)
            if name not in names:
                raise InvalidRequestError(f"there is no question {name!r:.80}").placed(place)
            if gate.calibrated:
                message = "target_error and target_coverage are for all questions: give them as gate"
                raise InvalidRequestError(message).placed(place)
            found[name] = gate_request(gate).thresholds
            if found[name].of_text:
                message = "the gate has a condition on free text, and a question has options"
                raise InvalidRequestError(message).placed(place)
        return found

    def place(self, param: str) -> Location:
        """Return the place here of the engine's field `param`, such as `support[7].input`."""
        head, *rest = _parts(param)
        if head in {"questions", "model"}:
            return (head, *rest)
        if head == "inputs":
            return ("input",) if self.below else (head, *rest)
        return self.taught.place(param)


_PARTS = re.compile(r"(\w+)|\[(\d+)\]")


def _parts(param: str) -> list[str | int]:
    return [int(index) if index else name for name, index in _PARTS.findall(param)]


@contextmanager
def placed_errors(body: CasesBody | DecisionBody) -> Iterator[None]:
    """Place errors from inside, which name fields of the engine's request, in `body`."""
    try:
        yield
    except ServiceError as error:
        if error.location or error.param is None:
            raise
        raise error.placed(body.place(error.param)) from error
