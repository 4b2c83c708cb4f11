"""Traces of requests, where OpenTelemetry is installed (the extra `otel`) and an endpoint is set.

A request is a span of the trace that its header `traceparent` names (W3C Trace Context). Its parts
are spans below it: they are made when the request ends, from the times of its notes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from service.request_notes import RequestNotes

log = logging.getLogger(__name__)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PARTS = ("queue", "adapt", "predict")


class Tracer:
    """Makes spans of requests; without a `provider` of OpenTelemetry, none."""

    def __init__(self, provider: Any = None) -> None:
        self._tracer = provider.get_tracer("abmll") if provider is not None else None

    def request(self, method: str, headers: Mapping[str, str]) -> AbstractContextManager[Any]:
        """Return the context of a request's span, which it yields; None where there are no traces."""
        if self._tracer is None:
            return nullcontext()
        from opentelemetry.propagate import extract  # noqa: PLC0415 - the extra
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        context = extract({"traceparent": headers.get("traceparent", "")})
        span: AbstractContextManager[Any] = self._tracer.start_as_current_span(
            method, context=context, kind=SpanKind.SERVER
        )
        return span

    def end(self, span: Any, method: str, route: str, status: int, notes: RequestNotes) -> None:
        """Name the span of a request that is answered, and add the spans of its parts, one by one."""
        if self._tracer is None or span is None:
            return
        span.update_name(f"{method} {route}")
        values = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "abmll.request_id": notes.request_id,
            "abmll.tenant": notes.tenant,
            "abmll.adapter_id": notes.adapter_id,
        }
        span.set_attributes({name: value for name, value in values.items() if value is not None})
        ends = time.time_ns()
        for part in reversed(PARTS):
            nanoseconds = int(notes.seconds.get(part, 0.0) * 1e9)
            if nanoseconds:
                child = self._tracer.start_span(part, start_time=ends - nanoseconds)
                child.end(ends)
                ends -= nanoseconds


def make_tracer() -> Tracer:
    """Return the tracer that the environment asks for, by the variables of OpenTelemetry."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return Tracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        log.warning("an endpoint for traces is set, and the extra otel is not installed: no traces are sent")
        return Tracer()
    os.environ.setdefault("OTEL_SERVICE_NAME", "abmll-serve")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)
