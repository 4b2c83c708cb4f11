"""The client has the records and words of the server a second time: they are equal."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from pydantic import create_model

from abmll_client import calls, events, gate_results, models
from abmll_client.arguments import (
    AdaptFields,
    CalibrateFields,
    DecideFields,
    PredictFields,
    TeachFields,
)
from abmll_client.errors import STATUS_OF_CODE
from service import schemas
from service.errors import error_kinds
from service.gating import decisions

MODELS = sorted(
    name
    for name in models.__all__
    if inspect.isclass(getattr(models, name)) and getattr(models, name) is not models.Answer
)


# Codes that a later server may have more of: the client reads any text there.
OPEN = ("ErrorCode", "ReasonCode")


def opened(name: str, schema: Any) -> Any:
    """Return the schema of a field with any text in place of a code that may get more values."""
    codes = [f"#/$defs/{code}" for code in OPEN]
    if isinstance(schema, dict) and (schema.get("$ref") in codes or (name == "code" and "enum" in schema)):
        return {"title": name.title(), "type": "string"}
    return schema


def shape(schema: Any, *, of_names: bool = False) -> Any:
    """Return a JSON schema without prose, and without whether unknown fields are refused.

    With `of_names`, the keys of `schema` are names of fields or models, which all stay.
    """
    if isinstance(schema, list):
        return [shape(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if of_names:
        schema = {name: opened(name, value) for name, value in schema.items() if name not in OPEN}
    left_out = () if of_names else ("description", "examples")
    return {
        key: shape(value, of_names=not of_names and key in ("properties", "$defs"))
        for key, value in schema.items()
        if key not in left_out
        and (key, value) != ("additionalProperties", False)
        and not (key == "$defs" and set(value) <= set(OPEN))
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_record_has_the_servers_fields_types_and_defaults(name: str) -> None:
    ours, theirs = (getattr(package, name).model_json_schema() for package in (models, schemas))
    assert shape(ours) == shape(theirs)


@pytest.mark.parametrize(
    "change", [{"images": (int, ...)}, {"support_tokens": (float, ...)}, {"support_tokens": (int, 0)}]
)
def test_the_comparison_sees_another_field_type_or_default(change: dict[str, Any]) -> None:
    other = create_model("Usage", __base__=models.Usage, **change)
    same = create_model("Usage", __base__=models.Usage, support_tokens=(int, ...))
    theirs = shape(schemas.Usage.model_json_schema())
    assert shape(other.model_json_schema()) != theirs
    assert shape(same.model_json_schema()) == theirs


def test_a_record_reads_as_strictly_as_the_servers_but_leaves_unknown_fields_out() -> None:
    ours, theirs = dict(models.Answer.model_config), dict(schemas.WireModel.model_config)
    assert (ours.pop("extra"), theirs.pop("extra")) == ("ignore", "forbid")
    assert ours == theirs


def test_there_are_records_only_of_what_the_client_reads() -> None:
    made = [f for _, f in inspect.getmembers(calls, inspect.isfunction) if f.__module__ == calls.__name__]
    returned = [get_type_hints(function)["return"] for function in made]
    answers = {
        get_args(call)[0]
        for hint in returned
        for call in (hint, *get_args(hint))
        if get_origin(call) is calls.Call
    }
    assert len(answers) == 19
    of_events = {get_type_hints(kind)["data"] for kind in get_args(events.StreamEvent)}
    read = {models.ErrorResponse, *answers, *of_events}
    nested = {name for model in read for name in model.model_json_schema().get("$defs", {})}
    assert {model.__name__ for model in read} | nested == set(MODELS)


@pytest.mark.parametrize(
    ("fields", "request_model", "given_otherwise"),
    [
        (AdaptFields, schemas.CreateAdapterRequest, {"support", "questions", "cases"}),
        (TeachFields, schemas.CreateAdapterRequest, {"support", "questions", "cases", "options"}),
        (DecideFields, schemas.DecideRequest, {"inputs", "questions", "cases"}),
        (PredictFields, schemas.PredictRequest, {"inputs", "stream"}),
        (CalibrateFields, schemas.CalibrateRequest, {"examples", "cases", "replace", "more_follow"}),
    ],
)
def test_what_callers_may_give_is_what_requests_have(
    fields: Any, request_model: type[schemas.WireModel], given_otherwise: set[str]
) -> None:
    assert set(fields.__annotations__) | given_otherwise == set(request_model.model_fields)
    assert not set(fields.__annotations__) & given_otherwise


def test_a_gates_reasons_are_the_servers_words_in_its_order() -> None:
    names = ("CONFIDENCE", "MARGIN", "MUTUAL_INFORMATION")
    ours = [getattr(gate_results, name) for name in names]
    assert ours == [getattr(decisions, name) for name in names]
    assert ours == [reason for reason in decisions.REASONS if reason in ours]


def test_the_error_of_an_event_has_the_status_of_an_answer_with_its_code() -> None:
    assert {kind.code: kind.status for kind in error_kinds()} == STATUS_OF_CODE


def test_the_client_reads_every_event_that_the_server_documents() -> None:
    page = (Path(__file__).parents[2] / "docs/streaming.md").read_text("utf-8")
    names = {get_args(get_type_hints(kind)["name"])[0] for kind in get_args(events.StreamEvent)}
    assert names | {"error"} == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
