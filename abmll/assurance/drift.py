"""Alarms that may be looked at after every item: wealth in a bet against "nothing has changed".

Each is a non-negative supermartingale that starts at 1 while nothing has changed, so by Ville's inequality the probability
that it ever reaches 1 / level is at most `level`, however long it runs and whenever it is looked at.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from abmll.assurance.certificates import check_level

# Alternatives that the risk alarm bets on: so far of the way from the target to an error of one.
_ALTERNATIVES = tuple(2.0**-i for i in range(1, 7))
_SLOPES = (-1.0, 0.0, 1.0)
_JUMP = 0.01
_MOST_WEALTH = 1e100  # no overflow; far beyond any level


@dataclass
class RiskAlarm:
    """Bets that answers are wrong more often than `target_error`, against the hypothesis that each is wrong with at most that.

    The wealth is that of likelihood ratios Bernoulli(p) to Bernoulli(target), averaged over alternatives p above the target and
    over the item s at which the change begins, with weights 1 / (s (s + 1)): a change after a long good time is seen nearly
    as fast as one at the start. Against any error up to the target each factor has mean at most 1.

    `level` bounds the probability of a false alarm. The other fields are the state: answers seen and wrong ones among them,
    the wealth of changes that have begun by alternative, and the most that the whole has been.
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
        """1 at the start; small while nothing is amiss."""
        waiting = 1 / (self.items + 1)  # the weight of changes yet to begin
        return waiting + sum(self.begun) / len(self.begun)

    @property
    def raised(self) -> bool:
        """Whether the wealth has ever reached 1 / level."""
        return self.peak >= 1 / self.level

    def update(self, wrong: bool) -> None:
        """One more answer, in the order of arrival."""
        self.items += 1
        self.errors += wrong
        starting = 1 / (self.items * (self.items + 1))
        for i, part in enumerate(_ALTERNATIVES):
            bet = self.target_error + (1 - self.target_error) * part
            ratio = bet / self.target_error if wrong else (1 - bet) / (1 - self.target_error)
            self.begun[i] = min((self.begun[i] + starting) * ratio, _MOST_WEALTH)
        self.peak = max(self.peak, self.wealth)


class ExchangeabilityAlarm:
    """Tests without labels whether new confidences still look like the reference ones: a conformal test martingale.

    Each new value's conformal p-value is its randomised rank among the reference and all values before; while all are
    exchangeable these are independent and uniform (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World",
    7.1). Wealth is that of the "simple jumper", which bets on low, on high, or on nothing, and at every step shares a
    hundredth of each stake among the three.
    """

    def __init__(self, reference: Iterable[float], level: float) -> None:
        """`reference` values are not tested themselves. `level` bounds the probability of a false alarm."""
        check_level("level", level)
        self.level = level
        self._sorted = sorted(reference)
        self._stakes = [1 / len(_SLOPES)] * len(_SLOPES)
        self._items = 0
        self._peak = 1.0

    @property
    def items(self) -> int:
        """Values tested."""
        return self._items

    @property
    def wealth(self) -> float:
        """1 at the start."""
        return sum(self._stakes)

    @property
    def raised(self) -> bool:
        """Whether the wealth has ever reached 1 / level."""
        return self._peak >= 1 / self.level

    def add(self, value: float) -> None:
        """One more reference value, which is not bet on."""
        insort(self._sorted, value)

    def update(self, value: float, tie_break: float) -> float:
        """One more value, in the order of arrival; returns its p-value. `tie_break` is drawn uniformly from [0, 1] for it."""
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
