"""scikit-learn classifiers of texts: of one label, and of several questions. Needs the extra
`sklearn`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from abmll_client.client import Client
from abmll_client.errors import StatusError
from abmll_client.local import local_client
from abmll_client.models import DecidedInput, Prediction
from abmll_client.questions import QuestionLike, answer_of, question_rows, values_of

# The server has lost the adapter, or another process fitted; or the server was upgraded meanwhile.
_MADE_AGAIN = ("unknown_adapter", "adapter_mismatch")

log = logging.getLogger(__name__)
T = TypeVar("T")


class _OfServer(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both classifiers have: a server or an engine, and an adapter that is made again if lost."""

    base_url: str | None
    client: Client | None
    effort: str | None
    steps: int | None
    learning_rate: float | None
    calibration_folds: int | None
    adapter_id_: str

    def _create(self, client: Client) -> str:
        """Make the adapter, and return its id."""
        raise NotImplementedError

    def _answered(self, answers: Callable[[Client], T]) -> T:
        """Return `answers` of a client, with a new adapter where the server has lost it."""
        check_is_fitted(self)
        with self._connected() as client:
            try:
                return answers(client)
            except StatusError as error:
                if error.code not in _MADE_AGAIN:
                    raise
                log.info("adapter %s is made again: %s", self.adapter_id_, error.code)
                self.adapter_id_ = self._create(client)
                return answers(client)

    def _adapt(self) -> dict[str, Any] | None:
        chosen = {
            "effort": self.effort,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "calibration_folds": self.calibration_folds,
        }
        return {name: value for name, value in chosen.items() if value is not None} or None

    @contextmanager
    def _connected(self) -> Iterator[Client]:
        if self.client is not None:
            yield self.client
        elif self.base_url is not None:
            with Client(self.base_url) as client:
                yield client
        else:
            with local_client() as client:
                yield client

    def __sklearn_tags__(self) -> Any:
        """Texts in one dimension."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags


class FewShotClassifier(ClassifierMixin, _OfServer):  # type: ignore[misc]
    """Adapts to labelled texts and answers new ones, on a server or in this process.

    `X` is a list, an array or a Series of texts, or one column of them. `y` are labels, which the
    model reads as text. There is no `n_features_in_`, as in scikit-learn's own estimators of texts.

    With `client` or `base_url` a server does the work. With neither, an engine in this process does
    (`abmll_client.local`), which all classifiers share. A client cannot be pickled, so use
    `base_url` with `n_jobs`.

    Parameters are those of the server's requests: `samples` (0 to 64, or "auto"), `effort` (work of
    the fit: `full`, `fast` or `instant`; None: `full`), `steps` and `learning_rate` (None: those of
    the effort), `calibration_folds` (parts of the support held out in turn to calibrate the
    adapter), `seed`, `gate` (how the server decides; see `predictions`), `truncate` (cut long
    texts), `model`.

    After `fit` there are `classes_` (shape (n_classes,)), `adapter_id_`, and `support_`, from which
    the adapter is made again where the server has lost it, or now has another base model or
    posterior. `adapter_id_` is then that of the new adapter.

    Warns where all labels are numbers, which say nothing to a model that reads. Raises `ValueError`
    for an `X` or `y` that is no set of labelled texts, and the client's errors.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        client: Client | None = None,
        model: str | None = None,
        samples: int | Literal["auto"] = 16,
        effort: str | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        calibration_folds: int | None = None,
        seed: int = 0,
        gate: Mapping[str, Any] | None = None,
        truncate: bool = False,
    ) -> None:
        self.base_url = base_url
        self.client = client
        self.model = model
        self.samples = samples
        self.effort = effort
        self.steps = steps
        self.learning_rate = learning_rate
        self.calibration_folds = calibration_folds
        self.seed = seed
        self.gate = gate
        self.truncate = truncate

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Adapt to texts of shape (n,) or (n, 1) with labels of shape (n,)."""
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        labels = column_or_1d(y, warn=True)
        texts = _texts(X)
        check_consistent_length(texts, labels)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("at least two classes are needed; this y has one class")
        options = self._options()
        _check_options(options)
        if all(map(_is_number, options)):
            shown = ", ".join(options[:3])
            warnings.warn(
                f"the labels are numbers ({shown}), and the model reads a label as text: give names that "
                "say what the classes are, such as 'positive' and 'negative'",
                stacklevel=2,
            )
        self.support_ = [(text, options[code]) for text, code in zip(texts, codes, strict=True)]
        with self._connected() as client:
            self.adapter_id_ = self._create(client)
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the most probable class of each text, shape (n,), also where the gate abstains."""
        most_probable = self.predict_proba(X).argmax(axis=1)
        answers: NDArray[Any] = self.classes_[most_probable]
        return answers

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return the posterior predictive, shape (n, n_classes), in the order of `classes_`."""
        predictions = self.predictions(X)
        options = self._options()
        rows = [{row.option: row.probability for row in p.distribution} for p in predictions]
        return np.array([[row[option] for option in options] for row in rows], dtype=np.float64)

    def predictions(self, X: ArrayLike) -> list[Prediction]:  # noqa: N803
        """Return the server's answers in full: with decision, margin and uncertainty."""
        check_is_fitted(self)
        texts = _texts(X)
        return self._answered(
            lambda client: client.predict_all(
                texts,
                adapter_id=self.adapter_id_,
                model=self.model,
                samples=self.samples,
                seed=self.seed,
                gate=self.gate,
                truncate=self.truncate,
            )
        )

    def _options(self) -> list[str]:
        return [str(label) for label in self.classes_]

    def _create(self, client: Client) -> str:
        made = client.create_adapter(
            self.support_,
            model=self.model,
            options=self._options(),
            adapt=self._adapt(),
            seed=self.seed,
            truncate=self.truncate,
        )
        return made.id


