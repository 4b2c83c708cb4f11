"""Spans of a request and of its parts, in the trace of the caller."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.api.request_log import RequestLog
from service.tracing import Tracer, make_tracer
from tests.service.conftest import Server

BODY = {
    "support": [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}],
    "options": ["yes", "no"],
    "inputs": ["fine"],
}


def test_a_request_and_its_parts_are_spans_of_the_callers_trace(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server = Server(tmp_path)
    (layer,) = (layer for layer in server.app.user_middleware if layer.cls is RequestLog)
    layer.kwargs["tracer"] = Tracer(provider)

    async def scenario(client: httpx.AsyncClient) -> None:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        answer = await client.post("/v1/predict", json=BODY, headers={"traceparent": trace})
        spans = {span.name: span for span in exporter.get_finished_spans()}
        request = spans["POST /v1/predict"]
        assert f"{request.context.trace_id:032x}" == trace.split("-")[1]
        assert request.parent is not None and f"{request.parent.span_id:016x}" == trace.split("-")[2]
        assert request.attributes["abmll.adapter_id"] == answer.json()["adapter_id"]
        assert request.attributes["http.response.status_code"] == 200
        for part in ("adapt", "predict"):
            span, seconds = spans[part], answer.json()["timings"][f"{part}_seconds"]
            assert span.parent.span_id == request.context.span_id
            assert (span.end_time - span.start_time) / 1e9 == pytest.approx(seconds, abs=1e-6)

    server.run(scenario)


def test_without_an_endpoint_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with make_tracer().request("GET", {}) as span:
        assert span is None
