"""The OpenAPI document, as generators of clients want it: short names that stay.

The name of an operation is that of its function. FastAPI names objects of the same class name by
their modules, which move; here the surface stands in front.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

_SURFACES = {
    "service__api__decisions__wire__": "Decisions",
    "service__api__openai__wire__": "OpenAI",
    "service__api__openai_errors__": "OpenAI",
    "service__api__systemone__errors__": "SystemOne",
    "service__api__systemone__wire__": "SystemOne",
}
"""What stands in front of a class name that several modules have. Ours have it alone."""
_REFERENCE = "#/components/schemas/"


def operation_id(route: APIRoute) -> str:
    """Return the name of an operation: that of its function."""
    return route.name


def shorten_names(app: FastAPI) -> None:
    """Give the application's document `with_short_names`. It is made once, when it is asked for."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = with_short_names(make())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def with_short_names(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with `short_name` of each object. Raises `ValueError` for a name twice."""
    named = {name: short_name(name) for name in document["components"]["schemas"]}
    if twice := len(named) - len(set(named.values())):
        raise ValueError(f"{twice} objects of the document have the name of another one: {sorted(named)}")
    renamed: dict[str, Any] = _renamed(
        document, {_REFERENCE + old: _REFERENCE + new for old, new in named.items()}
    )
    schemas = renamed["components"]["schemas"]
    renamed["components"]["schemas"] = {new: schemas[old] for old, new in named.items()}
    return renamed


def short_name(name: str) -> str:
    """Return the name of an object without its module: `OpenAIUsage`, `Usage`."""
    surface = next((short for module, short in _SURFACES.items() if name.startswith(module)), "")
    return surface + name.rpartition("__")[2]


def _renamed(value: Any, references: dict[str, str]) -> Any:
    """Return the JSON with other references to objects, also in the mappings of discriminators."""
    if isinstance(value, dict):
        return {key: _renamed(inner, references) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, references) for inner in value]
    return references.get(value, value) if isinstance(value, str) else value
