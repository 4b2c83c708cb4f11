"""Simulate drift alarms: how soon do they come after a change, and how often without one?

    python -m benchmarks.drift

The inputs are those of the toy of `certified_gates`, and a certificate gates them. A random
proportion (`--share`) of the served predictions is labelled. Labels of accepted answers go to the
risk alarm, confidences of all answers to the domain alarm. The streams are:

- stationary: the distribution of the calibration;
- at target: stationary, but accepted answers are wrong exactly as often as the target allows, the
  worst case without a change;
- label shift: from the change on, the probability of a right answer is multiplied by a factor below
  one, at the same confidences;
- new domain: from the change on, confidences come from Beta(2, 3), and are true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta, binomtest

from abmll.assurance.certificates import Certificate, certify, coverage_cuts
from abmll.assurance.drift import ExchangeabilityAlarm, RiskAlarm
from benchmarks import common
from benchmarks.certified_gates import TOY

NEW_DOMAIN = (2.0, 3.0)


@dataclass(frozen=True)
class Stream:
    """Stream of served predictions that changes after `change` inputs.

    Confidences then come from Beta(`domain`), and the probability of a right answer is multiplied
    by `right`. `at_target` sets the error of accepted answers to the target throughout.
    """

    name: str
    change: int
    domain: tuple[float, float] = TOY
    right: float = 1.0
    at_target: bool = False


def run(
    stream: Stream,
    length: int,
    labels: int,
    target: float,
    share: float,
    level: float,
    rng: np.random.Generator,
) -> tuple[int | None, int | None, int]:
    """Run both alarms on one stream of `length` inputs.

    Return the number of inputs until the risk alarm, that until the domain alarm (None: no alarm),
    and the number of labels between the change and the risk alarm.
    """
    confidence = rng.beta(*TOY, labels)
    found = certify(
        confidence,
        rng.random(labels) < confidence,
        target,
        0.1,
        coverage_cuts(confidence, target, 0.1),
    )
    threshold = found.threshold if isinstance(found, Certificate) else float(beta.isf(0.2, *TOY))
    before, after = rng.beta(*TOY, stream.change), rng.beta(*stream.domain, length - stream.change)
    served = np.append(before, after)
    chance = served * np.where(np.arange(length) < stream.change, 1.0, stream.right)
    if stream.at_target:
        chance = np.full(length, 1 - target)
    wrong = rng.random(length) >= chance
    asked = rng.random(length) < share
    risk, domain = RiskAlarm(target, level), ExchangeabilityAlarm(confidence, level)
    risk_at = domain_at = None
    labelled = 0
    for i in range(length):
        if domain_at is None:
            domain.update(float(served[i]), float(rng.random()))
            domain_at = i + 1 if domain.raised else None
        if risk_at is None and asked[i] and served[i] >= threshold:
            labelled += i >= stream.change
            risk.update(bool(wrong[i]))
            risk_at = i + 1 if risk.raised else None
        if risk_at and domain_at:
            break
    return risk_at, domain_at, labelled


def summary(raised: list[int | None], change: int) -> dict[str, Any]:
    """Count alarms before the change and after it, with the delay of the latter in inputs."""
    false = sum(at is not None and at <= change for at in raised)
    delays = [at - change for at in raised if at is not None and at > change]
    quantiles = np.quantile(delays, [0.5, 0.9]) if delays else [np.nan, np.nan]
    return {
        "runs": len(raised), "false": false, "raised": len(delays),
        "median_delay": float(quantiles[0]), "delay_90": float(quantiles[1]),
    }  # fmt: skip


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--length", type=int, default=3000)
    parser.add_argument("--change", type=int, default=1500)
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--target", type=float, default=0.2)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--level", type=float, default=0.05)
    options = parser.parse_args()
    if options.quick:
        options.runs, options.length, options.change = 10, 400, 200
    streams = [
        Stream("stationary", options.length),
        Stream("at target", options.length, at_target=True),
        Stream("label shift, right x 0.8", options.change, right=0.8),
        Stream("label shift, right x 0.5", options.change, right=0.5),
        Stream("new domain", options.change, domain=NEW_DOMAIN),
    ]
    rows, data = [], []
    for number, stream in enumerate(streams):
        rng = np.random.default_rng([options.seed, number])
        outcomes = [
            run(stream, options.length, options.labels, options.target, options.share, options.level, rng)
            for _ in range(options.runs)
        ]
        labels = [after for risk, _, after in outcomes if risk is not None and risk > stream.change]
        for alarm, column in (("risk", 0), ("domain", 1)):
            found = summary([outcome[column] for outcome in outcomes], stream.change)
            late = options.runs - found["false"]
            interval = binomtest(found["false"], options.runs).proportion_ci(0.95, method="exact")
            rate = f"{found['false'] / options.runs:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
            changed = stream.change < options.length
            needed = f"{np.median(labels):.0f}" if changed and alarm == "risk" and labels else ""
            rows.append(
                [
                    stream.name, alarm, rate,
                    f"{found['raised'] / late:.2f}" if changed and late else "",
                    f"{found['median_delay']:.0f} / {found['delay_90']:.0f}" if found["raised"] else "", needed,
                ]
            )  # fmt: skip
            data.append({"stream": stream.name, "alarm": alarm, **found, "median_labels": needed or None})
        print(*rows[-2:], sep="\n", flush=True)
    head = [
        "stream",
        "alarm",
        "false alarms [95 %]",
        "raised after the change",
        "delay in inputs, median / 90 %",
        "labels",
    ]
    about = [
        f"{options.runs} streams of {options.length} inputs, changed after {options.change}; {options.labels} calibration "
        f"labels, target error {options.target:g}, a random {options.share:.0%} labelled, alarm level {options.level:g}: by "
        "Ville's inequality at most that proportion of streams without a change may ever alarm. False alarms are those before "
        "the change, or in the whole of a stream without one. `labels`: median number of labelled accepted answers between "
        "change and risk alarm. Where nothing could be certified, the gate accepts the fifth with the highest confidence."
    ]
    common.write_results(
        "drift",
        "Drift alarms",
        about,
        [common.table(head, rows)],
        {"level": options.level, "rows": data},
        options,
    )


if __name__ == "__main__":
    main()
