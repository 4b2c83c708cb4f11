"""The metrics by which a gateway chooses a server, under the names that gateways know.

They are those of vLLM, which the Gateway API's endpoint picker reads from every model server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

MOST_IDS = 256
"""Most ids of adapters in one label."""


@dataclass(frozen=True)
class Occupancy:
    """What the workers do now, as ids of adapters, one for each job, and those that they hold."""

    running: Sequence[str] = ()
    waiting: Sequence[str] = ()
    held: Sequence[str] = ()


class GatewayMetrics(Collector):
    """Asks for the occupancy whenever metrics are read, so that nothing has to be kept up to date."""

    def __init__(self) -> None:
        self.occupancy: Callable[[], Occupancy] = Occupancy
        self.queue_limit = 0  # most requests at a time; 0 where that is not known
        self.shows_ids = True  # of adapters; not where those who have no key may read them

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the four gauges."""
        now = self.occupancy()
        jobs = len(now.running) + len(now.waiting)
        yield GaugeMetricFamily(
            "vllm:num_requests_running", "Jobs that a worker has begun.", value=len(now.running)
        )
        yield GaugeMetricFamily(
            "vllm:num_requests_waiting", "Jobs that wait for a worker.", value=len(now.waiting)
        )
        yield GaugeMetricFamily(
            "vllm:kv_cache_usage_perc",
            "How full the server is, from 0 to 1: jobs over queue_limit, as there is no KV cache.",
            value=min(1.0, jobs / self.queue_limit) if self.queue_limit else 0.0,
        )
        adapters = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters that workers hold or use, adapters that are waited for, and the time of this answer.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        here = {*now.running, *now.held}
        most = MOST_IDS if self.shows_ids else 0
        labels = [
            str(self.queue_limit),  # each request may bring its adapter
            ",".join(sorted(here)[:most]),
            ",".join(sorted({*now.waiting} - here)[:most]),
        ]
        adapters.add_metric(labels, time.time())
        yield adapters
