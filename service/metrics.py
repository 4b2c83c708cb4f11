"""The metrics of `/metrics`.

Each application has a registry of its own, so that several in a process do not mix. Every label has
few values.
"""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from service.gateway_metrics import GatewayMetrics

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_POWERS = tuple(2**i for i in range(18))
_CONFIDENCE = tuple(i / 20 for i in range(1, 21))
_REASONS = (  # those of `service.gating.decisions`, which imports from here
    "confidence_below_minimum",
    "margin_below_minimum",
    "mutual_information_above_maximum",
    "typicality_below_minimum",
    "answerable_below_minimum",
    "semantic_entropy_above_maximum",
    "logprob_per_token_below_minimum",
)


class Metrics:
    """Counters, gauges and histograms.

    Times are differences of one process's monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.gateway = GatewayMetrics()
        registry.register(self.gateway)
        self.requests = Counter(
            "abmll_requests",
            "Answered requests, by route template and status.",
            ["route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "abmll_request_seconds",
            "Seconds from the first byte of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "abmll_requests_in_flight", "Requests that wait or run now.", registry=registry
        )
        self.ready = Gauge("abmll_ready", "1 while the server accepts requests.", registry=registry)
        self.queue_seconds = Histogram(
            "abmll_queue_seconds",
            "Seconds that a job waited for the model, by lane.",
            ["lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.adapt_seconds = Histogram(
            "abmll_adapt_seconds", "Seconds of one adaptation.", buckets=_SECONDS, registry=registry
        )
        self.predict_seconds = Histogram(
            "abmll_predict_seconds",
            "Seconds of one request's predictions.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.adapt_steps = Counter("abmll_adapt_steps", "Gradient steps.", registry=registry)
        self.samples = Counter("abmll_samples", "Posterior samples times inputs.", registry=registry)
        self.tokens = Counter("abmll_tokens", "Tokens, by kind.", ["kind"], registry=registry)
        self.cache = Counter(
            "abmll_adapter_cache",
            "Requests by how they got their adapter: hit, miss or joined.",
            ["outcome"],
            registry=registry,
        )
        self.refined = Counter(
            "abmll_refined_adapters",
            "Adaptations in the background (refine), by how they ended: done, failed, or dropped.",
            ["outcome"],
            registry=registry,
        )
        self.long_adaptations = Counter(
            "abmll_long_adaptations",
            "Adaptations that no client waits for (wait_ms), by how they ended.",
            ["status"],
            registry=registry,
        )
        self.waiting_work_seconds = Gauge(
            "abmll_waiting_work_seconds",
            "Work that waits or runs now, in seconds of an idle worker by price: of requests, and of long "
            "adaptations.",
            ["pool"],
            registry=registry,
        )
        self.batch_rows = Counter(
            "abmll_batch_rows",
            "Rows of batches, by outcome: completed or failed.",
            ["outcome"],
            registry=registry,
        )
        self.batches = Counter(
            "abmll_batches", "Batches that ended, by their last status.", ["status"], registry=registry
        )
        self.memory_bytes = Gauge(
            "abmll_adapter_memory_bytes", "Bytes of adapters in memory.", registry=registry
        )
        self.evictions = Counter(
            "abmll_adapter_evictions", "Adapters removed from memory.", registry=registry
        )
        self.store_errors = Counter(
            "abmll_store_errors",
            "Requests that were refused because nothing could be stored or read: store_failed (disk) or "
            "store_unavailable (shared store).",
            ["code"],
            registry=registry,
        )
        self.disk_bytes = Gauge("abmll_disk_bytes", "Size of the data folder's disk.", registry=registry)
        self.disk_free_bytes = Gauge(
            "abmll_disk_free_bytes", "Bytes that are free on the data folder's disk.", registry=registry
        )
        self.worker_up = Gauge("abmll_worker_up", "1 while the worker is up.", ["worker"], registry=registry)
        self.worker_restarts = Counter(
            "abmll_worker_restarts", "Restarts of a worker.", ["worker"], registry=registry
        )
        self.worker_memory_bytes = Gauge(
            "abmll_worker_memory_bytes",
            "Main memory of the worker's process.",
            ["worker"],
            registry=registry,
        )
        self.worker_gpu_memory_bytes = Gauge(
            "abmll_worker_gpu_memory_bytes",
            "GPU memory that the worker has reserved; none without a GPU.",
            ["worker"],
            registry=registry,
        )
        self.fenced = Counter(
            "abmll_fenced_workers",
            "Workers that were ended to be started again, by reason: hung, silent, wrong or slow answers to a "
            "check, or more memory or requests than a setting allows.",
            ["reason"],
            registry=registry,
        )
        self.replays = Counter(
            "abmll_replays", "Jobs that ran again because their worker was lost.", registry=registry
        )
        self.lane_jobs = Gauge(
            "abmll_lane_jobs", "Jobs that wait or run now, by lane.", ["lane"], registry=registry
        )
        self.unit_seconds = Histogram(
            "abmll_unit_seconds",
            "Seconds of one unit: a gradient step or a chunk of samples, of all runs in it.",
            ["lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.unit_runs = Histogram(
            "abmll_unit_runs", "Runs in one unit.", ["lane"], buckets=_POWERS[:9], registry=registry
        )
        self.unit_tokens = Histogram(
            "abmll_unit_tokens",
            "Upper bound of the tokens in one unit.",
            ["lane"],
            buckets=_POWERS,
            registry=registry,
        )
        self.confidence = Histogram(
            "abmll_confidence", "Confidence of predictions.", buckets=_CONFIDENCE, registry=registry
        )
        self.decisions = Counter(
            "abmll_decisions",
            "Predictions, by decision and by the reason of an abstention.",
            ["decision", "reason"],
            registry=registry,
        )
        self.diagnoses = Counter("abmll_diagnoses", "Diagnoses, by verdict.", ["verdict"], registry=registry)

        self.calibrations = Gauge(
            "abmll_calibrations", "Calibrations in memory now, by state.", ["state"], registry=registry
        )
        self.drift_alarms = Counter(
            "abmll_drift_alarms",
            "Drift alarms that revoked an adapter's certificates, by what they test: risk or domain.",
            ["watches"],
            registry=registry,
        )
        self.feedback_labels = Counter(
            "abmll_feedback_labels",
            "Labels of predictions received as feedback, by whether they were requested.",
            ["asked"],
            registry=registry,
        )
        self.calibration_examples = Counter(
            "abmll_calibration_examples",
            "Labelled examples that were added to calibrations.",
            registry=registry,
        )

        for metric, values in self._known_values().items():
            for value in values:
                metric.labels(*value)

    def _known_values(self) -> dict[Counter, list[tuple[str, ...]]]:
        """Return the labels that are known before they come: these series are there from the start,
        at 0.
        """
        return {
            self.tokens: [("support",), ("prompt",), ("completion",)],
            self.cache: [("hit",), ("miss",), ("joined",)],
            self.refined: [("done",), ("failed",), ("dropped",)],
            self.long_adaptations: [("succeeded",), ("failed",), ("cancelled",), ("expired",)],
            self.fenced: [("hung",), ("silent",), ("wrong",), ("slow",), ("memory",), ("requests",)],
            self.store_errors: [("store_failed",), ("store_unavailable",)],
            self.decisions: [("answer", ""), *(("abstain", reason) for reason in _REASONS)],
            self.diagnoses: [("healthy",), ("weak",), ("unfit",)],
            self.drift_alarms: [("risk",), ("domain",)],
            self.feedback_labels: [("yes",), ("no",)],
        }

    def show_process(self) -> None:
        """Show the memory, the processor time and the open files of this process too (`process_*`)."""
        ProcessCollector(registry=self._registry)

    def show_disk(self, folder: Path) -> None:
        """Show how large the disk of `folder` is, and how much of it is free, whenever it is asked."""
        self.disk_bytes.set_function(partial(_disk_usage, folder, "total"))
        self.disk_free_bytes.set_function(partial(_disk_usage, folder, "free"))

    def record_unit(self, lane: str, runs: int, tokens: int, seconds: float) -> None:
        """Record a unit that has run."""
        self.unit_seconds.labels(lane).observe(seconds)
        self.unit_runs.labels(lane).observe(runs)
        self.unit_tokens.labels(lane).observe(tokens)

    def record_decision(self, confidence: float, decision: str, reason: str | None) -> None:
        """Record one answered prediction; `reason` says why it abstained, None where it answered."""
        self.confidence.observe(confidence)
        self.decisions.labels(decision, reason or "").inc()

    def render(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


def _disk_usage(folder: Path, what: str) -> float:
    """Return the `total` or `free` bytes of a folder's disk; not a number where there is no folder."""
    try:
        return float(getattr(shutil.disk_usage(folder), what))
    except OSError:
        return math.nan
