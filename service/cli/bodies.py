"""Requests of the command line as the native wire has them, for a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from service.engine.requests import AdaptRequest, PredictRequest

_SETTINGS = ("samples", "seed", "max_new_tokens", "answers_per_sample")


def adapt_body(request: AdaptRequest) -> dict[str, Any]:
    """Return the body of `POST /v1/adapters`."""
    fit = given({**asdict(request.overrides), "calibration_folds": request.calibration_folds})
    return {
        "support": [
            given({"input": row.input, "output": row.output, "options": list(row.options) or None})
            for row in request.support
        ],
        "seed": request.seed,
        "truncate": request.truncate,
        **({"adapt": fit} if fit else {}),
    }


def predict_body(request: PredictRequest) -> dict[str, Any]:
    """Return the body of `POST /v1/predict`."""
    gate = given(asdict(request.gate.thresholds))
    if request.gate.target_error is not None:
        gate |= {"target_error": request.gate.target_error, "delta": request.gate.delta}
    gate |= given({"target_coverage": request.gate.target_coverage})
    source = adapt_body(request.adapter) if isinstance(request.adapter, AdaptRequest) else {}
    return {
        **source,
        **given({"model": request.model, "confidence": request.confidence, "gate": gate or None}),
        **{name: getattr(request.settings, name) for name in _SETTINGS},
        "truncate": request.truncate,
        "inputs": [given({"input": q.input, "options": list(q.options) or None}) for q in request.queries],
    }


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
