"""Names of adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from service.schemas.wire import WireModel

IfVersion = Annotated[
    int | None,
    Field(
        ge=0,
        description="Number of the version that the name has to be at; 0 means that there is no such name. "
        "If it is at another, nothing changes, and the answer is 409 `name_changed`. By default it may be at any.",
    ),
]
Note = Annotated[str | None, Field(max_length=500, description="Why; it is stored with the version.")]

_EXAMPLE: dict[str, Any] = {"adapter_id": "adp_0123456789abcdef", "if_version": 2, "note": "12 more examples"}


class PutNameRequest(WireModel):
    """Point a name to an adapter."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    adapter_id: str = Field(description="Id of an adapter of this server.")
    if_version: IfVersion = None
    note: Note = None


class RollbackRequest(WireModel):
    """Point a name to the adapter of an earlier version."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1, "note": "more errors since"}]})

    version: int = Field(ge=1, description="Number of that version.")
    if_version: IfVersion = None
    note: Note = None


class NameVersion(WireModel):
    """One version of a name. It never changes."""

    model: str = Field(description="What requests name as `model` to stay at this version: `tickets@3`.")
    version: int = Field(description="Its number, from 1. No number comes again.")
    adapter_id: str
    available: bool = Field(description="False where the adapter was deleted.")
    created: str = Field(description="Time since when the name pointed to this adapter, ISO 8601 in UTC.")
    note: str | None = None
    rollback_of: int | None = Field(default=None, description="Number of the version that was gone back to.")


class Name(WireModel):
    """A name, and the version that requests with it get."""

    name: str
    object: Literal["name"] = "name"
    current: NameVersion


class NameWithHistory(Name):
    """A name with a page of its versions, the newest first."""

    history: list[NameVersion]
    has_more: bool = Field(
        description="There are older versions; `before` of the next page is the last number here."
    )


class NameList(WireModel):
    """A page of names, in their order."""

    object: Literal["list"] = "list"
    data: list[Name]
    has_more: bool


class DeletedName(WireModel):
    """A name that was deleted."""

    name: str
    object: Literal["name"] = "name"
    deleted: Literal[True] = True
