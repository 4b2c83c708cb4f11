"""What every answer model is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """A record of the server's. Types are strict, numbers finite; unknown fields are left out.

    Leaving them out lets this client read the answers of a newer server.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)
