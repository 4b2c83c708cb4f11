"""Settings of gates and feedback."""

from __future__ import annotations

from pydantic import BaseModel, Field


class GateSettings(BaseModel):
    """How gates are certified, and how feedback renews them."""

    max_calibration: int = Field(
        default=10_000, ge=1, description="Most labelled outcomes of one adapter's calibration."
    )
    max_logged: int = Field(
        default=10_000,
        ge=1,
        description="Most predictions of an adapter that are stored for feedback. Beyond it the "
        "oldest are deleted, and then no longer take a label.",
    )
    feedback_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Probability that the label of a logged prediction is requested. Only labels "
        "of these predictions recalibrate the gate.",
    )
    alarm_delta: float = Field(
        default=0.01, gt=0, lt=1, description="False-alarm probability of each drift alarm of a calibration."
    )
