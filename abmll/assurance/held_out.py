"""An adapter's own temperature, from its held-out answers (docs/confidence.md).

Tasks differ in how far a fit to few examples can be trusted, by much more than the number of
examples says. So the posterior's rule for the temperature is the prior here, and the held-out
answers are the data. An adapter of several questions has a temperature for each, drawn towards the
one of all its answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from abmll.assurance.folds import SMALLEST_PROBABILITY, HeldOutAnswer

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.text.prompting import LabelledPrompt
    from abmll.text.tasks import Example

# Standard deviation, between tasks, of log(T of the task / T of the rule): with fixed classes, and
# for multiple choice, where few answers say little about the next one. The NLL on validation tasks
# by this number is in benchmarks/results/fold_spread.md.
SPREAD, CHOICE_SPREAD = 1.0, 0.25
# Number of answers to a question at which its own factor counts as much as that of all questions.
# With a standard deviation s of the logarithm between questions of one adapter, and an information
# of i by answer, it is 1 / (i s^2): here for i = 0.25 and s = 0.5. It was not fitted.
QUESTION_WEIGHT = 16
# Posterior samples that a held-out answer is averaged over.
SAMPLES = 8
# Logarithms of the factor that are tried, in standard deviations: from -3 to 3 in steps of 1/40.
_TRIED = [step / 40 for step in range(-120, 121)]


@dataclass(frozen=True)
class QuestionSummary:
    """What the held-out answers to one question say; the fields are those of `HeldOutSummary`.

    Where there are no answers, `n` is 0, `nll` is None, and the factor is that of all questions.
    """

    instruction: str
    n: int
    correct: int
    nll: float | None
    temperature_factor: float


@dataclass(frozen=True)
class HeldOutSummary:
    """What the held-out answers of an adapter say.

    `n` answers were given, `correct` of them right. `nll` is their mean NLL, in nats, at the
    temperature of the rule. `temperature_factor` times that temperature is the adapter's own.
    Answers where the input does not tell the label are not among them. An adapter of several
    questions has the same `by_question`.
    """

    n: int
    correct: int
    nll: float
    temperature_factor: float
    by_question: tuple[QuestionSummary, ...] = ()

    @classmethod
    def of(
        cls,
        answers: Sequence[HeldOutAnswer],
        *,
        multiple_choice: bool = False,
        instructions: Sequence[str] = (),
    ) -> Self:
        """Summarise answers, of which at least one is `tellable`.

        `instructions` has the instruction of each example of the support. The logarithm of a
        question's factor is the mean of that of its own n answers and that of all, with the weights
        n and `QUESTION_WEIGHT`.
        """
        tellable = [answer for answer in answers if answer.tellable]
        spread = CHOICE_SPREAD if multiple_choice else SPREAD
        common = temperature_factor(tellable, spread)
        found = []
        questions = list(dict.fromkeys(instructions))
        for instruction in questions if len(questions) > 1 else ():
            own = [answer for answer in tellable if instructions[answer.index] == instruction]
            share = len(own) / (len(own) + QUESTION_WEIGHT)
            factor = temperature_factor(own, spread) ** share * common ** (1 - share)
            correct = sum(answer.correct for answer in own)
            found.append(
                QuestionSummary(instruction, len(own), correct, _mean_nll(own) if own else None, factor)
            )
        correct = sum(answer.correct for answer in tellable)
        return cls(len(tellable), correct, _mean_nll(tellable), common, tuple(found))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest, without `by_question` where there is none."""
        values = asdict(self)
        return values if self.by_question else {k: v for k, v in values.items() if k != "by_question"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        found = tuple(QuestionSummary(**row) for row in values.get("by_question", ()))
        return cls(**{**values, "by_question": found})


def _mean_nll(answers: Sequence[HeldOutAnswer]) -> float:
    return math.fsum(answer.nll for answer in answers) / len(answers)


def at_own_temperature(
    adaptation: Adaptation,
    support: Sequence[Example],
    prompts: Sequence[LabelledPrompt],
    answers: Sequence[HeldOutAnswer],
) -> tuple[Adaptation, HeldOutSummary]:
    """Return an adaptation at the temperatures that held-out answers choose, and their summary.

    `prompts` are the examples of the support in tokens. At least one answer is `tellable`.
    """
    instructions = [example.instruction for example in support]
    found = HeldOutSummary.of(answers, multiple_choice=adaptation.multiple_choice, instructions=instructions)
    tokens = {text: row.prompt.question for text, row in zip(instructions, prompts, strict=True)}
    own = {tokens[question.instruction]: question.temperature_factor for question in found.by_question}
    posterior = adaptation.posterior.with_temperature_times(found.temperature_factor, own)
    return replace(adaptation, posterior=posterior), found


def temperature_factor(answers: Sequence[HeldOutAnswer], spread: float = SPREAD) -> float:
    """Return the most probable factor on the temperature at which `answers` were given.

    Its logarithm is N(0, spread^2) a priori. A label counts as (n + 1) / (n + 2) of an observation,
    and the other options have the rest in equal parts (after Platt 1999): n right answers do not
    show that there are no wrong ones.
    """
    share = 1 / (len(answers) + 2)
    rows = [_Row.of(answer, share) for answer in answers]

    def loss(deviations: float) -> float:
        power = math.exp(-spread * deviations)
        return math.fsum(row.loss(power) for row in rows) + deviations**2 / 2

    return math.exp(spread * min(_TRIED, key=loss))


@dataclass(frozen=True)
class _Row:
    """Log-probabilities of the options, less the highest one, and their mean under the target."""

    logs: tuple[float, ...]
    expected: float

    @classmethod
    def of(cls, answer: HeldOutAnswer, share: float) -> Self:
        """Read one answer; the options that are not the label have `share` of the target."""
        logs = [math.log(max(p, SMALLEST_PROBABILITY)) for p in answer.probabilities]
        below = tuple(value - max(logs) for value in logs)
        rest = sum(below) - below[answer.label]
        return cls(below, (1 - share) * below[answer.label] + share * rest / (len(below) - 1))

    def loss(self, power: float) -> float:
        """Return the cross-entropy of the target and the normalised options at `power`, in nats."""
        return math.log(math.fsum(math.exp(power * value) for value in self.logs)) - power * self.expected
