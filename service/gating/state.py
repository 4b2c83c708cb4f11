"""State of the gate of one question: outcomes, predictions that may be labelled, and alarms.

An adapter has a gate for each of its questions, or one. The state is what the records of a journal
add up to. The `*_record` functions make records, and `GateState.apply` adds one to the state, so
disk and memory cannot differ. No text of a caller is stored: inputs, answers and options are
digests.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from abmll.assurance.certificates import Certificate, NotYet, certify_looks
from abmll.assurance.conformal import ConformalQuantile, conformal_quantile
from abmll.assurance.drift import ExchangeabilityAlarm, RiskAlarm
from abmll.prediction.settings import Samples
from abmll.text.tasks import Query
from model_store.adapters.contract import Record
from model_store.errors import CorruptArtifactError, UnsupportedFormatError
from model_store.tensors import canonical_json

FORMAT_VERSION = 1
_DIGEST_CHARS = 32
_OPTION_CHARS = 8
_MOST_CACHED = 64


def digest(*parts: object, chars: int = _DIGEST_CHARS) -> str:
    """Return the first `chars` hexadecimal digits of the SHA-256 of `parts`."""
    text = repr(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:chars]


def input_key(text: str, options: Sequence[str]) -> str:
    """Return the key of an input; inputs with equal keys count once."""
    return digest(text, tuple(options))


def outcome_key(query: Query, question: str) -> str:
    """Return the key of an outcome. The options count only where no `question` fixes them."""
    return input_key(query.input, () if question else query.options)


def journal_key(adapter_id: str, question: str) -> str:
    """Return the key of a gate's journal: `question` is the digest of its question, or empty."""
    return f"{adapter_id}.{question}" if question else adapter_id


def text_digest(text: str) -> str:
    """Return the digest of an answer or a label, without the space around it."""
    return digest(text.strip())


def option_digests(options: Sequence[str]) -> list[str]:
    """Return short digests of the options, by which a label that is none of them is recognised."""
    return [text_digest(option)[:_OPTION_CHARS] for option in options]


@dataclass(frozen=True)
class Conditions:
    """Conditions of predictions. Confidences may be compared where these are equal.

    They are the kind of confidence, and the settings that decide which posterior samples are drawn.
    `max_new_tokens` is None unless the adapter answers in free text.
    """

    confidence_kind: str
    samples: Samples
    seed: int
    max_new_tokens: int | None


@dataclass(frozen=True)
class Outcome:
    """Outcome of one input.

    `score` is 1 - p(right option); None for free text and for feedback.
    """

    key: str
    confidence: float
    correct: bool
    score: float | None
    feedback: bool = False


@dataclass(frozen=True)
class Logged:
    """Prediction that may be labelled.

    `asked` says whether it was drawn at random as one whose label is asked for; only such labels
    count. `gated_at` is the target error of the certified gate that it passed; None if it passed
    none. `options` are short digests; empty for free text.
    """

    id: str
    key: str
    confidence: float
    answer: str
    options: tuple[str, ...]
    asked: bool
    gated_at: float | None


@dataclass(frozen=True)
class Counts:
    """Numbers of predictions since the calibration began, and the wealth of its alarms.

    An alarm's wealth is 1 at the start; it is raised when the wealth is large enough
    (`abmll.assurance.drift`).
    """

    logged: int
    asked: int
    labelled: int
    risk_wealth: float
    domain_wealth: float


