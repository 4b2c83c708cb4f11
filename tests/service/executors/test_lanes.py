"""Fairness: how much each lane, tenant and job has used after many units."""

from __future__ import annotations

from collections import Counter

import pytest

from service.executors.contract import Lane, in_background
from service.executors.lanes import FairQueue, LaneScheduler, LevelScheduler


def serve(scheduler: LaneScheduler, seconds: dict[Lane, float], total: float) -> Counter[str]:
    """Run units of one job each for `total` seconds; return the seconds of each lane."""
    used: Counter[str] = Counter()
    while used.total() < total:
        lane = scheduler.lane()
        assert lane is not None
        job = scheduler.next(lane, ())
        assert job is not None
        scheduler.take(job, 1)
        scheduler.charge(lane, seconds[lane])
        used[lane] += seconds[lane]
    return used


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_lanes_share_time_by_their_share_whatever_their_units_take(share: float) -> None:
    scheduler = LaneScheduler(share)
    scheduler.add(1, "adapt", "a")
    scheduler.add(2, "predict", "a")
    used = serve(scheduler, {"adapt": 1.0, "predict": 0.1}, 400)
    assert used["adapt"] / used.total() == pytest.approx(share, abs=0.01)


def test_a_lane_alone_gets_all_and_owes_nothing_for_it() -> None:
    scheduler = LaneScheduler(0.5)
    scheduler.add(1, "adapt", "a")
    assert serve(scheduler, {"adapt": 1.0, "predict": 1.0}, 100)["adapt"] == 100
    scheduler.add(2, "predict", "a")
    used = serve(scheduler, {"adapt": 1.0, "predict": 1.0}, 10)
    assert used["adapt"] >= 5


@pytest.mark.parametrize("first", ["adapt", "predict"])
def test_a_lane_that_was_idle_has_saved_up_nothing(first: Lane) -> None:
    """That is so whichever lane comes back first."""
    scheduler = LaneScheduler(0.5)
    scheduler.add(1, "adapt", "a")
    serve(scheduler, {"adapt": 1.0, "predict": 1.0}, 100)
    scheduler.remove(1)
    second: Lane = "predict" if first == "adapt" else "adapt"
    scheduler.add(2, first, "a")
    scheduler.add(3, second, "a")
    used = serve(scheduler, {"adapt": 1.0, "predict": 1.0}, 20)
    assert abs(used["adapt"] - used["predict"]) <= 2


def test_tenants_share_tokens_however_many_jobs_they_have() -> None:
    scheduler = LaneScheduler(0.5)
    for job in range(50):
        scheduler.add(job, "predict", "heavy")
    scheduler.add(50, "predict", "light")
    used: Counter[str] = Counter()
    for _ in range(200):
        job = scheduler.next("predict", ())
        assert job is not None
        tokens = 10 if job == 50 else 40
        scheduler.take(job, tokens)
        used["light" if job == 50 else "heavy"] += tokens
    assert abs(used["light"] - used["heavy"]) <= 40


def test_the_jobs_of_a_tenant_take_turns() -> None:
    scheduler = LaneScheduler(0.5)
    for job in range(3):
        scheduler.add(job, "adapt", "a")
    order = []
    for _ in range(6):
        job = scheduler.next("adapt", ())
        assert job is not None
        scheduler.take(job, 1)
        order.append(job)
    assert order == [0, 1, 2, 0, 1, 2]


def test_a_unit_takes_each_job_once_and_alternates_between_tenants() -> None:
    scheduler = LaneScheduler(0.5)
    for job, tenant in enumerate(["a", "a", "a", "b", "b"]):
        scheduler.add(job, "predict", tenant)
    taken: dict[int, int] = {}
    while (job := scheduler.next("predict", taken)) is not None:
        scheduler.take(job, 1)
        taken[job] = 1
    assert list(taken) == [0, 3, 1, 4, 2]


def test_nothing_is_left_of_what_was_removed() -> None:
    scheduler = LaneScheduler(0.5)
    scheduler.add(1, "adapt", "a")
    scheduler.add(2, "adapt", "b")
    scheduler.remove(1)
    assert (scheduler.lane(), scheduler.next("adapt", ())) == ("adapt", 2)
    scheduler.remove(2)
    assert (scheduler.lane(), scheduler.next("adapt", ())) == (None, None)


def test_keys_that_have_left_are_forgotten_once_they_owe_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1000):
        queue.enter(str(number))
        queue.charge(str(number), 1.0)
        queue.leave(str(number))
    queue.enter("stays")
    for _ in range(5):
        queue.charge("stays", 10.0)
    queue.enter("last")
    assert len(queue._used) == 2


# ---- jobs in the background ----------------------------------------------------------------------


def test_jobs_in_the_background_run_only_where_no_others_are() -> None:
    scheduler = LevelScheduler(0.5)
    for job in range(3):
        scheduler.add(job, "predict", in_background("a"))
    scheduler.add(3, "predict", "a")
    assert scheduler.lane() == "predict"
    assert scheduler.next("predict", {}) == 3
    assert scheduler.next("predict", {3: 1}) is None, "they are in no unit with others"
    scheduler.add(4, "adapt", "b")
    scheduler.remove(3)
    assert scheduler.lane() == "adapt"
    scheduler.remove(4)
    assert (scheduler.lane(), scheduler.next("predict", {})) == ("predict", 0)
    assert scheduler.next("predict", {0: 1}) == 1


def test_what_holds_up_a_usual_job_goes_on() -> None:
    """An adaptation in the background has all the memory; a usual one waits for its end."""
    scheduler = LevelScheduler(0.5)
    scheduler.add(0, "adapt", in_background("a"))
    scheduler.add(1, "adapt", "a")
    assert scheduler.next("adapt", {}, lambda job: job == 0) == 0


def test_lanes_owe_nothing_for_jobs_in_the_background() -> None:
    scheduler = LevelScheduler(0.5)
    scheduler.add(0, "predict", in_background("a"))
    for _ in range(100):
        assert scheduler.next("predict", {}) == 0
        scheduler.take(0, 1)
        scheduler.charge("predict", 1.0)
    scheduler.add(1, "predict", "a")
    scheduler.add(2, "adapt", "a")
    used: Counter[str] = Counter()
    for _ in range(10):
        lane = scheduler.lane()
        assert lane is not None
        job = scheduler.next(lane, {})
        assert job is not None
        scheduler.take(job, 1)
        scheduler.charge(lane, 1.0)
        used[lane] += 1
    assert abs(used["adapt"] - used["predict"]) <= 1
