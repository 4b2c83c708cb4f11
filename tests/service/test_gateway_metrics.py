"""What a gateway reads: the names, labels and values that it expects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from service.gateway_metrics import MOST_IDS, Occupancy
from service.metrics import Metrics
from tests.service.executors.conftest import make, running, until
from tests.service.executors.fake import adapt_job, load, predict, predict_job


def samples(metrics: Metrics) -> dict[str, Sample]:
    def all_of_them() -> Iterator[Sample]:
        for family in text_string_to_metric_families(metrics.render().decode()):
            if family.name.startswith("vllm:"):
                assert family.type == "gauge"
                yield from family.samples

    return {sample.name: sample for sample in all_of_them()}


def test_an_idle_server_has_every_gauge() -> None:
    found = samples(Metrics())
    assert {name: sample.value for name, sample in found.items() if name != "vllm:lora_requests_info"} == {
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
    }
    adapters = found["vllm:lora_requests_info"]
    assert adapters.labels == {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert abs(adapters.value - time.time()) < 60


def test_jobs_count_as_running_or_waiting_and_adapters_by_where_they_are() -> None:
    metrics = Metrics()
    metrics.gateway.queue_limit = 8
    metrics.gateway.occupancy = lambda: Occupancy(["a", "b", "a"], ["c", "a"], ["d", "b"])
    found = samples(metrics)
    assert found["vllm:num_requests_running"].value == 3
    assert found["vllm:num_requests_waiting"].value == 2
    assert found["vllm:kv_cache_usage_perc"].value == 5 / 8
    assert found["vllm:lora_requests_info"].labels == {
        "max_lora": "8",
        "running_lora_adapters": "a,b,d",
        "waiting_lora_adapters": "c",
    }


def test_a_label_does_not_grow_without_end() -> None:
    metrics = Metrics()
    metrics.gateway.queue_limit = 1
    metrics.gateway.occupancy = lambda: Occupancy(held=[f"adp_{n}" for n in range(10 * MOST_IDS)])
    found = samples(metrics)
    assert found["vllm:lora_requests_info"].labels["running_lora_adapters"].count(",") == MOST_IDS - 1
    assert found["vllm:kv_cache_usage_perc"].value == 0


def test_the_executor_says_what_it_does() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        executor = make("inline", [partial(load, 0.05)], metrics)
        async with running(executor):
            await predict(executor, predict_job(adapter="adp_7"))
            jobs = [asyncio.create_task(executor.adapt(adapt_job(steps=40, seed=n))) for n in range(6)]
            await until(lambda: samples(metrics)["vllm:num_requests_running"].value > 0)
            found = samples(metrics)
            counted = [found[f"vllm:num_requests_{state}"].value for state in ("running", "waiting")]
            assert sum(counted) == len(jobs)
            assert "adp_7" in found["vllm:lora_requests_info"].labels["running_lora_adapters"].split(",")
            for job in jobs:
                job.cancel()
            await until(lambda: samples(metrics)["vllm:num_requests_running"].value == 0)

    asyncio.run(scenario())