@dataclass
class GateState:
    """State that a journal's records add up to. Only `apply` changes it.

    `question` is the digest of the question; empty where the adapter has no instructions, as in
    journals that were written before adapters had several questions.
    `first` is the number of items when certificates were first possible; None while more examples
    are announced. `run` is 1 at first, and increases by 1 when the journal is shortened, which
    restarts the domain alarm. `past` counts the predictions that are not in `logged` any more.
    """

    adapter_id: str
    lineage: str
    conditions: Conditions
    alarm_level: float
    items: list[Outcome]
    first: int | None
    version: int
    run: int
    revoked: str | None
    alarms: dict[float, RiskAlarm]
    past: Counts
    question: str = ""
    logged: dict[str, Logged] = field(default_factory=dict)
    labelled: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = {item.key for item in self.items}
        # Each run is a new test. Run r has level alpha / (r (r + 1)); the levels of all runs add up
        # to alpha.
        level = self.alarm_level / (self.run * (self.run + 1))
        self.domain = ExchangeabilityAlarm((item.confidence for item in self.items), level)
        self._certificates: dict[tuple[float, float], Certificate | NotYet] = {}
        self._id: str | None = None

    @classmethod
    def of(cls, records: Sequence[Record], alarm_level: float) -> GateState:
        """Return the state of a journal. Raises `UnsupportedFormatError` for another version."""
        first, *rest = records
        if first["format_version"] != FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"calibration format {first['format_version']!r} is not the one read here"
            )
        state = cls(
            adapter_id=first["adapter_id"],
            lineage=first["lineage"],
            conditions=Conditions(**first["conditions"]),
            alarm_level=alarm_level,
            items=[Outcome(**row) for row in first["items"]],
            first=first["first"],
            version=first["version"],
            run=first["run"],
            revoked=first["revoked"],
            alarms={alarm["target_error"]: RiskAlarm(**alarm) for alarm in first["alarms"]},
            past=Counts(**first["past"]),
            question=first.get("question", ""),
        )
        for record in rest:
            state.apply(record)
        return state

    @property
    def id(self) -> str:
        """Return the calibration's id: equal outcomes under equal conditions have equal ids."""
        if self._id is None:
            outcomes = [[item.key, item.confidence, item.correct] for item in self.items]
            of = [self.adapter_id, self.question] if self.question else [self.adapter_id]
            content = canonical_json([*of, asdict(self.conditions), outcomes])
            self._id = f"cal_{hashlib.sha256(content).hexdigest()[:_DIGEST_CHARS]}"
        return self._id

    @property
    def key(self) -> str:
        """Return the key of the state's journal."""
        return journal_key(self.adapter_id, self.question)

    @property
    def held(self) -> bool:
        """Return whether more examples are announced; until they come, nothing may be certified."""
        return self.first is None

    @property
    def accuracy(self) -> float:
        """Return the proportion of items that are right."""
        return sum(item.correct for item in self.items) / len(self.items)

    @property
    def confidences(self) -> list[float]:
        """Return the confidences of all items, in the order in which their labels came."""
        return [item.confidence for item in self.items]

    @property
    def counts(self) -> Counts:
        """Return the counts of predictions, and the wealth of the alarms."""
        return Counts(
            logged=self.past.logged + len(self.logged),
            asked=self.past.asked + sum(entry.asked for entry in self.logged.values()),
            labelled=self.past.labelled + len(self.labelled),
            risk_wealth=max((alarm.wealth for alarm in self.alarms.values()), default=1.0),
            domain_wealth=self.domain.wealth,
        )

    def certificate(self, target_error: float, delta: float) -> Certificate | NotYet:
        """Return what can be certified now. Raises `ValueError` while the state is held."""
        known = self._certificates.get((target_error, delta))
        if known is None:
            if self.first is None:
                raise ValueError("nothing is certified while more examples are announced")
            correct = [item.correct for item in self.items]
            known = certify_looks(self.confidences, correct, target_error, delta, self.first)
            if len(self._certificates) >= _MOST_CACHED:
                self._certificates.clear()
            self._certificates[target_error, delta] = known
        return known

    def quantile(self, alpha: float) -> ConformalQuantile:
        """Return the conformal quantile of all scores; feedback has none."""
        return conformal_quantile([item.score for item in self.items if item.score is not None], alpha)

    def drift(self) -> str | None:
        """Return the reason to revoke certificates; None if no alarm is raised."""
        for target, alarm in sorted(self.alarms.items()):
            if alarm.raised:
                return (
                    f"{alarm.errors} of {alarm.items} labelled answers that the gate let pass were wrong: more than "
                    f"a target error of {target:g} allows (false-alarm probability {alarm.level:g})"
                )
        if self.domain.raised:
            return (
                f"the confidences of the last {self.domain.items} inputs do not look like those of the calibration "
                f"(false-alarm probability {self.alarm_level:g})"
            )
        return None

    def apply(self, record: Record) -> None:
        """Add a record of the journal to the state. Raises `UnsupportedFormatError`."""
        kind = record["kind"]
        if kind == "examples":
            self._add_examples([Outcome(**row) for row in record["items"]], held=record["held"])
        elif kind == "predictions":
            for row in record["rows"]:
                self._log(Logged(**{**row, "options": tuple(row["options"])}))
        elif kind == "labels":
            for row in record["rows"]:
                self._label(row["id"], row["correct"], counts=row["counts"])
            self._changed()
        elif kind == "revoked":
            self.revoked = record["reason"]
        else:
            raise UnsupportedFormatError(f"a calibration has a record of kind {kind!r}")

    def shortened(self, keep: int) -> list[Record]:
        """Return the records of a shorter journal, with the newest `keep` unlabelled predictions.

        Other predictions are only counted. The domain alarm starts anew, with the next run.
        """
        unlabelled = [entry for id, entry in self.logged.items() if id not in self.labelled]
        newest = unlabelled[len(unlabelled) - min(keep, len(unlabelled)) :]
        counts = self.counts
        past = Counts(
            logged=counts.logged - len(newest),
            asked=counts.asked - sum(entry.asked for entry in newest),
            labelled=counts.labelled,
            risk_wealth=1.0,
            domain_wealth=1.0,
        )
        return [self._snapshot(past), predictions_record(newest)]

    def _snapshot(self, past: Counts) -> dict[str, Any]:
        return {
            "kind": "snapshot",
            "format_version": FORMAT_VERSION,
            "adapter_id": self.adapter_id,
            **_question_field(self.question),
            "lineage": self.lineage,
            "conditions": asdict(self.conditions),
            "items": [asdict(item) for item in self.items],
            "first": self.first,
            "version": self.version,
            "run": self.run + 1,
            "revoked": self.revoked,
            "alarms": [asdict(alarm) for alarm in self.alarms.values()],
            "past": asdict(past),
        }

    def _add_examples(self, items: Sequence[Outcome], *, held: bool) -> None:
        self.items += items
        self.keys |= {item.key for item in items}
        for item in items:
            self.domain.add(item.confidence)
        if not held and self.first is None:
            self.first = len(self.items)
        self._changed()

    def _log(self, entry: Logged) -> None:
        if entry.id not in self.logged:
            self.logged[entry.id] = entry
            self.domain.update(entry.confidence, _uniform(self.lineage, entry.id, "tie"))

    def _label(self, id: str, correct: bool, *, counts: bool) -> None:
        entry = self.logged[id]
        self.labelled[id] = correct
        if not entry.asked:
            return
        if counts and entry.key not in self.keys:
            self.items.append(Outcome(entry.key, entry.confidence, correct, None, feedback=True))
            self.keys.add(entry.key)
        if entry.gated_at is not None:
            target = alarm_target(entry.gated_at)
            alarm = self.alarms.setdefault(target, RiskAlarm(target, self.alarm_level))
            alarm.update(not correct)

    def _changed(self) -> None:
        self.version += 1
        self._certificates.clear()
        self._id = None


