"""Settings of who may use the server."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator


class AccessSettings(BaseModel):
    """Who may use the server."""

    keys_file: Path | None = Field(
        default=None,
        description="File of the keys that requests need, made by `abmll keys add`. Changes are seen "
        "within a second. Without it, anyone who reaches the server may do everything.",
    )
    insecure: bool = Field(
        default=False,
        description="Listen on other addresses than this machine's own without keys: for a network in "
        "which everyone may use the server, or a gateway in front of it that checks who asks.",
    )
    open_metrics: bool = Field(
        default=False,
        description="Show `/metrics` without a key. Otherwise it needs one with the scope `admin`, if "
        "there are keys.",
    )
    audit_log: Path | None = Field(
        default=None,
        description="File to which a line of JSON is appended for each adapter, name and gate that is made, "
        "changed or deleted, with the tenant and the key. It has no text of a user.",
    )
    ssl_certfile: Path | None = Field(
        default=None, description="Certificate, in PEM, with which the server itself speaks HTTPS."
    )
    ssl_keyfile: Path | None = Field(
        default=None, description="Private key of the certificate, in PEM, if it is in a file of its own."
    )

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Self:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile, the certificate that the key is of")
        return self
