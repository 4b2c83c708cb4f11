"""The base class of every object on the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator


class WireModel(BaseModel):
    """An object of the wire: no conversion of types, no unknown fields, no NaN, no changes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def one_of(tag_of: Callable[[Any], str | None], kinds: str) -> Discriminator:
    """Return what chooses a branch of a union by its tag; tags have angle brackets.

    A value for which `tag_of` returns None is refused with the words `kinds`, which name all that
    is accepted. A branch alone would name only itself.
    """
    message = f"Input should be {kinds}"
    return Discriminator(tag_of, custom_error_type="kind_of_value", custom_error_message=message)


def text_or_list(of: str) -> Discriminator:
    """Return `one_of` for the tags `<text>` and `<list>`."""
    tags: dict[type, str] = {str: "<text>", list: "<list>"}
    return one_of(lambda value: tags.get(type(value)), f"a text, or a list of {of}")
