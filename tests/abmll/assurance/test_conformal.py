"""Conformal sets against MAPIE and their own guarantee."""

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

from abmll.assurance.conformal import conformal_quantile, conformal_set, fewest_scores


class Given(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose inputs are its probabilities."""

    def fit(self, x, y):
        self.classes_, self.fitted_ = np.arange(x.shape[1]), True
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(1)


def draw(rng, n, options=4):
    probabilities = rng.dirichlet(np.full(options, 0.7), n)
    labels = np.array([rng.choice(options, p=p) for p in probabilities])
    return probabilities, labels


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("n", [40, 59, 500])
def test_sets_are_mapies_with_the_answer_added_to_empty_ones(n, alpha):
    rng = np.random.default_rng(n)
    probabilities, labels = draw(rng, n)
    new, _ = draw(rng, 300)
    model = Given().fit(probabilities, labels)
    theirs = SplitConformalClassifier(
        model, confidence_level=1 - alpha, conformity_score="lac", prefit=True
    ).conformalize(probabilities, labels)
    _, sets = theirs.predict_set(new)
    found = conformal_quantile(list(1 - probabilities[np.arange(n), labels]), alpha)
    assert found.attainable
    for row, expected in zip(new, sets[:, :, 0], strict=True):
        assert set(conformal_set(row, found.q)) == set(np.flatnonzero(expected)) | {int(row.argmax())}


def test_the_quantile_is_the_order_statistic():
    scores = [0.9, 0.1, 0.5, 0.3]
    found = conformal_quantile(scores, 0.4)
    assert (found.q, found.coverage, found.attainable) == (0.5, 0.6, True)
    assert conformal_quantile(scores, 0.2).q == 0.9, "(n + 1)(1 - alpha) is exactly n"


def test_too_few_scores_leave_every_option():
    for alpha, fewest in ((0.1, 9), (0.05, 19), (0.3, 3)):
        assert fewest_scores(alpha) == fewest
        assert not conformal_quantile([0.2] * (fewest - 1), alpha).attainable
        assert conformal_quantile([0.2] * fewest, alpha).attainable
    found = conformal_quantile([0.2] * 5, 0.1)
    assert (found.q, found.coverage) == (1.0, 1.0)
    assert conformal_set([0.7, 0.3, 0.0], found.q) == (0, 1, 2)


def test_a_set_lists_the_most_probable_first_and_is_never_empty():
    assert conformal_set([0.2, 0.5, 0.3], 0.75) == (1, 2)
    assert conformal_set([0.2, 0.5, 0.3], 0.1) == (1,)


@pytest.mark.parametrize("n", [10, 30])
def test_sets_cover_as_often_as_promised(n):
    rng = np.random.default_rng(n)
    covered = []
    for _ in range(1500):
        probabilities, labels = draw(rng, n + 1)
        found = conformal_quantile(list(1 - probabilities[np.arange(n), labels[:n]]), 0.2)
        covered.append(labels[n] in conformal_set(probabilities[n], found.q))
    assert np.mean(covered) >= 0.8 - 3 * np.sqrt(0.16 / 1500)


def test_alpha_must_be_a_level():
    for alpha in (0, 1, -1):
        with pytest.raises(ValueError, match="alpha"):
            conformal_quantile([0.1], alpha)
