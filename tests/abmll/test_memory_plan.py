"""The memory plan: counts against what the records hold, and budgets that fit."""

import gc
from collections.abc import Callable

import pytest

from abmll.memory_plan import MemoryCosts, measure_costs
from abmll.model import FewShotModel


def test_costs_are_the_sizes_of_what_is_held(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model()
    costs = measure_costs(model.backbone, model.prior)
    tied = model.backbone.model.get_input_embeddings().weight
    assert tied is model.backbone.model.get_output_embeddings().weight
    assert costs.base_bytes == sum(p.nbytes for p in set(model.backbone.model.parameters()))
    assert costs.slot_bytes == model.prior.values.nbytes
    assert costs.transient_bytes == 0  # nothing is quantised
    assert costs.adapt_bytes_per_token > costs.predict_bytes_per_token > 0


def test_fewer_adapted_layers_keep_less_for_each_token(make_model: Callable[..., FewShotModel]) -> None:
    deep, shallow = (make_model(first_layer=first) for first in (0, 3))
    costs = [measure_costs(model.backbone, model.prior).adapt_bytes_per_token for model in (deep, shallow)]
    assert costs[0] > 2 * costs[1]


@pytest.mark.parametrize("budget", [10**6, 10**7, 10**9])
def test_a_plan_stays_within_its_budget(budget: int) -> None:
    costs = MemoryCosts(5 * 10**6, 10**5, 10**5, 4000, 500, 2 * 10**5, 10**4)
    plan = costs.plan(budget)
    assert plan.peak_bytes <= costs.base_bytes + budget
    assert plan.slots >= 1
    assert 64 <= plan.adapt_tokens <= plan.predict_tokens <= 8192


def test_a_budget_that_is_too_small_still_serves_one_short_row() -> None:
    plan = MemoryCosts(1, 10, 10, 4000, 500, 20, 1).plan(100)
    assert (plan.slots, plan.adapt_tokens, plan.predict_tokens) == (1, 64, 64)


def test_measuring_leaves_no_graph_behind(make_model: Callable[..., FewShotModel]) -> None:
    """A saved output that held its own history would never free the probe's activations."""

    def nodes() -> int:
        gc.collect()
        return sum(type(o).__name__ == "SignedLorasBackward" for o in gc.get_objects())

    model = make_model()
    before = nodes()
    measure_costs(model.backbone, model.prior)
    assert nodes() == before
