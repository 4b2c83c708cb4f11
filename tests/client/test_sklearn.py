"""The classifier in the checks and tools of scikit-learn, and in MAPIE."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mapie.classification import SplitConformalClassifier
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from abmll_client import Client, InvalidRequestError, NotFoundError
from abmll_client.local import GROUP
from abmll_client.sklearn import FewShotClassifier
from service import embedded
from service.embedded import Embedded
from tests.service.conftest import Server

X = [f"text number {i}" for i in range(24)]
Y = ["yes" if i % 3 else "no" for i in range(24)]


@pytest.fixture(scope="module")
def client(shared_embedded: Embedded) -> Iterator[Client]:
    with shared_embedded.client() as connected:
        yield connected


@pytest.fixture
def classifier(client: Client) -> FewShotClassifier:
    return FewShotClassifier(client=client, samples=2)


# ---- scikit-learn's checks -----------------------------------------------------------------------


def test_the_checks_for_estimators_of_texts_pass(classifier: FewShotClassifier) -> None:
    """These checks are few: scikit-learn has data of numbers only."""
    with pytest.warns(SkipTestWarning, match="string=True"):
        results = check_estimator(classifier)
    assert {result["status"] for result in results} <= {"passed"}


class OfNumbers(FewShotClassifier):
    """Classifier on rows of numbers, which it reads as texts, so that all checks can run."""

    def fit(self, X: Any, y: Any) -> OfNumbers:  # noqa: N803
        super().fit(self._read(X, reset=True), y)
        return self

    def predictions(self, X: Any) -> Any:  # noqa: N803
        check_is_fitted(self)
        return super().predictions(self._read(X, reset=False))

    def _read(self, X: Any, *, reset: bool) -> list[str]:  # noqa: N803
        rows = validate_data(self, X, reset=reset)
        return [" ".join(f"{value:.3g}" for value in row) for row in rows]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        tags.classifier_tags.poor_score = True  # the fake model answers from a hash
        return tags


def test_all_checks_pass_on_rows_of_numbers_read_as_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server around the fake model takes the place of the engine of this process."""
    running = Embedded(Server(tmp_path, max_support=1000).app)
    monkeypatch.setattr(embedded._shared, "running", running)
    with contextlib.closing(running), warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        estimator = OfNumbers(samples=0, truncate=True)
        results = check_estimator(estimator, on_skip=None)
    statuses = Counter(result["status"] for result in results)
    assert set(statuses) <= {"passed", "skipped"}
    assert statuses["passed"] >= 50


# ---- what it is ----------------------------------------------------------------------------------


def test_it_is_the_server_with_the_labels_as_options(classifier: FewShotClassifier, client: Client) -> None:
    fitted = classifier.set_params(gate={"min_confidence": 0.6}, seed=3, steps=2, learning_rate=0.01).fit(
        X, Y
    )
    assert list(fitted.classes_) == ["no", "yes"]
    adapter = client.adapter(fitted.adapter_id_)
    assert (adapter.options, adapter.diagnostics.steps) == (["no", "yes"], 2)
    made = client.create_adapter(
        list(zip(X, Y, strict=True)), options=["no", "yes"], seed=3, adapt={"steps": 2, "learning_rate": 0.01}
    )
    assert (made.id, made.cache) == (fitted.adapter_id_, "hit")
    expected = client.predict(
        X, adapter_id=made.id, samples=2, seed=3, gate={"min_confidence": 0.6}
    ).predictions
    assert fitted.predictions(X) == expected
    assert fitted.predict(X).tolist() == [prediction.answer for prediction in expected]
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (24, 2)
    for row, prediction in zip(probabilities, expected, strict=True):
        assert dict(zip(["no", "yes"], row, strict=True)) == {
            o.option: o.probability for o in prediction.distribution
        }
    assert fitted.score(X, Y) == np.mean([p.answer == y for p, y in zip(expected, Y, strict=True)])


@pytest.mark.parametrize(
    "same",
    [
        np.array(X),
        np.array(X, dtype=object),
        np.array(X)[:, None],
        pd.Series(X, index=range(5, 29)),
        pd.DataFrame({"text": X}),
    ],
    ids=["array", "objects", "column", "series", "frame"],
)
def test_texts_may_come_in_any_container(classifier: FewShotClassifier, same: Any) -> None:
    expected = classifier.fit(X, Y).predict_proba(X)
    other = clone(classifier).fit(same, pd.Series(Y))
    assert other.adapter_id_ == classifier.adapter_id_
    np.testing.assert_array_equal(other.predict_proba(same), expected)


