"""Typed questions over HTTP and their laws: the requests are ones, and the page says what holds."""

from benchmarks.decisions_latency import CASES, QUESTIONS, adapter_body, decide_body
from benchmarks.jevbench_laws import tables_of
from service import schemas


def test_the_requests_are_those_of_the_native_surface() -> None:
    made = schemas.CreateAdapterRequest.model_validate(adapter_body())
    assert made.questions is not None
    assert made.cases is not None
    assert (len(made.questions), len(made.cases)) == (QUESTIONS, CASES)
    answers = [case.answers[question.name] for case in made.cases for question in made.questions[:1]]
    assert set(answers) == {True, False}
    asked = [schemas.DecideRequest.model_validate(decide_body("adp_1", n, 10, 3, 4)) for n in range(2)]
    assert len({text for request in asked for text in request.inputs}) == 6
    assert asked[0].questions == [question.name for question in made.questions]


def test_the_page_has_the_dimensions_and_the_laws_that_do_not_hold() -> None:
    scores = {
        "overall": 0.75,
        "pillars": {"BAT": 1.0, "MEA": 0.5},
        "ci": {"overall": [0.7, 0.8]},
        "relations": {"batch_order": 1.0, "complement": 0.25, "partition": 0.5},
    }
    dimensions, head, laws = tables_of(scores)
    assert "| BAT | independence of what else is asked | 100 | - |" in dimensions
    assert "| all | mean of these | 75 | 70.0 to 80.0 |" in dimensions
    assert head.endswith("2 of 3")
    assert laws.splitlines()[2:] == ["| complement | 25 |", "| partition | 50 |"]
