"""What requests of several kinds are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from service.schemas.wire import WireModel

MAX_SEED = 2**53 - 1  # the largest integer that every JSON client keeps exact


class SupportRow(WireModel):
    """A labelled example."""

    input: str = Field(description="The text.")
    output: str = Field(description="Its label, one of the options; or, without options, the text to answer.")
    options: list[str] | None = Field(
        default=None, description="Options of this example; wins over the request's."
    )


class Adapt(WireModel):
    """How the posterior is fitted; what is left out takes the value the posterior was trained for."""

    steps: int | None = Field(default=None, ge=1, description="Gradient steps.")
    learning_rate: float | None = Field(default=None, gt=0, le=1, description="Learning rate of AdamW.")
    batch_size: int | None = Field(default=None, ge=1, description="Support examples a step.")
    beta: float | None = Field(
        default=None, ge=0, le=1000, description="Weight of KL(phi || theta); 0 leaves it out."
    )
    calibration_folds: int | None = Field(
        default=None,
        ge=2,
        description="Hold out this many parts of the support in turn, and give the adapter the temperature at which adapters of "
        "the other parts answer them best: costs as many more fits, and makes confidences calibrated. Needs options.",
    )


Model = Annotated[
    str | None, Field(description="Name of the base model; by default the one this server serves.")
]


Options = Annotated[
    list[str] | None,
    Field(
        description="What to choose from, for every row that has no options of its own. None at all means free text.",
    ),
]


Seed = Annotated[
    int,
    Field(
        ge=0,
        le=MAX_SEED,
        description="Of the adaptation and of the samples: same request and seed, same answer.",
    ),
]


Truncate = Annotated[
    bool,
    Field(description="Cut the end of inputs that do not fit the context, instead of refusing the request."),
]


Samples = Annotated[
    Annotated[int, Field(ge=0, le=64), Tag("<number>")] | Annotated[Literal["auto"], Tag("<auto>")],
    Discriminator(lambda value: "<auto>" if value == "auto" else "<number>"),
    Field(
        description="Posterior samples to average; 0 predicts with the posterior's mean only, "
        "`auto` draws until the gate can be decided."
    ),
]


Support = Annotated[list[SupportRow], Field(description="Labelled examples of the task.")]