def test_labels_keep_their_type(classifier: FewShotClassifier) -> None:
    numbers = [2 if y == "yes" else -1 for y in Y]
    fitted = classifier.fit(X, numbers)
    assert fitted.classes_.tolist() == [-1, 2]
    assert set(fitted.predict(X).tolist()) == {-1, 2}
    assert {label for _, label in fitted.support_} == {"-1", "2"}


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ([["a", "b"], ["c", "d"]], ["x", "y"], "one column"),
        (["a", 3], ["x", "y"], r"X\[1\] is no text but of type int"),
        (["a", "b"], ["x", "x"], "one class"),
        (["a", "b"], ["x"], "inconsistent numbers"),
        (["a", "b"], [0.5, 1.5], "Unknown label type"),
        (["a", "b"], None, "y is None"),
        ([], [], "0 sample"),
    ],
)
def test_what_is_no_set_of_labelled_texts_is_refused(
    classifier: FewShotClassifier, texts: Any, labels: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classifier.fit(texts, labels)


def test_the_servers_refusals_and_being_unfitted_are_raised(classifier: FewShotClassifier) -> None:
    with pytest.raises(NotFittedError):
        classifier.predict(X)
    with pytest.raises(NotFoundError, match="unknown_model"):
        clone(classifier).set_params(model="other").fit(X, Y)
    with pytest.raises(InvalidRequestError, match=r"prompt_too_long.*support\[0\].input"):
        classifier.fit(["long " * 99, "b"], ["x", "y"])


def test_an_adapter_that_the_server_lost_is_made_again(classifier: FewShotClassifier, client: Client) -> None:
    expected = classifier.fit(X, Y).predict_proba(X)
    client.delete(classifier.adapter_id_)
    np.testing.assert_array_equal(classifier.predict_proba(X), expected)
    assert client.adapter(classifier.adapter_id_).support.n == 24


def test_a_pickled_classifier_answers_at_its_address(tmp_path: Path) -> None:
    with Server(tmp_path).listening() as running:
        fitted = FewShotClassifier(base_url=running.url, samples=0).fit(X, Y)
        copied = pickle.loads(pickle.dumps(fitted))
        np.testing.assert_array_equal(copied.predict_proba(X), fitted.predict_proba(X))


def test_without_a_server_and_an_engine_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll_client.local.entry_points", lambda group: [])
    with pytest.raises(ImportError, match="needs abmll-serve, which is not installed: install it, or name"):
        FewShotClassifier().fit(X, Y)


def test_an_engine_in_this_process_is_the_one_that_is_registered() -> None:
    (entry,) = entry_points(group=GROUP)
    assert entry.load() is embedded.connect


# ---- in scikit-learn's and MAPIE's tools ---------------------------------------------------------


def test_cross_validation_scores_are_those_of_fitting_by_hand(classifier: FewShotClassifier) -> None:
    folds = StratifiedKFold(3)
    scores = cross_val_score(classifier, X, Y, cv=folds, error_score="raise")
    texts, labels = np.array(X), np.array(Y)
    by_hand = [
        clone(classifier).fit(texts[train], labels[train]).score(texts[test], labels[test])
        for train, test in folds.split(texts, labels)
    ]
    assert scores.tolist() == by_hand


def test_a_grid_is_searched_in_a_pipeline(classifier: FewShotClassifier) -> None:
    tidy = FunctionTransformer(lambda texts: [text.strip().lower() for text in texts])
    pipeline = Pipeline([("tidy", tidy), ("answer", classifier)])
    shouted = [f"  {text.upper()} " for text in X]
    expected = clone(classifier).fit(X, Y)
    assert pipeline.fit(shouted, Y)["answer"].adapter_id_ == expected.adapter_id_
    np.testing.assert_array_equal(pipeline.predict_proba(shouted), expected.predict_proba(X))
    searched = GridSearchCV(pipeline, {"answer__seed": [0, 1, 2]}, cv=2, error_score="raise").fit(shouted, Y)
    assert searched.best_score_ == max(searched.cv_results_["mean_test_score"])


@pytest.mark.parametrize("method", ["sigmoid", "isotonic", "temperature"])
def test_it_is_calibrated(classifier: FewShotClassifier, method: str) -> None:
    calibrated = CalibratedClassifierCV(classifier, method=method, cv=3).fit(X, Y)
    assert len(calibrated.calibrated_classifiers_) == 3
    probabilities = calibrated.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    parts = [pair.predict_proba(X) for pair in calibrated.calibrated_classifiers_]
    np.testing.assert_allclose(probabilities, np.mean(parts, axis=0))


def test_mapie_makes_prediction_sets_of_it(classifier: FewShotClassifier) -> None:
    """The sets are those of split conformal prediction with the score 1 - p(label)."""
    held_out, labels = np.array([f"held out {i}" for i in range(99)]), np.array(["yes", "no", "no"] * 33)
    fitted = classifier.fit(np.array(X), Y)
    conformal = SplitConformalClassifier(fitted, confidence_level=0.8, prefit=True)
    conformal.conformalize(held_out, labels)
    answers, sets = conformal.predict_set(np.array(X))
    probabilities = fitted.predict_proba(held_out)
    scores = np.sort(1 - probabilities[np.arange(99), np.searchsorted(fitted.classes_, labels)])
    threshold = scores[int(np.ceil(0.8 * 100)) - 1]
    np.testing.assert_array_equal(sets[:, :, 0], 1 - fitted.predict_proba(X) <= threshold)
    assert answers.tolist() == fitted.predict(X).tolist()
    assert 24 < sets.sum() < 48


def test_parameters_are_got_set_cloned_and_copied(classifier: FewShotClassifier, client: Client) -> None:
    parameters = classifier.get_params()
    assert parameters["client"] is client
    assert clone(classifier).get_params() == parameters
    assert copy.deepcopy(classifier).get_params() == parameters
    assert classifier.set_params(samples="auto", gate={"min_margin": 0.1}).samples == "auto"
