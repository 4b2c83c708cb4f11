"""What is known of one adapter's gate: labelled outcomes, predictions that may be labelled, alarms. A fold over journal records.

`GateState.begin` and the `*_record` functions make records, `apply` takes them: what is on the disk and what is in memory
cannot differ. No text of a caller is kept; inputs, answers and options are digests.
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
from model_store.adapters.gate_journals import Record
from model_store.errors import UnsupportedFormatError
from model_store.tensors import canonical_json

FORMAT_VERSION = 1
_DIGEST_CHARS = 32
_OPTION_CHARS = 8
_MOST_CACHED = 64


def digest(*parts: object, chars: int = _DIGEST_CHARS) -> str:
    """The beginning of the SHA-256 of `parts`, in hexadecimal."""
    text = repr(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:chars]


def input_key(text: str, options: Sequence[str]) -> str:
    """Names an input: items with the same one are one item."""
    return digest(text, tuple(options))


def text_digest(text: str) -> str:
    """Names an answer or a label; space around it does not count."""
    return digest(text.strip())


def option_digests(options: Sequence[str]) -> list[str]:
    """Short names of the options, to recognise a label that is none of them."""
    return [text_digest(option)[:_OPTION_CHARS] for option in options]


@dataclass(frozen=True)
class Conditions:
    """What makes confidences comparable: their kind, and all that decides which posterior samples are drawn.

    `max_new_tokens` matters for free text only and is None otherwise.
    """

    confidence_kind: str
    samples: Samples
    seed: int
    max_new_tokens: int | None


@dataclass(frozen=True)
class Outcome:
    """One input with its outcome. `score` is 1 - p(right option); None where there were no options, or for feedback."""

    key: str
    confidence: float
    correct: bool
    score: float | None
    feedback: bool = False


@dataclass(frozen=True)
class Logged:
    """One prediction that may be labelled. `asked`: it is of the random share whose labels count.

    `gated_at` is the target error of the certified gate that let it pass; None where there was none or it abstained.
    `options` are short digests, empty for free text.
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
    """Since the calibration began. `risk_wealth` and `domain_wealth` are those of the alarms, 1 at the start."""

    logged: int
    asked: int
    labelled: int
    risk_wealth: float
    domain_wealth: float


