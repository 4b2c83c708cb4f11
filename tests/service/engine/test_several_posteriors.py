"""Adapters of two posteriors that one server serves answer as in a server of their own posterior."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from abmll.prediction.settings import PredictSettings
from abmll.text.questions import Question
from abmll.text.tasks import Example, Query
from service.engine.engine import Engine
from service.engine.requests import AdaptRequest, DecideRequest, DiagnoseRequest, PredictRequest
from service.errors import AdapterMismatchError
from tests.service.engine.two_posteriors import Place, make_place, with_engine

OPTIONS = ("good", "bad")
SUPPORT = tuple(
    Example(text, OPTIONS[n % 2], OPTIONS)
    for n, text in enumerate(("great film", "dull story", "the actors were great", "money back"))
)
QUERIES = (Query("a wonderful film"), Query("badly told"), Query("Paris"))
FREE = (Query("What is the capital?", ("Paris", "0123", "France")),)
PRAISE = Question("praise", "predicate", "Is it praise?", ("yes", "no"))
SETTINGS = PredictSettings(6, seed=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("upgrade"))


def numbers(answered: Any) -> list[float]:
    return [q for row in answered.predictions for q in row.prediction.predictive.probabilities]


async def create(engine: Engine, seed: int = 0) -> str:
    return (await engine.create_adapter(AdaptRequest(SUPPORT, seed=seed))).adapter.manifest.id


async def ask(engine: Engine, adapter_id: str, queries: tuple[Query, ...] = QUERIES) -> list[float]:
    return numbers(await engine.predict(PredictRequest(adapter_id, queries, SETTINGS)))


async def zero_shot(engine: Engine) -> list[float]:
    asked = DecideRequest((PRAISE,), ("a wonderful film",), settings=SETTINGS)
    return list((await engine.decide(asked)).rows[0][0].prediction.predictive.probabilities)


async def all_of(engine: Engine) -> tuple[list[str], list[list[float]], list[float]]:
    ids = [await create(engine), await create(engine, seed=1)]
    answers = [await ask(engine, id, queries) for id in ids for queries in (QUERIES, FREE)]
    return ids, answers, await zero_shot(engine)


@pytest.fixture(scope="module")
def alone(place: Place) -> dict[str, Any]:
    """Make two adapters with each posterior, in servers that have only that one."""
    return {name: with_engine(place.settings(getattr(place, name)), all_of) for name in ("old", "new")}


def close(found: Any, expected: Any) -> bool:
    flat = [q for row in expected for q in row]
    return [q for row in found for q in row] == pytest.approx(flat, abs=2e-5)


@pytest.mark.parametrize("kind", ["inline", "process"])
def test_each_adapter_answers_as_in_a_server_of_its_own_posterior(
    place: Place, alone: dict[str, Any], kind: Literal["inline", "process"]
) -> None:
    old_ids, old_answers, old_zero = alone["old"]
    new_ids, new_answers, new_zero = alone["new"]
    assert not close(old_answers, new_answers) and old_zero != pytest.approx(new_zero, abs=1e-3)

    async def work(engine: Engine) -> None:
        served = engine.served
        assert [one.posterior_id for one in served.by_posterior] == ["new", "old"]
        assert served.others[0].template["after_input"] == " ->"
        for _ in range(2):  # the second time, workers hold the adapters
            one_by_one = [await ask(engine, id, q) for id in old_ids for q in (QUERIES, FREE)]
            assert close(one_by_one, old_answers)
            one_by_one = [await ask(engine, id, q) for id in new_ids for q in (QUERIES, FREE)]
            assert close(one_by_one, new_answers)
        work = [
            (id, q) for pair in zip(old_ids, new_ids, strict=True) for id in pair for q in (QUERIES, FREE)
        ]
        side_by_side = await asyncio.gather(*(ask(engine, *asked) for asked in work), create(engine, 7))
        expected = dict(
            zip(
                [(id, q) for id in (*old_ids, *new_ids) for q in (QUERIES, FREE)],
                [*old_answers, *new_answers],
                strict=True,
            )
        )
        assert close(side_by_side[:-1], [expected[asked] for asked in work])
        assert await zero_shot(engine) == pytest.approx(new_zero, abs=2e-5)  # by the default
        assert await create(engine) == new_ids[0]

    with_engine(place.settings(place.new, place.old, place.new), work, kind)


def test_an_adapter_of_a_posterior_that_is_not_served_is_refused_with_the_way_out(
    place: Place, alone: dict[str, Any]
) -> None:
    (old_id, _), *_ = alone["old"]

    async def work(engine: Engine) -> str:
        with pytest.raises(AdapterMismatchError) as refused:
            await ask(engine, old_id)
        return refused.value.message

    message = with_engine(place.settings(place.new), work)
    assert "was made with" in message and "posterior old" in message and "with new." in message
    assert "also_posteriors=old" in message and f"`abmll readapt --adapter {old_id}`" in message


def test_a_diagnosis_is_by_the_posterior_of_the_adapter(place: Place, alone: dict[str, Any]) -> None:
    (old_id, _), *_ = alone["old"]

    async def work(engine: Engine) -> Any:
        diagnosis = (await engine.diagnose(DiagnoseRequest(old_id, 2, samples=4))).diagnosis
        return diagnosis.held_out.nll, diagnosis.prior.nll, diagnosis.movement.kl_nats

    both = with_engine(place.settings(place.new, place.old), work)
    copied = place.root / "data" / "adapters" / old_id
    for path in Path(copied).glob("diagnosis*"):
        path.unlink()
    assert with_engine(place.settings(place.old), work) == pytest.approx(both, rel=1e-3)


def test_readapt_makes_what_a_fresh_adaptation_makes(place: Place, alone: dict[str, Any]) -> None:
    (old_id, _), *_ = alone["old"]
    (new_id, _), *_ = alone["new"]

    async def values(engine: Engine, id: str) -> list[float]:
        return list((await engine.adapter(id)).posterior.values.tolist())

    async def work(engine: Engine) -> tuple[str, list[float]]:
        found = (await engine.readapt(old_id)).new_id
        return found, await values(engine, found)

    shutil.copytree(place.root / "data" / "adapters" / old_id, place.root / "copy" / "adapters" / old_id)
    found, made = with_engine(place.settings(place.new, place.old, data="copy"), work)
    assert found == new_id
    fresh = with_engine(place.settings(place.new), lambda engine: values(engine, new_id))
    assert made == pytest.approx(fresh, abs=2e-5)
