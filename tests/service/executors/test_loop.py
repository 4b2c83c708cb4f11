"""The loop, with a clock that the tests set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from abmll.errors import SupportError
from service.errors import DeadlineExceededError
from service.executors.contract import AdapterNotHeldError, Job, WorkerFatalError
from service.executors.loop import WorkerLoop
from service.executors.messages import Advanced, Began, Done, Failed, LoopEvent, Submit, UnitRan
from service.executors.supervision import Supervision
from tests.service.executors.fake import FakeRun, FakeWorker, adapt_job, adapter_of, answer, predict_job


class Bench:
    """A loop, its worker and its clock. A unit takes `seconds`, 1 by default."""

    def __init__(self, adapt_share: float = 0.5, tokens_per_unit: int = 40) -> None:
        self.now, self.seconds = 0.0, 1.0
        bench = self

        class Worker(FakeWorker):
            def advance(self, runs: Sequence[FakeRun]) -> None:
                bench.now += bench.seconds
                super().advance(runs)

        self.worker = Worker(tokens_per_unit=tokens_per_unit)
        self.loop = WorkerLoop(self.worker, adapt_share, lambda: self.now)
        self.ids = itertools.count(1)
        self.events: list[LoopEvent] = []

    def submit(
        self,
        job: Job,
        tenant: str = "a",
        seconds_left: float | None = None,
        *,
        progress: bool = False,
        alone: bool = False,
    ) -> int:
        job_id = next(self.ids)
        adapter = None if alone else adapter_of(job)
        self.loop.submit(Submit(job_id, job, adapter, tenant, seconds_left, progress))
        return job_id

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.events += self.loop.turn()

    def finish(self) -> None:
        while not self.loop.idle:
            self.turn()
        assert self.worker.leased == 0

    def done(self) -> dict[int, Done]:
        return {event.job_id: event for event in self.events if isinstance(event, Done)}

    def failed(self) -> dict[int, Exception]:
        return {event.job_id: event.error for event in self.events if isinstance(event, Failed)}


def test_every_job_gets_its_answer_whatever_else_runs() -> None:
    bench = Bench()
    jobs = {
        bench.submit(job, tenant): job
        for tenant in "ab"
        for n in range(4)
        for job in (adapt_job(steps=n + 1, seed=n), predict_job(samples=n + 2, adapter=f"adp_{n}"))
    }
    bench.finish()
    assert {id: event.result.digest for id, event in bench.done().items()} == {
        id: answer(job) for id, job in jobs.items()
    }


def test_runs_of_a_lane_share_units_up_to_the_budget() -> None:
    bench = Bench(tokens_per_unit=40)
    for queries in (2, 1, 1, 3):  # 20, 10, 10 and 30 tokens
        bench.submit(predict_job(samples=1, queries=queries))
    bench.submit(adapt_job(steps=1))
    bench.finish()
    units = [(e.lane, e.runs, e.tokens) for e in bench.events if isinstance(e, UnitRan)]
    assert sorted(units) == [("adapt", 1, 10), ("predict", 1, 30), ("predict", 3, 40)]


def test_a_run_over_the_budget_runs_alone() -> None:
    bench = Bench(tokens_per_unit=40)
    for queries in (1, 5):
        bench.submit(predict_job(samples=2, queries=queries))
    bench.finish()
    assert [len(unit) for unit in bench.worker.units] == [1, 1, 1, 1]


def test_times_are_the_wait_for_the_first_unit_and_the_share_of_units_by_tokens() -> None:
    bench = Bench(tokens_per_unit=40)
    first = bench.submit(predict_job(samples=2, queries=4))
    bench.now = 5
    second, third = (bench.submit(predict_job(samples=1, queries=q)) for q in (1, 3))
    bench.finish()
    times = {id: (event.queue_seconds, event.run_seconds) for id, event in bench.done().items()}
    assert times == {first: (5, 2), second: (1, 0.25), third: (1, 0.75)}


def test_a_short_prediction_overtakes_a_long_adaptation() -> None:
    bench = Bench()
    bench.submit(adapt_job(steps=1000))
    bench.turn(20)
    short = bench.submit(predict_job(samples=2))
    bench.turn(5)
    assert short in bench.done()


def test_a_light_tenant_does_not_wait_for_a_heavy_one() -> None:
    bench = Bench(tokens_per_unit=10)
    heavy = [bench.submit(predict_job(samples=10), "heavy") for _ in range(20)]
    bench.turn(30)
    light = bench.submit(predict_job(samples=3), "light")
    bench.turn(8)
    assert light in bench.done()
    assert not set(heavy) & set(bench.done())


def test_lanes_get_their_share_of_measured_time() -> None:
    bench = Bench(adapt_share=0.75)
    bench.submit(adapt_job(steps=10_000))
    bench.submit(predict_job(samples=10_000))
    bench.turn(200)
    seconds = [(e.lane, e.seconds) for e in bench.events if isinstance(e, UnitRan)]
    assert sum(s for lane, s in seconds if lane == "adapt") == pytest.approx(150, abs=2)


def test_a_job_past_its_deadline_is_dropped_between_units() -> None:
    bench = Bench()
    late = bench.submit(adapt_job(steps=10), seconds_left=2.5)
    in_time = bench.submit(adapt_job(steps=2), seconds_left=2.5)
    bench.finish()
    assert isinstance(bench.failed()[late], DeadlineExceededError)
    assert (list(bench.done()), bench.now) == ([in_time], 3)


def test_a_cancelled_job_gets_no_further_unit_and_no_event() -> None:
    bench = Bench()
    gone, waiting = bench.submit(adapt_job(steps=10)), bench.submit(predict_job(samples=1))
    bench.turn()
    assert bench.worker.leased == 1
    for job_id in (gone, waiting, 99):
        bench.loop.cancel(job_id)
    assert (bench.worker.leased, bench.loop.idle) == (0, True)
    bench.turn()
    assert bench.events == [Began(1), UnitRan("adapt", 1, 10, 1.0)]


def test_progress_is_sent_for_those_jobs_that_ask_for_it_and_no_others() -> None:
    bench = Bench()
    bench.submit(predict_job("no progress", samples=3))  # fails if its progress is asked for
    followed = bench.submit(predict_job(samples=3), progress=True)
    bench.finish()
    assert len(bench.done()) == 2
    sent = [event for event in bench.events if isinstance(event, Advanced)]
    assert sent == [Advanced(followed, (n, answer(predict_job(samples=3), n))) for n in (1, 2)]


def test_a_run_that_fails_does_not_fail_its_mates() -> None:
    bench = Bench()
    good, bad, also = (bench.submit(adapt_job(text, seed=s)) for s, text in enumerate(("", "fail", "")))
    bench.finish()
    assert str(bench.failed()[bad]) == "this run fails"
    assert {id: e.result.digest for id, e in bench.done().items()} == {
        good: answer(adapt_job(seed=0)),
        also: answer(adapt_job(seed=2)),
    }
    assert [len(unit) for unit in bench.worker.units] == [3, 3, 1, 1, 1, 2]


def test_what_the_method_refuses_and_adapters_that_are_not_held_fail_before_any_unit() -> None:
    bench = Bench()
    refused = bench.submit(adapt_job("refuse"))
    unknown = bench.submit(predict_job(adapter="adp_unknown"), alone=True)
    bench.finish()
    assert isinstance(bench.failed()[refused], SupportError)
    assert isinstance(bench.failed()[unknown], AdapterNotHeldError)
    assert bench.worker.units == []


def test_results_say_which_adapters_are_held() -> None:
    bench = Bench()
    for number in range(3):
        bench.submit(predict_job(adapter=f"adp_{number}"))
    bench.finish()
    assert next(reversed(bench.done().values())).held == ("adp_1", "adp_2")


def test_a_fatal_error_ends_the_loop() -> None:
    bench = Bench()
    bench.submit(adapt_job("fatal"))
    bench.submit(adapt_job(""))
    with pytest.raises(WorkerFatalError):
        bench.finish()


def test_a_unit_that_runs_can_be_seen_to_run() -> None:
    bench = Bench()
    seen = []
    bench.worker.cause_fault = lambda run: seen.append(bench.loop.busy_seconds)
    bench.submit(adapt_job(steps=1))
    for _ in bench.loop.turn():
        bench.now += 7  # carrying the event takes 7 s
        assert bench.loop.busy_seconds == 0
    assert seen == [1]


def test_a_worker_may_take_longer_over_a_unit_larger_than_usual() -> None:
    bench = Bench(tokens_per_unit=1)
    sizes = []
    bench.worker.cause_fault = lambda run: sizes.append(bench.loop.unit_size)
    bench.submit(adapt_job(steps=1))
    list(bench.loop.turn())
    assert sizes[0] > 1
    supervision = Supervision(hang_seconds=10)
    assert supervision.hangs(11, 0.5)
    assert not supervision.hangs(29, 3)
    assert supervision.hangs(31, 3)


@pytest.mark.parametrize("places", [1, 3])
def test_no_more_adaptations_are_begun_than_have_memory(places: int) -> None:
    """The others wait in their order, and predictions and other tenants go on."""
    bench = Bench()
    bench.worker.adaptations_at_once = places
    begun: list[int] = []
    jobs = {bench.submit(adapt_job(steps=4, seed=n)): n for n in range(7)}
    jobs |= {bench.submit(adapt_job(steps=4, seed=n), "b"): n for n in (7, 8)}
    asked = [bench.submit(predict_job(samples=2, adapter=f"adp_{n}")) for n in range(5)]
    while not bench.loop.idle:
        bench.turn()
        begun.append(len(bench.loop._adapting))
    assert max(begun) == places
    done = bench.done()
    assert set(done) == {*jobs, *asked}
    for job_id, n in jobs.items():
        assert done[job_id].result.digest == answer(adapt_job(steps=4, seed=n))
    order = [event.job_id for event in bench.events if isinstance(event, Began) and event.job_id in jobs]
    first, second = ([job_id for job_id in order if (jobs[job_id] >= 7) == other] for other in (False, True))
    assert (first, second) == (sorted(first), sorted(second)), "a tenant's jobs begin in their order"
    assert order.index(second[0]) <= places, "another tenant's job is next when a place is free"


def test_a_place_is_free_again_after_an_error_a_cancel_and_a_deadline() -> None:
    bench = Bench()
    bench.worker.adaptations_at_once = 1
    bench.submit(adapt_job("fail"))
    bench.submit(adapt_job("refuse"))
    late = bench.submit(adapt_job(steps=50, seed=1), seconds_left=5)
    cancelled = bench.submit(adapt_job(steps=50, seed=2))
    last = bench.submit(adapt_job(steps=2, seed=3))
    while last not in bench.done():
        bench.turn()
        if bench.worker.units[-1:] == [[adapt_job(steps=50, seed=2)]]:
            bench.loop.cancel(cancelled)
    assert isinstance(bench.failed()[late], DeadlineExceededError)
    assert bench.loop.idle
    assert bench.worker.leased == 0
