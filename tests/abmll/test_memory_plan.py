"""The memory plan: counts against what the records hold, and budgets that fit."""

import gc
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from abmll.adaptation.run import AdaptRun, Room, adapt_step, resting_step
from abmll.adaptation.settings import AdaptSettings
from abmll.adaptation.support import prepare
from abmll.decoder.passes import Pace
from abmll.memory_plan import COPIES_HELD, MemoryCosts, measure_costs
from abmll.model import FewShotModel
from abmll.text.prompting import EncodedPrompt, LabelledPrompt


def test_costs_are_the_sizes_of_what_is_held(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model()
    costs = measure_costs(model.backbone, model.prior)
    tied = model.backbone.model.get_input_embeddings().weight
    assert tied is model.backbone.model.get_output_embeddings().weight
    assert costs.base_bytes == sum(p.nbytes for p in set(model.backbone.model.parameters()))
    assert costs.slot_bytes == model.prior.values.nbytes
    assert costs.transient_bytes == 0  # nothing is quantised
    assert costs.adapt_bytes_per_token > costs.predict_bytes_per_token > 0


def allocated_bytes(work: Callable[[], object]) -> tuple[int, int]:
    """Return the bytes that `work` leaves allocated, and the most at any time of it."""
    gc.collect()  # what tests before left must not be freed, and counted, meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    results: Any = found.profiler
    events = sorted(results.kineto_results.events(), key=lambda event: event.start_ns())
    totals = list(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    return totals[-1], max(totals)


@pytest.mark.parametrize("beta", [0.0, 1e-6])
@pytest.mark.parametrize("count", [1, 4])
def test_adaptations_side_by_side_hold_what_the_plan_counts(
    beta: float, count: int, make_model: Callable[..., FewShotModel]
) -> None:
    """Of a large adapter and short examples, nearly all memory is that of copies of the values."""
    model = make_model(rank=48)
    costs = measure_costs(model.backbone, model.prior)
    row = LabelledPrompt(EncodedPrompt((1, 2), ((3,), (4,))), 0)
    prepared = [prepare(model.backbone, [row] * 2) for _ in range(count)]
    settings, batches = AdaptSettings(2, 0.01, 2, beta=beta), [[0, 1], [0, 1]]
    runs: list[AdaptRun] = []

    def begin() -> None:
        runs.extend(
            AdaptRun.start(model.backbone, model.prior, support, settings, batches, 0) for support in prepared
        )

    held, _ = allocated_bytes(begin)
    _, peak = allocated_bytes(lambda: adapt_step(model.backbone, runs))
    resting = [resting_step(model.backbone, run, 100, Pace(1), Room(0)) for run in runs]
    more, _ = allocated_bytes(lambda: [next(step) for _ in range(4) for step in resting])
    assert held + more == pytest.approx(COPIES_HELD * count * costs.slot_bytes, rel=0.02)
    planned = count * costs.step_bytes
    assert 0.5 * planned < peak <= planned


def test_fewer_adapted_layers_keep_less_for_each_token(make_model: Callable[..., FewShotModel]) -> None:
    deep, shallow = (make_model(first_layer=first) for first in (0, 3))
    costs = [measure_costs(model.backbone, model.prior).adapt_bytes_per_token for model in (deep, shallow)]
    assert costs[0] > 2 * costs[1]


@pytest.mark.parametrize("budget", [10**6, 10**7, 10**9])
def test_a_plan_stays_within_its_budget(budget: int) -> None:
    costs = MemoryCosts(5 * 10**6, 10**5, 10**5, 4000, 500, 10**5, 2 * 10**5, 10**4)
    plan = costs.plan(budget)
    assert plan.peak_bytes <= costs.base_bytes + budget
    assert plan.slots >= 1
    assert plan.adaptations == {10**6: 1, 10**7: 9, 10**9: 64}[budget]
    more = costs.peak_bytes(plan.slots, plan.adapt_tokens, plan.predict_tokens, adaptations=99)
    adapting = plan.adapt_tokens * costs.adapt_bytes_per_token
    held = costs.base_bytes + costs.transient_bytes + plan.slots * costs.slot_bytes
    assert more == held + 99 * (costs.adaptation_bytes + costs.step_bytes) + adapting
    assert 64 <= plan.adapt_tokens <= plan.predict_tokens <= 8192


def test_a_budget_that_is_too_small_still_serves_one_short_row() -> None:
    plan = MemoryCosts(1, 10, 10, 4000, 500, 10, 20, 1).plan(100)
    assert (plan.slots, plan.adaptations, plan.adapt_tokens, plan.predict_tokens) == (1, 1, 64, 64)


def test_measuring_leaves_no_graph_behind(make_model: Callable[..., FewShotModel]) -> None:
    """A saved output that held its own history would never free the probe's activations."""

    def nodes() -> int:
        gc.collect()
        return sum(type(o).__name__ == "SignedLorasBackward" for o in gc.get_objects())

    model = make_model()
    before = nodes()
    measure_costs(model.backbone, model.prior)
    assert nodes() == before
