"""Names of adapters, and what became of requests that point, list or delete them."""

from __future__ import annotations

from typing import Literal

from abmll_client.models.answer import Answer


class NameVersion(Answer):
    """One version of a name. It never changes."""

    model: str  # what requests name as `model` to stay at this version: `tickets@3`
    version: int  # from 1; no number comes again
    adapter_id: str
    available: bool  # False where the adapter was deleted
    created: str  # since when the name pointed to the adapter; ISO 8601, UTC
    note: str | None = None
    rollback_of: int | None = None  # the version that was gone back to


class Name(Answer):
    """A name, and the version that requests with it get."""

    name: str
    object: Literal["name"] = "name"
    current: NameVersion


class NameWithHistory(Name):
    """A name with a page of its versions, the newest first."""

    history: list[NameVersion]
    has_more: bool  # there are versions before the last one here


class NameList(Answer):
    """A page of names, in their order."""

    object: Literal["list"] = "list"
    data: list[Name]
    has_more: bool


class DeletedName(Answer):
    """Says that a name was deleted."""

    name: str
    object: Literal["name"] = "name"
    deleted: Literal[True] = True
