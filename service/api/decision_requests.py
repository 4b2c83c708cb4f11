"""From questions, an input and cases of any wire to the engine's request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from abmll.prediction.settings import PredictSettings
from abmll.text.questions import Case, examples_of
from service import schemas
from service.api.native.requests import adapt_fields, gate_request
from service.api.typed_questions import LabelledInput, TypedQuestion, cases_of
from service.engine.requests import AdaptRequest, DecideRequest
from service.errors import InvalidRequestError, ServiceError

Location: TypeAlias = tuple[str | int, ...]
"""The path of a field, part by part: `("questions", 3, "options")`."""


@dataclass(frozen=True)
class DecisionBody:
    """A request of a wire, in the words that both wires have in common.

    Errors are placed at `model`, `input`, `questions`, and below `abmll`.
    """

    model: str
    input: str
    questions: Sequence[TypedQuestion]
    extras: schemas.DecideOptions
    labelled: Sequence[LabelledInput] | None = None

    def request(self, base_id: str, *aliases: str) -> DecideRequest:
        """Return the engine's request; the base model has the id `base_id`, and `aliases`.

        Raises `InvalidRequestError`, placed, for cases that cannot be learned from, and parameters
        that exclude each other.
        """
        extras, named = self.extras, self.model not in {base_id, *aliases}
        if named and extras.adapter_id is not None:
            message = f"model names an adapter already, {self.model!r:.80}: leave adapter_id out"
            raise InvalidRequestError(message).placed(("abmll", "adapter_id"))
        adapted = named or extras.adapter_id is not None
        if adapted and self.labelled is not None:
            message = f"cases make an adapter of the base model: name {base_id!r} as model, and no adapter"
            raise InvalidRequestError(message).placed(("abmll", "cases"))
        if extras.adapt is not None and self.labelled is None:
            message = "adapt applies to cases: it says how to learn from them"
            raise InvalidRequestError(message).placed(("abmll", "adapt"))
        if extras.gate is not None and extras.gate.calibrated and not adapted:
            message = "target_error and target_coverage need an adapter: it is an adapter that is calibrated"
            raise InvalidRequestError(message).placed(("abmll", "gate"))
        return DecideRequest(
            questions=tuple(typed.question for typed in self.questions),
            inputs=(self.input,),
            adapter=extras.adapter_id if self.labelled is None else self._adaptation(self.cases()),
            settings=PredictSettings(samples=extras.samples, seed=extras.seed),
            gate=gate_request(extras.gate),
            truncate=extras.truncate,
            model=self.model,
        )

    def cases(self) -> tuple[Case, ...]:
        """Return the cases, with options as answers."""
        return cases_of(self.questions, self.labelled or ())

    def _adaptation(self, cases: Sequence[Case]) -> AdaptRequest:
        support = examples_of([typed.question for typed in self.questions], cases)
        return AdaptRequest(
            tuple(support),
            seed=self.extras.seed,
            truncate=self.extras.truncate,
            **adapt_fields(self.extras.adapt),
        )

    def place(self, param: str) -> Location:
        """Return the place here of the engine's field `param`, such as `support[7].input`."""
        head, *rest = [int(index) if index else name for name, index in _PARTS.findall(param)]
        if head in {"questions", "model"}:
            return (head, *rest)
        if head == "inputs":
            return ("input",)
        if head == "support" and rest:
            return self._place_of_example(int(rest[0]), in_input=rest[1:] == ["input"])
        return ("abmll", "cases") if head == "support" else ("abmll", head, *rest)

    def _place_of_example(self, index: int, *, in_input: bool) -> Location:
        """Return the place of the example at `index`; their order is that of `examples_of`."""
        places = [
            ("abmll", "cases", number, *(("input",) if in_input else ("answers", typed.question.name)))
            for number, row in enumerate(self.labelled or ())
            for typed in self.questions
            if typed.question.name in row.answers
        ]
        return places[index]


_PARTS = re.compile(r"(\w+)|\[(\d+)\]")


@contextmanager
def placed_errors(body: DecisionBody) -> Iterator[None]:
    """Place errors from inside, which name fields of the engine's request, in `body`."""
    try:
        yield
    except ServiceError as error:
        if error.location or error.param is None:
            raise
        raise error.placed(body.place(error.param)) from error
