import math
from types import SimpleNamespace
from typing import Any

import pytest

from abmll.memory_plan import measure_costs
from abmll.model import FewShotModel
from benchmarks import soak
from benchmarks.soak import Reading, Soak, page, readings_table, slope
from service.executors.worker import ModelWorker
from tests.tiny import make_config, tiny_model, tiny_tokenizer

MB = 10**6


def reading(adapters: int, worker: float, evictions: int = 0, metric: float = 0) -> Reading:
    return Reading(adapters, 500 * MB, (int(worker * MB),), {"abmll_adapter_bytes": metric * MB}, evictions)


def test_the_slope_is_that_of_the_second_half_only():
    growing = [reading(n, 1000 + 110 * n) for n in range(0, 50, 10)]
    flat = [reading(n, 6500) for n in range(50, 101, 10)]
    assert slope([*growing, *flat]) == (0, 0)
    leaking = [reading(n, 6500 + 2 * n) for n in range(50, 101, 10)]
    assert slope([*growing, *leaking]) == (pytest.approx(2 * MB), pytest.approx(0, abs=1))


def test_the_standard_error_is_that_of_least_squares():
    # x = 2, 3, 4 and y = 0, 3, 0 MB: residuals -1, 2, -1, so sqrt((6 / 1) / 2) = sqrt(3) MB.
    found = slope([reading(0, 0), reading(2, 0), reading(3, 3), reading(4, 0)])
    assert found == (pytest.approx(0), pytest.approx(math.sqrt(3) * MB))


def test_two_readings_have_no_slope():
    assert all(map(math.isnan, slope([reading(0, 1), reading(1, 2), reading(2, 3)])))


READINGS = [reading(0, 1000), reading(10, 1090, 2, 80), reading(20, 1110, 12, 80), reading(30, 1111, 22, 80)]
SOAK = Soak(READINGS, deleted=reading(30, 1040, 22), tensor_bytes=9 * MB, slots=15)


def test_the_table_has_a_row_for_each_reading():
    assert readings_table(SOAK).splitlines() == [
        "| adapters | server MB | worker 0 | all | abmll_adapter_bytes | evictions |",
        "|---|---|---|---|---|---|",
        "| 0 | 500 | 1,000 | 1,500 | 0 | 0 |",
        "| 10 | 500 | 1,090 | 1,590 | 80 | 2 |",
        "| 20 | 500 | 1,110 | 1,610 | 80 | 12 |",
        "| 30 | 500 | 1,111 | 1,611 | 80 | 22 |",
        "| all deleted | 500 | 1,040 | 1,540 | 0 | 22 |",
    ]


def test_the_page_says_when_both_budgets_were_full_and_what_metrics_say():
    text = page(SOAK, "Command: `x`.")
    assert "Both budgets full: at 20 adapters, 1,610 MB." in text  # at 10 the worker still has slots
    assert "At the end: 1,611 MB. All adapters deleted: 1,540 MB." in text
    assert "Of the 8 adapters in the server's memory, `abmll_adapter_bytes` has 10,000 kB for each." in text
    assert "Both budgets full: never." in page(Soak(READINGS[:2], SOAK.deleted, 9 * MB, 15), "")


def test_a_job_has_no_weights_and_a_worker_without_the_adapter_gets_them_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FewShotModel(tiny_model(), tiny_tokenizer(), make_config(rank=8))
    served: Any = SimpleNamespace(encoder=model.encoder)
    worker = ModelWorker(model, served, measure_costs(model.backbone, model.prior).plan(10**9))
    monkeypatch.setattr(soak, "load_worker", lambda _: worker)
    rows = [line.strip("| ").split(" | ") for line in soak.pickled_sizes().splitlines()[2:]]
    tensors = model.prior.values.nbytes / 1000
    assert [float(row[2]) for row in rows] == [pytest.approx(tensors, rel=1e-2)] * 4
    job, held, given, done = (float(size) for _, size, *_ in [*rows[1:], rows[0]])
    assert job < held < tensors / 10
    assert given - held == pytest.approx(tensors, rel=0.1)
    assert done > tensors
