"""Settings of where the server listens."""

from __future__ import annotations

import re

from pydantic import BaseModel, Field, field_validator

from service.settings.values import split


class NetworkSettings(BaseModel):
    """Where the server listens."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    root_path: str = Field(
        default="",
        description="Path below which a proxy shows the server, such as `/abmll`; the proxy may remove it "
        "or leave it.",
    )
    cors_origins: str | None = Field(
        default=None,
        description="Origins of the web pages that may call the server from a browser, separated by "
        "commas, such as `https://app.example.org`; `*` means all pages. By default none may.",
    )
    playground: bool = Field(
        default=True, description="Show the page `/playground`, on which anyone who reaches it can try cases."
    )
    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        le=24 * 3600,
        description="Seconds after which an idle connection is closed; more than a proxy in front "
        "keeps its idle connections.",
    )

    @field_validator("root_path")
    @classmethod
    def _path(cls, path: str) -> str:
        if path.strip("/") and not re.fullmatch(r"(/[\w.~-]+)+/?", path):
            raise ValueError(f"{path!r} is not a path such as /abmll")
        return path.rstrip("/")

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: str | None) -> str | None:
        for origin in split(origins):
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", origin):
                raise ValueError(
                    f"{origin!r} is not an origin, which has a scheme and a host, and no path: "
                    "https://app.example.org"
                )
        return origins

    @property
    def allowed_origins(self) -> list[str]:
        """The origins of `cors_origins`, one by one."""
        return split(self.cors_origins)
