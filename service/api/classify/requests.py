"""From a Classify request to the native one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from service import schemas
from service.api.classify import wire
from service.api.native.predicting import native_request
from service.errors import InvalidSupportError

_FIELDS = {".input": ".text", ".output": ".label", ".options": ""}


def predict_request(body: wire.ClassifyRequest) -> schemas.PredictRequest:
    """Make the native request. Raises `InvalidSupportError` for examples that all have one label."""
    shared: dict[str, Any] = {
        "inputs": body.inputs,
        "samples": body.abmll.samples,
        "seed": body.abmll.seed,
        "gate": body.abmll.gate,
        "truncate": body.truncate != "NONE",
    }
    if not body.examples:
        return native_request({"model": body.model, **shared})
    support = [schemas.SupportRow(input=example.text, output=example.label) for example in body.examples]
    return native_request(
        {
            "model": body.model,
            "support": support,
            "options": _labels(body.examples),
            "adapt": body.abmll.adapt,
            **shared,
        }
    )


def _labels(examples: Sequence[wire.ClassifyExample]) -> list[str]:
    """List the labels in the order of their first examples."""
    labels = list(dict.fromkeys(example.label for example in examples))
    if len(labels) < 2:
        raise InvalidSupportError(f"all are labelled {labels[0][:80]!r}: two labels are needed", "support")
    return labels


def field_name(param: str) -> str:
    """Return the field of a Classify request from which the native field `param` comes."""
    if param.startswith("support"):
        row = param.replace("support", "examples", 1)
        return re.sub(r"\.\w+$", lambda field: _FIELDS.get(field[0], field[0]), row)
    if param == "adapter_id":
        return "model"
    return param if param.startswith(("inputs", "model", "truncate")) else f"abmll.{param}"
