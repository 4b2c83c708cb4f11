"""The answers of some adapters before a fault, with which those during and after it are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks import common

OPTIONS = ("billing", "delivery")
SUPPORT = (
    ("Invoice {} has a fee that I did not agree to.", 0),
    ("Parcel {} is still not here.", 1),
    ("I paid twice for order {}.", 0),
    ("The courier left parcel {} at the wrong house.", 1),
)
INPUT = "You took the money for order {} two times."
ALLOWED = 0.03
"""Difference of a probability between batches of other shapes in bf16, as in tests/e2e."""


def adapter_body(number: int, *, steps: int = 4, turned: bool = False) -> dict[str, Any]:
    """Return a request for adapter `number`; with `turned`, every label is the other one."""
    rows = [{"input": t.format(number), "output": OPTIONS[label ^ turned]} for t, label in SUPPORT]
    return {"support": rows, "options": OPTIONS, "seed": number, "adapt": {"steps": steps}}


def predict_body(adapter_id: str, number: int, *, inputs: int = 2, samples: int = 4) -> dict[str, Any]:
    """Return a predict request of texts that depend on `number`."""
    texts = [INPUT.format(number + i) for i in range(inputs)]
    return {"adapter_id": adapter_id, "inputs": texts, "samples": samples, "seed": 0}


def probabilities(answer: Mapping[str, Any]) -> list[list[float]]:
    """Return the distribution of each prediction, in the order of `OPTIONS`."""
    found = []
    for prediction in answer["predictions"]:
        by_option = {row["option"]: row["probability"] for row in prediction["distribution"]}
        found.append([by_option[option] for option in OPTIONS])
    return found


@dataclass(frozen=True)
class Known:
    """A predict request and its distributions before the fault."""

    body: Mapping[str, Any]
    answer: Sequence[Sequence[float]]

    def right(self, answer: Mapping[str, Any]) -> bool:
        """Return whether an answer is that of before, up to rounding."""
        found = probabilities(answer)
        return len(found) == len(self.answer) and common.largest_difference(found, self.answer) <= ALLOWED


@dataclass(frozen=True)
class Oracle:
    """Adapters that were made before the fault, and requests with their answers."""

    adapters: Sequence[str]
    asked: Sequence[Known]

    @property
    def distinct_pairs(self) -> tuple[int, int]:
        """How many pairs of adapters have different answers, of all: the power of the comparison."""
        by_adapter = [self.asked[i :: len(self.adapters)] for i in range(len(self.adapters))]
        pairs = [(a, b) for i, a in enumerate(by_adapter) for b in by_adapter[:i]]
        differ = sum(
            any(common.largest_difference(x.answer, y.answer) > ALLOWED for x, y in zip(a, b, strict=True))
            for a, b in pairs
        )
        return differ, len(pairs)


async def make_oracle(
    http: httpx.AsyncClient,
    *,
    adapters: int = 4,
    questions: int = 4,
    inputs: int = 2,
    samples: int = 4,
    steps: int = 32,
) -> Oracle:
    """Make adapters and ask them. Raises `SystemExit` where no answer differs from another's."""
    ids, asked = [], list[Known]()
    for number in range(adapters):
        body = adapter_body(number, steps=steps, turned=bool(number % 2))
        ids.append((await http.post("/v1/adapters", json=body)).raise_for_status().json()["id"])
    for question in range(questions):
        for adapter in ids:
            body = predict_body(adapter, 10 * question, inputs=inputs, samples=samples)
            answer = (await http.post("/v1/predict", json=body)).raise_for_status().json()
            asked.append(Known(body, probabilities(answer)))
    oracle = Oracle(ids, asked)
    if oracle.distinct_pairs[0] == 0:
        raise SystemExit("all adapters answer alike: a wrong answer would not be seen")
    return oracle


async def still_right(http: httpx.AsyncClient, oracle: Oracle) -> list[str]:
    """Ask everything again, one by one, and return what is not as before."""
    wrong = []
    for number, asked in enumerate(oracle.asked):
        answer = await http.post("/v1/predict", json=asked.body)
        if answer.status_code != 200:
            wrong.append(f"question {number}: {answer.status_code} {answer.text[:120]}")
        elif not asked.right(answer.json()):
            wrong.append(f"question {number}: other probabilities")
    return wrong


async def missing(http: httpx.AsyncClient, adapters: Sequence[str], asked: int = 20) -> list[str]:
    """Return the adapters that are not there, or of `asked` ones do not answer."""
    lost = []
    for number, adapter in enumerate(adapters):
        found = await http.get(f"/v1/adapters/{adapter}")
        if found.status_code == 200 and number % max(1, len(adapters) // asked) == 0:
            found = await http.post("/v1/predict", json=predict_body(adapter, 0))
        if found.status_code != 200:
            lost.append(f"{adapter}: {found.status_code} {found.text[:120]}")
    return lost
