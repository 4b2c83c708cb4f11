"""Settings of the log."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class LogSettings(BaseModel):
    """What the log has, and how it is written."""

    log_format: Literal["text", "json"] = Field(
        default="text",
        description="Lines of the log: `text`, or `json`, an object a line with the request's id, tenant and "
        "adapter. Neither has a text of a request.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level of a line that is logged."
    )