class AbmllMultiOutputClassifier(_OfServer):
    """Adapts to texts with answers to several questions, and answers all of them about new texts.

    `questions` are `Predicate`, `Choice`, `Score` or rows, and `Y` has a column for each, in their
    order. Its values are those of the question: True and False (or 1 and 0), a value of a choice,
    the label of a level or its index. A missing value (None, NaN) says that the text does not tell
    the answer. `X` and the other parameters are as in `FewShotClassifier`; `gates` are the server's
    gates by question.

    After `fit` there are `classes_`, a list with an array for each question: False and True, and
    otherwise the question's values in their order, with the levels' indices in place of their
    labels where `Y` has these; `adapter_id_`; and `cases_`, from which the adapter is made again.

    To scikit-learn's tools it is an estimator of no kind: as a classifier they would sort the
    answers, which are booleans beside texts. So `cv=5` makes plain folds.

    Raises `ValueError` for an `X` or `Y` that is no set of labelled texts, and the client's errors.
    """

    def __init__(
        self,
        questions: Sequence[QuestionLike] = (),
        *,
        base_url: str | None = None,
        client: Client | None = None,
        model: str | None = None,
        samples: int | Literal["auto"] = 16,
        effort: str | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        calibration_folds: int | None = None,
        seed: int = 0,
        gate: Mapping[str, Any] | None = None,
        gates: Mapping[str, Mapping[str, Any]] | None = None,
        truncate: bool = False,
    ) -> None:
        self.questions = questions
        self.base_url = base_url
        self.client = client
        self.model = model
        self.samples = samples
        self.effort = effort
        self.steps = steps
        self.learning_rate = learning_rate
        self.calibration_folds = calibration_folds
        self.seed = seed
        self.gate = gate
        self.gates = gates
        self.truncate = truncate

    def fit(self, X: ArrayLike, Y: ArrayLike) -> Self:  # noqa: N803
        """Adapt to texts of shape (n,) or (n, 1) with answers of shape (n, questions)."""
        if Y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        questions = self._rows()
        texts, columns = _texts(X), self._columns(Y, questions)
        check_consistent_length(texts, columns[0])
        self.classes_ = [_classes(row, column) for row, column in zip(questions, columns, strict=True)]
        names = [row["name"] for row in questions]
        self.cases_ = [
            (text, dict(zip(names, answers, strict=True)))
            for text, *answers in zip(texts, *columns, strict=True)
        ]
        with self._connected() as client:
            self.adapter_id_ = self._create(client)
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the most probable answers, shape (n, questions), also where a gate abstains."""
        found = self.predict_proba(X)
        most_probable = [
            classes[probabilities.argmax(axis=1)].astype(object)
            for classes, probabilities in zip(self.classes_, found, strict=True)
        ]
        return np.column_stack(most_probable)

    def predict_proba(self, X: ArrayLike) -> list[NDArray[np.float64]]:  # noqa: N803
        """Return for each question the probabilities of its `classes_`, shape (n, n_classes).

        They are given that the text tells the answer.
        """
        results = self.predictions(X)
        found = []
        for question in self._rows():
            rows = [
                [value.probability for value in result.answers[question["name"]].probabilities]
                for result in results
            ]
            in_order = slice(None, None, -1 if question["type"] == "predicate" else 1)
            found.append(np.array(rows, dtype=np.float64)[:, in_order])
        return found

    def predictions(self, X: ArrayLike) -> list[DecidedInput]:  # noqa: N803
        """Return the server's answers in full: with decision, answerable and uncertainty."""
        check_is_fitted(self)
        texts = _texts(X)
        return self._answered(
            lambda client: client.decide_all(
                texts,
                self._rows(),
                adapter_id=self.adapter_id_,
                model=self.model,
                samples=self.samples,
                seed=self.seed,
                gate=self.gate,
                gates=self.gates,
                truncate=self.truncate,
            )
        )

    def score(self, X: ArrayLike, Y: ArrayLike) -> float:  # noqa: N803
        """Return the fraction of texts with all answers right; missing ones do not count."""
        check_is_fitted(self)
        columns = self._columns(Y, self._rows())
        right = [
            [
                answer is None or answer == answer_of(found)
                for answer, found in zip(column, answers, strict=True)
            ]
            for column, answers in zip(columns, self.predict(X).T, strict=True)
        ]
        return float(np.all(right, axis=0).mean())

    def _rows(self) -> list[Mapping[str, Any]]:
        rows = [row for row in question_rows(self.questions) if not isinstance(row, str)]
        if not rows or len(rows) < len(self.questions):
            raise ValueError("questions are a list of at least one Predicate, Choice, Score, or row")
        return rows

    def _columns(self, Y: ArrayLike, questions: Sequence[Mapping[str, Any]]) -> list[list[Any]]:  # noqa: N803
        """Return the answers of each question as JSON has them."""
        array = np.asarray(Y, dtype=object)
        if array.ndim != 2 or array.shape[1] != len(questions):
            shape = f"(n, {len(questions)})"
            raise ValueError(f"Y has a column for each question, shape {shape}; this one has {array.shape}")
        return [
            [_truth(answer) if row["type"] == "predicate" else answer for answer in map(answer_of, column)]
            for row, column in zip(questions, array.T, strict=True)
        ]

    def _create(self, client: Client) -> str:
        made = client.create_adapter(
            questions=self._rows(),
            cases=self.cases_,
            model=self.model,
            adapt=self._adapt(),
            seed=self.seed,
            truncate=self.truncate,
        )
        return made.id

    def __sklearn_tags__(self) -> Any:
        """Several answers, never one alone."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output, tags.target_tags.single_output = True, False
        return tags


def _classes(question: Mapping[str, Any], answers: Sequence[Any]) -> NDArray[Any]:
    """Return the possible answers, as the labelled ones are written."""
    if question["type"] == "predicate":
        return np.array([False, True])
    values = values_of(question)
    given = [answer for answer in answers if answer is not None]
    if question["type"] == "score" and given and all(isinstance(answer, int) for answer in given):
        return np.arange(len(values))
    return np.array(values, dtype=object)


def _truth(answer: Any) -> Any:
    """Return the boolean that 0 or 1 stands for, and all else as it is."""
    return bool(answer) if isinstance(answer, int) and answer in (0, 1) else answer


def _check_options(options: list[str]) -> None:
    """Raise `ValueError` for labels that the server does not take for different options."""
    seen: dict[str, str] = {}
    for option in options:
        if not option.strip():
            raise ValueError(f"the label {option!r} is empty")
        first = seen.setdefault(option.strip(), option)
        if first != option:
            raise ValueError(f"the labels {first!r} and {option!r} differ only by white space")


def _texts(X: ArrayLike) -> list[str]:  # noqa: N803
    """Texts of shape (n,) or (n, 1) as a list."""
    array = np.asarray(X, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"X is one column of texts; this one has the shape {array.shape}")
    if not len(array):
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    for i, text in enumerate(array):
        if not isinstance(text, str):
            raise ValueError(f"X[{i}] is no text but of type {type(text).__name__}")
    return [str(text) for text in array]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
