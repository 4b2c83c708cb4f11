"""Alarms that may be looked at after every item: wealth in a bet that something has changed.

Each alarm is a non-negative supermartingale that starts at 1 while nothing has changed. By Ville's
inequality the probability that it ever reaches 1 / level is at most `level`, however long it runs
and whenever it is looked at.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from abmll.assurance.certificates import check_level

# Error rates that the risk alarm bets on, as fractions of the way from the target to 1.
_ALTERNATIVES = tuple(2.0**-i for i in range(1, 7))
_SLOPES = (-1.0, 0.0, 1.0)
_JUMP = 0.01
_MOST_WEALTH = 1e100  # far beyond any level, and far from overflow


@dataclass
class RiskAlarm:
    """Bet that answers are wrong more often than `target_error`.

    The hypothesis that it tests is that each answer is wrong with probability at most
    `target_error`. The wealth is the likelihood ratio Bernoulli(p) to Bernoulli(target), averaged
    over alternatives p above the target and over the item s at which the change begins, with
    weights 1 / (s (s + 1)). So a change after a long good time is seen nearly as fast as one at the
    start. Against any error up to the target each factor has a mean of at most 1.

    `level` bounds the probability of a false alarm. The other fields are the state: the number of
    answers and of wrong ones, the wealth by alternative of changes that have begun, and the largest
    total wealth so far.
    """

    target_error: float
    level: float
    items: int = 0
    errors: int = 0
    begun: list[float] = field(default_factory=lambda: [0.0] * len(_ALTERNATIVES))
    peak: float = 1.0

    def __post_init__(self) -> None:
        check_level("target_error", self.target_error)
        check_level("level", self.level)

    @property
    def wealth(self) -> float:
        """Return the wealth: 1 at the start, small while errors stay below the target."""
        waiting = 1 / (self.items + 1)  # the weight of changes yet to begin
        return waiting + sum(self.begun) / len(self.begun)

    @property
    def raised(self) -> bool:
        """Return whether the wealth has ever reached 1 / level."""
        return self.peak >= 1 / self.level

    def update(self, wrong: bool) -> None:
        """Take one more answer, in the order of arrival."""
        self.items += 1
        self.errors += wrong
        starting = 1 / (self.items * (self.items + 1))
        for i, part in enumerate(_ALTERNATIVES):
            bet = self.target_error + (1 - self.target_error) * part
            ratio = bet / self.target_error if wrong else (1 - bet) / (1 - self.target_error)
            self.begun[i] = min((self.begun[i] + starting) * ratio, _MOST_WEALTH)
        self.peak = max(self.peak, self.wealth)


class ExchangeabilityAlarm:
    """Test, without labels, whether new confidences still look like the reference ones.

    This is a conformal test martingale (Vovk, Gammerman and Shafer, "Algorithmic Learning in a
    Random World", 7.1). The conformal p-value of a new value is its randomised rank among the
    reference and all values before it. While all are exchangeable, p-values are independent and
    uniform. The wealth is that of the "simple jumper". It bets on low p-values, on high ones, and
    on nothing, and at every step divides a hundredth of each stake evenly among the three.
    """

    def __init__(self, reference: Iterable[float], level: float) -> None:
        """Start from `reference` values, which are not tested themselves.

        `level` bounds the probability of a false alarm.
        """
        check_level("level", level)
        self.level = level
        self._sorted = sorted(reference)
        self._stakes = [1 / len(_SLOPES)] * len(_SLOPES)
        self._items = 0
        self._peak = 1.0

    @property
    def items(self) -> int:
        """Return the number of values tested."""
        return self._items

    @property
    def wealth(self) -> float:
        """Return the wealth: 1 at the start."""
        return sum(self._stakes)

    @property
    def raised(self) -> bool:
        """Return whether the wealth has ever reached 1 / level."""
        return self._peak >= 1 / self.level

    def add(self, value: float) -> None:
        """Add one more reference value, on which nothing is bet."""
        insort(self._sorted, value)

    def update(self, value: float, tie_break: float) -> float:
        """Take one more value, in the order of arrival, and return its p-value.

        `tie_break` is a draw from the uniform distribution on [0, 1], one for each value.
        """
        below = bisect_left(self._sorted, value)
        equal = bisect_right(self._sorted, value) - below + 1  # itself included
        p = (below + tie_break * equal) / (len(self._sorted) + 1)
        insort(self._sorted, value)
        total = self.wealth
        for i, slope in enumerate(_SLOPES):
            moved = (1 - _JUMP) * self._stakes[i] + _JUMP * total / len(_SLOPES)
            self._stakes[i] = min(moved * (1 + slope * (p - 0.5)), _MOST_WEALTH)
        self._items += 1
        self._peak = max(self._peak, self.wealth)
        return p