@dataclass
class GateState:
    """The state that a journal's records add up to. Change it with `apply` only."""

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
    logged: dict[str, Logged] = field(default_factory=dict)
    labelled: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = {item.key for item in self.items}
        # A new run is a new test: its level is a share of the whole, and the shares add up to it.
        level = self.alarm_level / (self.run * (self.run + 1))
        self.domain = ExchangeabilityAlarm((item.confidence for item in self.items), level)
        self._certificates: dict[tuple[float, float], Certificate | NotYet] = {}
        self._id: str | None = None

    @classmethod
    def of(cls, records: Sequence[Record], alarm_level: float) -> GateState:
        """Replay a journal. Raises `UnsupportedFormatError` for one of another version."""
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
        )
        for record in rest:
            state.apply(record)
        return state

    @property
    def id(self) -> str:
        """Of the content: equal outcomes under equal conditions have equal ids."""
        if self._id is None:
            outcomes = [[item.key, item.confidence, item.correct] for item in self.items]
            content = canonical_json([self.adapter_id, asdict(self.conditions), outcomes])
            self._id = f"cal_{hashlib.sha256(content).hexdigest()[:_DIGEST_CHARS]}"
        return self._id

    @property
    def held(self) -> bool:
        """Whether more examples were announced, so that nothing may be looked at."""
        return self.first is None

    @property
    def accuracy(self) -> float:
        """Share of items that are right."""
        return sum(item.correct for item in self.items) / len(self.items)

    @property
    def confidences(self) -> list[float]:
        """Of all items, in the order of their labels."""
        return [item.confidence for item in self.items]

    @property
    def counts(self) -> Counts:
        """What was logged, asked for and labelled, and how the alarms stand."""
        return Counts(
            logged=self.past.logged + len(self.logged),
            asked=self.past.asked + sum(entry.asked for entry in self.logged.values()),
            labelled=self.past.labelled + len(self.labelled),
            risk_wealth=max((alarm.wealth for alarm in self.alarms.values()), default=1.0),
            domain_wealth=self.domain.wealth,
        )

    def certificate(self, target_error: float, delta: float) -> Certificate | NotYet:
        """What can be certified now. The state must not be held."""
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
        """Of the examples that were given with options; feedback has no scores."""
        return conformal_quantile([item.score for item in self.items if item.score is not None], alpha)

    def drift(self) -> str | None:
        """Why to revoke, if an alarm is raised."""
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
        """Take in a record that is in the journal."""
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
        """Records that stand for all so far, but for predictions: only the newest `keep` without a label are remembered.

        The domain alarm begins anew with the next run.
        """
        waiting = [entry for id, entry in self.logged.items() if id not in self.labelled]
        kept = waiting[len(waiting) - min(keep, len(waiting)) :]
        counts = self.counts
        past = Counts(
            counts.logged - len(kept), counts.asked - sum(e.asked for e in kept), counts.labelled, 1.0, 1.0
        )
        return [self._snapshot(past), predictions_record(kept)]

    def _snapshot(self, past: Counts) -> dict[str, Any]:
        return {
            "kind": "snapshot",
            "format_version": FORMAT_VERSION,
            "adapter_id": self.adapter_id,
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
            target = watched_target(entry.gated_at)
            alarm = self.alarms.setdefault(target, RiskAlarm(target, self.alarm_level))
            alarm.update(not correct)

    def _changed(self) -> None:
        self.version += 1
        self._certificates.clear()
        self._id = None


def begin_record(
    adapter_id: str, conditions: Conditions, items: Sequence[Outcome], *, held: bool, version: int
) -> dict[str, Any]:
    """The first record of a journal; `held` while more examples are announced."""
    return {
        "kind": "snapshot",
        "format_version": FORMAT_VERSION,
        "adapter_id": adapter_id,
        "lineage": digest(adapter_id, conditions, tuple(items), version),
        "conditions": asdict(conditions),
        "items": [asdict(item) for item in items],
        "first": None if held else len(items),
        "version": version,
        "run": 1,
        "revoked": None,
        "alarms": [],
        "past": asdict(Counts(0, 0, 0, 1.0, 1.0)),
    }


def examples_record(items: Iterable[Outcome], *, held: bool) -> dict[str, Any]:
    """More examples; `held` while still more are announced."""
    return {"kind": "examples", "items": [asdict(item) for item in items], "held": held}


def predictions_record(entries: Iterable[Logged]) -> dict[str, Any]:
    """Predictions that may be labelled."""
    return {"kind": "predictions", "rows": [asdict(entry) for entry in entries]}


def labels_record(labels: Mapping[str, bool], counting: set[str]) -> dict[str, Any]:
    """Whether predictions were right; those in `counting` become items."""
    return {
        "kind": "labels",
        "rows": [{"id": id, "correct": correct, "counts": id in counting} for id, correct in labels.items()],
    }


def revoked_record(reason: str) -> dict[str, Any]:
    """No certificate holds from here on."""
    return {"kind": "revoked", "reason": reason}


def prediction_id(lineage: str, key: str) -> str:
    """Of one input under one calibration: asked twice, it is one prediction."""
    return f"prd_{digest(lineage, key)}"


def is_asked(lineage: str, id: str, share: float) -> bool:
    """Whether the prediction is of the random share, whatever its confidence, answer or label."""
    return _uniform(lineage, id, "asked") < share


def watched_target(target_error: float) -> float:
    """The target that an alarm watches: rounded up to a thousandth, so that there are not endlessly many."""
    return min(math.ceil(round(target_error * 1000, 6)) / 1000, 0.999)


def _uniform(*parts: str) -> float:
    return int(digest(*parts, chars=13), 16) / 16**13
