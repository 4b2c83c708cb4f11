"""What `/metrics` shows. One registry an app, so that several apps in a process do not mix; every label is bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from service.gating.decisions import DecidedPrediction

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_POWERS = tuple(2**i for i in range(18))
_CONFIDENCE = tuple(i / 20 for i in range(1, 21))


class Metrics:
    """The instruments, by name. Intervals come from one process's monotonic clock."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "abmll_requests",
            "Answered requests by route template and status.",
            ["route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "abmll_request_seconds",
            "From the first byte to the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("abmll_requests_in_flight", "Requests that wait or run.", registry=registry)
        self.ready = Gauge("abmll_ready", "1 while the server takes work.", registry=registry)
        self.queue_seconds = Histogram(
            "abmll_queue_seconds",
            "Wait for the model, by lane.",
            ["lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.adapt_seconds = Histogram(
            "abmll_adapt_seconds", "One adaptation.", buckets=_SECONDS, registry=registry
        )
        self.predict_seconds = Histogram(
            "abmll_predict_seconds", "The predictions of one request.", buckets=_SECONDS, registry=registry
        )
        self.adapt_steps = Counter("abmll_adapt_steps", "Gradient steps made.", registry=registry)
        self.samples = Counter("abmll_samples", "Posterior samples times inputs.", registry=registry)
        self.tokens = Counter("abmll_tokens", "Tokens by kind.", ["kind"], registry=registry)
        self.cache = Counter(
            "abmll_adapter_cache", "How requests came by adapters.", ["outcome"], registry=registry
        )
        self.memory_bytes = Gauge("abmll_adapter_memory_bytes", "Adapters kept in memory.", registry=registry)
        self.evictions = Counter(
            "abmll_adapter_evictions", "Adapters dropped from memory.", registry=registry
        )
        self.worker_up = Gauge("abmll_worker_up", "1 while the worker is up.", ["worker"], registry=registry)
        self.worker_restarts = Counter(
            "abmll_worker_restarts", "Times a worker was started again.", ["worker"], registry=registry
        )
        self.replays = Counter(
            "abmll_replays", "Jobs done anew because their worker was lost.", registry=registry
        )
        self.lane_jobs = Gauge(
            "abmll_lane_jobs", "Jobs that wait or run, by lane.", ["lane"], registry=registry
        )
        self.unit_seconds = Histogram(
            "abmll_unit_seconds",
            "One unit: a gradient step or a chunk of samples, of all runs in it.",
            ["lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.unit_runs = Histogram(
            "abmll_unit_runs", "Runs in one unit.", ["lane"], buckets=_POWERS[:9], registry=registry
        )
        self.unit_tokens = Histogram(
            "abmll_unit_tokens",
            "Tokens in one unit, an upper bound.",
            ["lane"],
            buckets=_POWERS,
            registry=registry,
        )
        self.confidence = Histogram(
            "abmll_confidence", "Confidence of predictions.", buckets=_CONFIDENCE, registry=registry
        )
        self.decisions = Counter(
            "abmll_decisions",
            "Predictions by decision and, for abstentions, reason.",
            ["decision", "reason"],
            registry=registry,
        )
        self.diagnoses = Counter(
            "abmll_diagnoses", "Diagnoses made, by verdict.", ["verdict"], registry=registry
        )

        self.calibrations = Gauge(
            "abmll_calibrations", "Calibrations in memory, by state.", ["state"], registry=registry
        )
        self.drift_alarms = Counter(
            "abmll_drift_alarms",
            "Alarms that revoked an adapter's certificates, by what they watch.",
            ["watches"],
            registry=registry,
        )
        self.feedback_labels = Counter(
            "abmll_feedback_labels",
            "Labels received for predictions, by whether they were asked for.",
            ["asked"],
            registry=registry,
        )
        self.calibration_examples = Counter(
            "abmll_calibration_examples", "Examples that calibrations took in.", registry=registry
        )

    def record_unit(self, lane: str, runs: int, tokens: int, seconds: float) -> None:
        """One unit has run."""
        self.unit_seconds.labels(lane).observe(seconds)
        self.unit_runs.labels(lane).observe(runs)
        self.unit_tokens.labels(lane).observe(tokens)

    def record_decisions(self, predictions: Iterable[DecidedPrediction]) -> None:
        """These were answered."""
        for prediction in predictions:
            self.confidence.observe(prediction.confidence.value)
            self.decisions.labels(prediction.decision, prediction.abstain_reason or "").inc()

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)
