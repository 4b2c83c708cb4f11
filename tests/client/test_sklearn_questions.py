"""The classifier of several questions: the server's answers, scikit-learn's forms, missing values."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from abmll_client import Client, InvalidRequestError
from abmll_client.sklearn import AbmllMultiOutputClassifier
from tests.client.test_decide import ANGER, QUESTIONS, TEAM, URGENT, client
from tests.service.conftest import Server

__all__ = ["client"]

X = [f"mail {n}" for n in range(12)]
Y: list[list[Any]] = [
    [n % 2 == 0, "it" if n % 3 else "billing", ("calm", "furious")[n % 2]] for n in range(12)
]
Y[3], Y[4][1] = [None, np.nan, None], None


@pytest.fixture
def classifier(client: Client) -> AbmllMultiOutputClassifier:
    return AbmllMultiOutputClassifier(QUESTIONS, client=client, samples=2)


def test_the_checks_for_estimators_of_texts_pass(classifier: AbmllMultiOutputClassifier) -> None:
    with pytest.warns(SkipTestWarning, match="string=True"):
        results = check_estimator(classifier)
    assert {result["status"] for result in results} <= {"passed"}


def test_it_is_the_server_with_missing_values_as_null(
    classifier: AbmllMultiOutputClassifier, client: Client
) -> None:
    fitted = classifier.set_params(gates={"team": {"min_confidence": 1}}, seed=3, steps=2).fit(X, Y)
    cases = [
        (text, dict(zip(["urgent", "team", "anger"], row, strict=True)))
        for text, row in zip(X, Y, strict=True)
    ]
    cases[3] = (X[3], {"urgent": None, "team": None, "anger": None})
    made = client.create_adapter(questions=QUESTIONS, cases=cases, seed=3, adapt={"steps": 2})
    assert (made.id, made.cache) == (fitted.adapter_id_, "hit")
    expected = client.decide(
        X, adapter_id=made.id, samples=2, seed=3, gates={"team": {"min_confidence": 1}}
    ).results
    assert fitted.predictions(X) == expected
    assert fitted.predict(X).tolist() == [[a.answer for a in row.answers.values()] for row in expected]
    assert [classes.tolist() for classes in fitted.classes_] == [
        [False, True], ["billing", "it"], ["calm", "cross", "furious"],
    ]  # fmt: skip
    probabilities = fitted.predict_proba(X)
    assert [found.shape for found in probabilities] == [(12, 2), (12, 2), (12, 3)]
    for name, classes, found in zip(expected[0].answers, fitted.classes_, probabilities, strict=True):
        for row, result in zip(found, expected, strict=True):
            values = {p.value: p.probability for p in result.answers[name].probabilities}
            assert dict(zip(classes.tolist(), row, strict=True)) == values


def test_the_score_is_the_fraction_of_rows_with_all_given_answers_right(
    classifier: AbmllMultiOutputClassifier,
) -> None:
    fitted = classifier.fit(X, Y)
    right = [
        all(pd.isna(given) or given == answer for given, answer in zip(row, answers, strict=True))
        for row, answers in zip(Y, fitted.predict(X).tolist(), strict=True)
    ]
    assert fitted.score(X, Y) == np.mean(right)
    assert fitted.score(X, fitted.predict(X)) == 1
    wrong = fitted.predict(X)
    wrong[0, 0] = not wrong[0, 0]
    assert fitted.score(X, wrong) == pytest.approx(11 / 12)


@pytest.mark.parametrize(
    "same",
    [np.array(Y, dtype=object), pd.DataFrame(Y), pd.DataFrame(Y).convert_dtypes()],
    ids=["array", "frame", "frame with NA"],
)
def test_answers_may_come_in_any_container(classifier: AbmllMultiOutputClassifier, same: Any) -> None:
    expected = classifier.fit(X, Y).adapter_id_
    assert clone(classifier).fit(np.array(X)[:, None], same).adapter_id_ == expected


def test_numbers_stand_for_truth_and_levels_and_come_back_as_given(
    classifier: AbmllMultiOutputClassifier,
) -> None:
    numbers = np.array([[n % 2, n % 3] for n in range(12)], dtype=float)
    numbers[0] = np.nan
    fitted = classifier.set_params(questions=[URGENT, ANGER]).fit(X, numbers)
    assert [answer for _, given in fitted.cases_[:2] for answer in given.values()] == [None, None, True, 1]
    assert fitted.classes_[1].tolist() == [0, 1, 2]
    assert fitted.score(X, fitted.predict(X)) == 1
    labelled = [[row[0] == 1, None if np.isnan(row[1]) else ANGER.levels[int(row[1])]] for row in numbers]
    labelled[0] = [None, None]
    other = clone(classifier).fit(X, labelled)
    assert other.adapter_id_ == fitted.adapter_id_
    assert [["calm", "cross", "furious"][level] for level in fitted.predict(X)[:, 1]] == list(
        other.predict(X)[:, 1]
    )


@pytest.mark.parametrize(
    ("questions", "texts", "answers", "message"),
    [
        (QUESTIONS, X, None, "y is None"),
        (QUESTIONS, X, ["a"] * 12, r"shape \(n, 3\); this one has \(12,\)"),
        (QUESTIONS, X, [[True]] * 12, r"this one has \(12, 1\)"),
        (QUESTIONS, X[:2], Y, "inconsistent numbers"),
        (QUESTIONS, [1] * 12, Y, r"X\[0\] is no text"),
        ([], X, Y, "at least one Predicate"),
        (["urgent"], X, [[True]] * 12, "at least one Predicate"),
    ],
)
def test_what_is_no_set_of_answered_texts_is_refused(
    classifier: AbmllMultiOutputClassifier, questions: Any, texts: Any, answers: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classifier.set_params(questions=questions).fit(texts, answers)


def test_the_servers_refusals_and_being_unfitted_are_raised(classifier: AbmllMultiOutputClassifier) -> None:
    with pytest.raises(NotFittedError):
        classifier.predict(X)
    with pytest.raises(InvalidRequestError, match=r"cases\[0\].answers.team"):
        clone(classifier).set_params(questions=[TEAM]).fit(X, [["sales"]] * 12)


def test_an_adapter_that_the_server_lost_is_made_again(
    classifier: AbmllMultiOutputClassifier, client: Client
) -> None:
    expected = classifier.fit(X, Y).predict_proba(X)
    client.delete(classifier.adapter_id_)
    for found, before in zip(classifier.predict_proba(X), expected, strict=True):
        np.testing.assert_array_equal(found, before)


def test_a_pickled_classifier_answers_at_its_address(tmp_path: Path) -> None:
    with Server(tmp_path).listening() as running:
        fitted = AbmllMultiOutputClassifier(QUESTIONS, base_url=running.url, samples=0).fit(X, Y)
        copied = pickle.loads(pickle.dumps(fitted))
        assert copied.predict(X).tolist() == fitted.predict(X).tolist()


def test_it_is_cross_validated_and_searched_in_a_pipeline(classifier: AbmllMultiOutputClassifier) -> None:
    answers = np.array(Y, dtype=object)
    scores = cross_val_score(classifier, X, answers, cv=3, error_score="raise")
    rest, held_out = slice(4, 12), slice(0, 4)
    by_hand = clone(classifier).fit(X[rest], answers[rest]).score(X[held_out], answers[held_out])
    assert scores[0] == by_hand
    tidy = FunctionTransformer(lambda texts: [text.strip() for text in texts])
    pipeline = Pipeline([("tidy", tidy), ("answer", classifier)])
    searched = GridSearchCV(pipeline, {"answer__seed": [0, 1]}, cv=2, error_score="raise").fit(X, answers)
    assert searched.best_score_ == max(searched.cv_results_["mean_test_score"])


def test_parameters_are_got_set_and_cloned(classifier: AbmllMultiOutputClassifier, client: Client) -> None:
    parameters = classifier.get_params()
    assert (parameters["client"], parameters["questions"]) == (client, QUESTIONS)
    assert clone(classifier).get_params() == parameters
