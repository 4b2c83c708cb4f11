"""The pages of HTTP and its limits, from the OpenAPI document of the application."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from handbook.markdown import anchor, code, page, paragraph, table
from service.schemas import LimitsReport
from service.settings import Settings

Schema = Mapping[str, Any]
_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "object",
    "null": "null",
}


@cache
def document() -> Schema:
    """Return the OpenAPI document of a server with the default settings. It starts nothing."""
    from model_store.adapters.gate_journals import GateJournals  # noqa: PLC0415
    from model_store.adapters.names import NameStore  # noqa: PLC0415
    from model_store.adapters.store import AdapterStore  # noqa: PLC0415
    from service.api.app import create_app  # noqa: PLC0415
    from service.engine.engine import Engine  # noqa: PLC0415
    from service.executors.inline import inline_executor  # noqa: PLC0415
    from service.gating.keeper import GateKeeper  # noqa: PLC0415
    from service.metrics import Metrics  # noqa: PLC0415

    def no_worker() -> Any:
        raise NotImplementedError

    with tempfile.TemporaryDirectory() as folder:
        settings, metrics = Settings(data_dir=Path(folder)), Metrics()
        executor = inline_executor(no_worker, metrics)
        gates = GateKeeper(settings, GateJournals(settings.calibrations_dir), metrics)
        stores = AdapterStore(settings.adapters_dir), NameStore(settings.names_dir)
        engine = Engine(settings, executor, *stores, gates, metrics)
        found: Schema = create_app(settings, engine, metrics).openapi()
    return found


def http_page() -> str:
    """Return the page of every path: what it does, what it takes, what it answers."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in document()["paths"].items():
        for verb, operation in operations.items():
            tag = (operation.get("tags") or ["other"])[0]
            by_tag.setdefault(tag, []).append(_operation(f"{verb.upper()} {path}", operation))
    blocks = [block for tag, operations in by_tag.items() for block in (f"## {tag}", *operations)]
    return page(
        "HTTP paths",
        "the OpenAPI document",
        paragraph(
            "`/openapi.json` of a running server is that document, and `/docs` shows it with worked "
            "examples. [HTTP](../http.md) explains the parts that need words. The types are on a [page of "
            "their own](http-objects.md), and so are [the codes of errors](errors.md)."
        ),
        *blocks,
    )


def objects_page() -> str:
    """Return the page of every object of the wire with its fields."""
    schemas: Schema = document()["components"]["schemas"]
    return page(
        "HTTP objects",
        "the OpenAPI document",
        paragraph("The objects that [the paths](http.md) take and answer, in the order of their names."),
        *(_object(name, schema) for name, schema in sorted(schemas.items())),
    )


def limits_page() -> str:
    """Return the page of the limits of a request, which are settings."""
    rows = []
    for name, field in LimitsReport.model_fields.items():
        setting = Settings.model_fields.get(name)
        if setting is not None:
            rows.append((code(name), code(setting.default), str(setting.description)))
        elif name != "prices":
            rows.append((code(name), "of the base model", str(field.description or "")))
    return page(
        "Limits",
        "`LimitsReport` in `service/schemas/operations.py` and `service/settings`",
        paragraph(
            "`GET /v1/limits` answers those of a running server, with [prices](../serving-internals.md#prices). "
            "A request over a limit is refused before any model work: `max_body_bytes` with 413, `queue_limit` "
            "and `queue_seconds` with 429, `max_prompt_tokens` with 422 `prompt_too_long` unless the request sets "
            "`truncate`, others with 422 `limit_exceeded`. The message has the limit and its setting. Three are no "
            "refusals at once: a request that takes longer than its deadline gets 504, feedback beyond "
            "`max_calibration` is warned of, and `max_logged` deletes the oldest predictions."
        ),
        table(("limit", "default", "meaning"), rows),
    )


def _operation(name: str, operation: Schema) -> str:
    parts = [f"### {name}", *map(_block, operation.get("description", "").split("\n\n"))]
    rows = [
        (code(found["name"]), found["in"], _type(found["schema"]), str(found.get("description", "")))
        for found in operation.get("parameters", [])
    ]
    if rows:
        parts.append(table(("parameter", "in", "type", "meaning"), rows))
    if "requestBody" in operation:
        parts.append(f"Takes {' or '.join(_contents(operation['requestBody']))}.")
    statuses = operation["responses"]
    parts.append(f"Answers {' or '.join(_contents(statuses.get('200', {})) or ['no JSON'])}.")
    errors = [status for status in statuses if not status.startswith("2")]
    if errors:
        parts.append(f"Refusals and failures: {', '.join(sorted(errors))}.")
    return "\n\n".join(part for part in parts if part)


def _block(text: str) -> str:
    return text if text.startswith(("- ", "|", "    ")) else paragraph(text)


def _contents(body: Schema) -> Iterator[str] | list[str]:
    found = []
    for kind, content in body.get("content", {}).items():
        schema = content.get("schema", {})
        words = {"text/event-stream": "events of a stream", "application/json": ""}.get(kind, code(kind))
        found.append(words or _type(schema) or "JSON")
    return list(dict.fromkeys(found))


def _object(name: str, schema: Schema) -> str:
    parts = [f"## {name}", *map(_block, schema.get("description", "").split("\n\n"))]
    required = schema.get("required", [])
    rows = [
        (code(field), _type(about), _default(field, about, required), _meaning(about))
        for field, about in schema.get("properties", {}).items()
    ]
    parts.append(table(("field", "type", "default", "meaning"), rows) if rows else _type(schema))
    return "\n\n".join(part for part in parts if part)


def _meaning(about: Schema) -> str:
    inner = [part.get("description", "") for part in about.get("anyOf", []) if "$ref" not in part]
    return str(about.get("description") or next(filter(None, inner), ""))


def _default(field: str, about: Schema, required: list[str]) -> str:
    if field in required:
        return "required"
    value = about.get("default")
    return "" if value is None else code(json.dumps(value))


def _type(schema: Schema) -> str:
    """Return the type of a field in words, with links to objects."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](http-objects.md#{anchor(name)})"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(_type(part) for part in schema[union]))
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(json.dumps(value)) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {})) or 'anything'}"
    bounds = [
        f"{words} {schema[name]:g}"
        for name, words in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
        if name in schema
    ]
    return ", ".join([_WORDS.get(schema.get("type", ""), "any JSON"), *bounds])