def read_state(key: str, records: Sequence[Record], alarm_level: float) -> GateState:
    """Return the state of the journal with this key, which may hold anything.

    Raises `CorruptArtifactError` for records that mean nothing or are those of another journal,
    `UnsupportedFormatError` for another version.
    """
    try:
        state = GateState.of(records, alarm_level)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CorruptArtifactError(f"the calibration of {key} cannot be read: {error!r}") from error
    if state.key != key:
        raise CorruptArtifactError(f"{key} has the calibration of another adapter, {state.key}")
    return state


def begin_record(
    adapter_id: str,
    conditions: Conditions,
    items: Sequence[Outcome],
    *,
    held: bool,
    version: int,
    question: str = "",
) -> dict[str, Any]:
    """Return the first record of a journal; `held` says that more examples are announced."""
    of = (adapter_id, question) if question else (adapter_id,)
    return {
        "kind": "snapshot",
        "format_version": FORMAT_VERSION,
        "adapter_id": adapter_id,
        **_question_field(question),
        "lineage": digest(*of, conditions, tuple(items), version),
        "conditions": asdict(conditions),
        "items": [asdict(item) for item in items],
        "first": None if held else len(items),
        "version": version,
        "run": 1,
        "revoked": None,
        "alarms": [],
        "past": asdict(Counts(0, 0, 0, 1.0, 1.0)),
    }


def _question_field(question: str) -> dict[str, str]:
    return {"question": question} if question else {}


def examples_record(items: Iterable[Outcome], *, held: bool) -> dict[str, Any]:
    """Return the record of more examples; `held` says that still more are announced."""
    return {"kind": "examples", "items": [asdict(item) for item in items], "held": held}


def predictions_record(entries: Iterable[Logged]) -> dict[str, Any]:
    """Return the record of predictions that may be labelled."""
    return {"kind": "predictions", "rows": [asdict(entry) for entry in entries]}


def labels_record(labels: Mapping[str, bool], counting: set[str]) -> dict[str, Any]:
    """Return the record of labels: whether predictions were right.

    Predictions in `counting` become items.
    """
    return {
        "kind": "labels",
        "rows": [{"id": id, "correct": correct, "counts": id in counting} for id, correct in labels.items()],
    }


def revoked_record(reason: str) -> dict[str, Any]:
    """Return the record that revokes all certificates."""
    return {"kind": "revoked", "reason": reason}


def prediction_id(lineage: str, key: str) -> str:
    """Return the id of the prediction of an input under a calibration, the same each time."""
    return f"prd_{digest(lineage, key)}"


def is_asked(lineage: str, id: str, probability: float) -> bool:
    """Return whether the label of a prediction is asked for, drawn with `probability`.

    The draw depends on the id alone, not on confidence, answer or label.
    """
    return _uniform(lineage, id, "asked") < probability


def alarm_target(target_error: float) -> float:
    """Return the target error of the alarm for a gate with `target_error`.

    It is rounded up to a thousandth, which bounds the number of alarms.
    """
    return min(math.ceil(round(target_error * 1000, 6)) / 1000, 0.999)


def _uniform(*parts: str) -> float:
    return int(digest(*parts, chars=13), 16) / 16**13
