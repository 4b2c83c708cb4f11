"""The wire of TypeSafe's System One. Fields of this server alone are below `abmll`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from model_store.pretrained.catalogue import DEFAULT_BASE
from service import schemas
from service.schemas import WireModel
from service.schemas.structure import check_structure

MAX_CHOICES = 255
MAX_LEVELS = 255

# ---- the request ---------------------------------------------------------------------------------


def _content(value: Any) -> Any:
    if not isinstance(value, str | dict | list):
        raise ValueError("it should be a text, an object or a list")
    check_structure(value)
    return value


def _description(value: Any) -> Any:
    return None if value is None else _content(value)


def _says_something(value: Any) -> Any:
    if value is not None and not (value.strip() if isinstance(value, str) else value):
        raise ValueError("it is empty: say what is meant, or leave it out")
    return value


_KINDS = [{"type": kind} for kind in ("string", "object", "array")]
Content = Annotated[Any, AfterValidator(_content), WithJsonSchema({"anyOf": _KINDS})]
"""A text, an object or a list."""
Description = Annotated[
    Any, AfterValidator(_description), WithJsonSchema({"anyOf": [*_KINDS, {"type": "null"}]})
]
"""A text, an object or a list; null says nothing."""
Instructions = Annotated[Description, AfterValidator(_says_something)]


class NoulCriteria(WireModel):
    """What counts as yes, and what as no."""

    true: Description = None
    false: Description = None


class Noul(WireModel):
    """A question with the answers yes and no."""

    type: Literal["noul"]
    instructions: Instructions = None
    criteria: NoulCriteria | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        criteria = self.criteria or NoulCriteria()
        if self.instructions is None and not (criteria.true or criteria.false):
            raise ValueError("it has neither instructions nor criteria: one of them has to say what is asked")
        return self


class Choice(WireModel):
    """Which of several choices fits?"""

    type: Literal["choice"]
    instructions: Instructions = None
    criteria: dict[str, Description] = Field(
        min_length=2, max_length=MAX_CHOICES, description="Choices, with when each applies or null."
    )


def _level(value: Any) -> Any:
    return _says_something(_content(value))


class Score(WireModel):
    """Which of several levels fits?"""

    type: Literal["score"]
    instructions: Instructions = None
    criteria: list[Annotated[Content, AfterValidator(_level)]] = Field(
        min_length=2, max_length=MAX_LEVELS, description="Descriptions of the levels, from the lowest on."
    )


Question = Annotated[Noul | Choice | Score, Field(discriminator="type")]


class Case(WireModel):
    """A state with its right answers, given by a person."""

    state: Content
    answers: dict[str, schemas.CaseAnswer] = Field(
        min_length=1,
        description="By the name of the question: true or false of a noul, the name of a choice, the index "
        "of a level. null: the state does not tell the answer.",
    )


class Extras(schemas.DecideOptions):
    """Parameters of this server beyond TypeSafe's."""

    cases: list[Case] | None = Field(default=None, min_length=1, description="Cases to learn from.")


def _no_assets(value: Any) -> None:
    if value is not None:
        raise ValueError("this server reads text only: leave assets and questions about images out")


_EXAMPLE: dict[str, Any] = {
    "model": DEFAULT_BASE,
    "state": {"subject": "Duplicate charge", "message": "I was charged twice. Please help today."},
    "questions": {
        "urgent": {"type": "noul", "instructions": "Does the customer ask for help at once?"},
        "team": {
            "type": "choice",
            "instructions": "Which team answers it?",
            "criteria": {"billing": "Payments and refunds.", "delivery": "Parcels that are late or lost."},
        },
        "anger": {
            "type": "score",
            "instructions": "How angry is the customer?",
            "criteria": ["calm", "annoyed", "furious"],
        },
    },
    "abmll": {"gate": {"min_confidence": 0.5}},
}


class SystemOneRequest(WireModel):
    """Typed questions about one state."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    model: str = Field(description="Id of the base model or of an adapter, or a name of one.")
    state: Content = Field(description="A text; or an object or a list, which is read as lines of text.")
    questions: dict[str, Question] = Field(
        min_length=1, description="By names for the caller: the model does not see them."
    )
    assets: Annotated[None, BeforeValidator(_no_assets)] = Field(default=None, description="Not supported.")
    abmll: Extras = Extras()


# ---- answers -------------------------------------------------------------------------------------


class NoulAnswer(WireModel):
    """The probability of yes."""

    type: Literal["noul"] = "noul"
    noul: float
    abmll: schemas.AnswerDetails


class ChoiceAnswer(WireModel):
    """The most probable choice."""

    type: Literal["choice"] = "choice"
    choice: str
    confidence: float = Field(description="Probability that `choice` is right.")
    probabilities: dict[str, float]
    abmll: schemas.AnswerDetails


class ScoreAnswer(WireModel):
    """The expected level."""

    type: Literal["score"] = "score"
    score: float = Field(description="Mean of the levels' indices, each with its probability.")
    confidence: float = Field(description="Probability that the most probable level is right.")
    legend: dict[str, Content] = Field(description="The criteria by the index of their level.")
    probabilities: dict[str, float] = Field(description="By the index of the level.")
    abmll: schemas.AnswerDetails


class Usage(WireModel):
    """Tokens that were read; nothing is written."""

    input_tokens: int
    output_tokens: int = 0


class SystemOneResponse(WireModel):
    """Answers by the names of their questions."""

    model: str = Field(description="What answered: the base model, an adapter, or a version of a name.")
    answers: dict[str, NoulAnswer | ChoiceAnswer | ScoreAnswer]
    usage: Usage
    abmll: schemas.DecisionDetails
