"""Certified gates: hold the error among answers above a confidence threshold under a target.

The method is Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei, arXiv 2110.01052) for
the *selective* risk R(t) = P(wrong | confidence >= t). Thresholds are tested from strict to loose.
For a threshold t with k accepted items, e of them wrong, P(Bin(k, target) <= e) is a p-value of the
hypothesis "R(t) > target". The walk stops at the first p-value above delta. The last threshold that
passed is certified. The number of thresholds needs no correction: the walk errs only if it passes
the first true null.

**Why thresholds may come from the same items.** `coverage_cuts` uses confidences only, and cuts
between ranks: a cut accepts what lies strictly above the (k + 1)-th largest confidence. Given that
value t, the k items above it are independent draws of (confidence, wrong | confidence > t). So the
number of errors among them is Bin(k, R(t)) exactly, and each p-value is valid although its
threshold is random.

Which null comes first in the walk depends on the cuts too. Let tau be the strictest level at which
the risk reaches the target, and N the number of items above it. Given N, these items are
independent draws of risk R(tau) = target. The first true null t lies below tau. As R(t) > target =
R(tau), the items between them are wrong with a probability above the target. So the number of
errors above t is stochastically at least Bin(k, target), and the walk passes t with probability at
most delta.

This needs two conditions. As the threshold is lowered, the risk crosses the target once (for v
crossings the bound is v * delta). Confidences are not tied at tau. Cuts that are fixed on other
data need neither.

**Looking again as labels arrive** is several tests. `certify_looks` therefore tests at sizes that
are fixed beforehand, and splits delta among them. So all certificates that it ever gives hold
together with probability 1 - delta, whenever the caller stops.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, nbinom

Floats: TypeAlias = NDArray[np.float64]
LOOK_GROWTH = 1.5
# Numbers of errors that the cuts allow for. A cut's rank is the fewest items that pass with so many
# errors. The first cut is the largest, up to `_FIRST_ALLOWED` errors, whose rank is in the first
# tenth of the items: a stricter one would stop the walk at the first unlucky error.
_ALLOWED_ERRORS = (0, 1, 2, 3, 5, 8, 12, 18, 26, 38, 55, 80, 116, 168, 243, 352, 510, 740)
_FIRST_ALLOWED = 5
_MOST_LABELS = 1_000_000


@dataclass(frozen=True)
class Certificate:
    """Guarantee that answers above `threshold` are wrong with probability at most `target_error`.

    It holds with probability 1 - `delta` over the draw of the `n` labelled items. Of these,
    `accepted` have a confidence of at least `threshold`, and `errors` of those are wrong.
    `error_upper_bound` is the Clopper-Pearson bound of the error at the level of the test that
    passed. It is at most `target_error`, which is what is certified.
    """

    threshold: float
    target_error: float
    delta: float
    n: int
    accepted: int
    errors: int
    error_upper_bound: float

    @property
    def coverage(self) -> float:
        """Return the proportion of the labelled items whose confidence reaches the threshold."""
        return self.accepted / self.n


@dataclass(frozen=True)
class NotYet:
    """Answer that no threshold can be certified with these labels.

    `about_n_more_labels` is estimated from the items. It is None where even the most confident
    items are wrong no less often than the target: more labels of the same kind then promise
    nothing.
    """

    about_n_more_labels: int | None


def check_level(name: str, value: float) -> None:
    """Raise `ValueError` unless `value` lies strictly between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}")


@functools.lru_cache(maxsize=4096)
def fewest_accepted(target_error: float, delta: float, errors: int = 0) -> int:
    """Return the fewest accepted items, `errors` of them wrong, that certify `target_error`.

    Without errors it is ln(delta) / ln(1 - target_error), rounded up.
    """
    check_level("target_error", target_error)
    check_level("delta", delta)
    # The errors among n items are at most e exactly where the (e + 1)-th error comes after them.
    return errors + 1 + int(nbinom.isf(delta, errors + 1, target_error))


def coverage_cuts(confidences: Sequence[float] | Floats, target_error: float, delta: float) -> list[float]:
    """Return about ten thresholds, from strict to loose, that do not depend on labels.

    Their ranks depend on the number of confidences, `target_error` and `delta` alone. Each rank is
    the smallest that passes with one of the numbers of errors in `_ALLOWED_ERRORS`. The last cut
    accepts everything. The list is empty where even items without errors could not pass.
    """
    ordered = np.sort(np.asarray(confidences, dtype=np.float64))
    n = len(ordered)
    needed = fewest_accepted(target_error, delta)
    if n < needed:
        return []
    cuts = {0.0} | {
        # Strictly above the largest that is left out.
        math.nextafter(ordered[n - rank - 1], math.inf)
        for rank in _ranks(n, target_error, delta)
        if rank < n
    }
    strict_to_loose = np.array(sorted(cuts, reverse=True))
    # Fewer than the cut's rank where confidences are tied.
    accepted = n - np.searchsorted(ordered, strict_to_loose)
    return [float(cut) for cut in strict_to_loose[accepted >= needed]]


def _ranks(n: int, target_error: float, delta: float) -> list[int]:
    ranks: list[int] = []
    for errors in _ALLOWED_ERRORS:
        rank = fewest_accepted(target_error, delta, errors)
        if rank >= n:
            break
        if errors <= _FIRST_ALLOWED and rank <= n / 10:
            ranks = []
        ranks.append(rank)
    return ranks


def certify(
    confidences: Sequence[float] | Floats,
    correct: Sequence[bool] | NDArray[np.bool_],
    target_error: float,
    delta: float,
    cuts: Sequence[float],
) -> Certificate | NotYet:
    """Walk `cuts` from strict to loose while each passes, and certify the last that did.

    A cut accepts every confidence of at least its value. Cuts must be fixed without labels: by
    `coverage_cuts` of the same confidences, or on other data. Raises `ValueError` unless the cuts
    fall, the levels lie between 0 and 1, and there is one `correct` for each confidence.
    """
    check_level("target_error", target_error)
    check_level("delta", delta)
    values, wrong = np.asarray(confidences, dtype=np.float64), ~np.asarray(correct, dtype=np.bool_)
    if values.shape != wrong.shape:
        raise ValueError(f"{len(values)} confidences but {len(wrong)} outcomes")
    levels = np.asarray(cuts, dtype=np.float64)
    if np.any(np.diff(levels) >= 0):
        raise ValueError("cuts must go from strict to loose")
    if not len(levels):
        return NotYet(max(1, fewest_accepted(target_error, delta) - len(values)))
    order = np.argsort(values)[::-1]
    errors_of_top = np.concatenate([[0], np.cumsum(wrong[order])])
    accepted = len(values) - np.searchsorted(values[order][::-1], levels)
    errors = errors_of_top[accepted]
    passed = np.cumprod(binom.cdf(errors, accepted, target_error) <= delta)
    if not passed[0]:
        return NotYet(_about_more(len(values), int(accepted[0]), int(errors[0]), target_error, delta))
    last = int(passed.sum()) - 1
    k, e = int(accepted[last]), int(errors[last])
    bound = error_upper_bound(k, e, delta)
    return Certificate(float(levels[last]), target_error, delta, len(values), k, e, bound)


def _about_more(n: int, accepted: int, errors: int, target_error: float, delta: float) -> int | None:
    """Estimate the labels that the strictest cut still needs, at its observed coverage and error.

    The error is taken as (e + 1/2) / (k + 1), so that one observed error does not count as certain.
    """
    error = (errors + 0.5) / (accepted + 1)
    if accepted == 0 or error >= target_error:
        return None
    low, high = accepted, 2 * accepted + 1
    while not _would_pass(high, error, target_error, delta):
        low, high = high, 2 * high
        if high * n / accepted > _MOST_LABELS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _would_pass(middle, error, target_error, delta) else (middle, high)
    return max(1, math.ceil(high * n / accepted) - n)


def _would_pass(accepted: int, error: float, target_error: float, delta: float) -> bool:
    return bool(binom.cdf(math.floor(error * accepted), accepted, target_error) <= delta)


def error_upper_bound(accepted: int, errors: int, delta: float) -> float:
    """Return the Clopper-Pearson bound of the error rate.

    At the bound, `errors` or fewer have probability `delta`. It is 1 where all accepted items are
    wrong.
    """
    return 1.0 if errors >= accepted else float(beta.ppf(1 - delta, errors + 1, accepted - errors))


def look_sizes(first: int, n: int, target_error: float, delta: float) -> list[int]:
    """Return the numbers of labels, up to `n`, at which `certify_looks` tests.

    They are `first`, then each `LOOK_GROWTH` times the one before. `first` is the number of labels
    when the caller first asked, fixed before their outcomes were known. Sizes at which nothing
    could pass are left out, so that they spend none of `delta`. Raises `ValueError` where `first`
    is below 1.
    """
    if first < 1:
        raise ValueError("the first look needs a label")
    fewest = fewest_accepted(target_error, look_level(delta, 1))
    sizes, size = [], first
    while size <= n:
        if size >= fewest:
            sizes.append(size)
        size = math.ceil(LOOK_GROWTH * size)
    return sizes


def look_level(delta: float, look: int) -> float:
    """Return the part of `delta` that a look may spend: delta / (look (look + 1)), `look` from 1.

    The parts of all looks add up to `delta`.
    """
    return delta / (look * (look + 1))


def certify_looks(
    confidences: Sequence[float] | Floats,
    correct: Sequence[bool] | NDArray[np.bool_],
    target_error: float,
    delta: float,
    first: int,
) -> Certificate | NotYet:
    """Return the certificate of the latest look that gives one.

    Items come in the order in which their labels arrived. Look l tests the items up to its size at
    `look_level(delta, l)`. So all that is ever certified as labels are added holds together with
    probability 1 - `delta`. `NotYet` counts the labels up to a look that can be expected to
    succeed.
    """
    n = len(confidences)
    sizes = look_sizes(first, n, target_error, delta) if n else []
    about: int | None = 0
    for look in range(len(sizes), 0, -1):
        size, level = sizes[look - 1], look_level(delta, look)
        cuts = coverage_cuts(confidences[:size], target_error, level)
        found = certify(confidences[:size], correct[:size], target_error, level, cuts)
        if isinstance(found, Certificate):
            return replace(found, delta=delta)
        if look == len(sizes):
            about = found.about_n_more_labels
    if about is None:
        return NotYet(None)
    wanted = sizes[-1] + about if sizes else n
    return NotYet(_next_look(max(first, 1), n, wanted, target_error, delta) - n)


def _next_look(first: int, n: int, wanted: int, target_error: float, delta: float) -> int:
    """Return the smallest size of a look beyond `n` at which there are `wanted` labels."""
    fewest = fewest_accepted(target_error, look_level(delta, 1))
    size = first
    while size <= n or size < max(wanted, fewest):
        size = math.ceil(LOOK_GROWTH * size)
    return size


@dataclass(frozen=True)
class CoverageThreshold:
    """Threshold above which at least the proportion `target_coverage` of new inputs lies.

    `coverage` is k / (n + 1): the probability that a new exchangeable input is accepted, over the
    draw of the n confidences and of the input. Given the n confidences, the proportion accepted in
    the long run is Beta(k, n + 1 - k) where they are not tied; `low` and `high` are its 5 % and 95
    % points. The threshold says nothing about errors.
    """

    threshold: float
    target_coverage: float
    n: int
    coverage: float
    low: float
    high: float


def threshold_for_coverage(
    confidences: Sequence[float] | Floats, target_coverage: float
) -> CoverageThreshold:
    """Return the k-th largest confidence, k = ceil((n + 1) target).

    Where k exceeds n, the threshold is 0, which accepts everything. Raises `ValueError` unless the
    target lies between 0 and 1.
    """
    check_level("target_coverage", target_coverage)
    ordered = np.sort(np.asarray(confidences, dtype=np.float64))[::-1]
    n = len(ordered)
    k = math.ceil((n + 1) * target_coverage - 1e-12)
    if k > n:
        return CoverageThreshold(0.0, target_coverage, n, 1.0, 1.0, 1.0)
    low, high = map(float, beta.ppf((0.05, 0.95), k, n + 1 - k))
    return CoverageThreshold(float(ordered[k - 1]), target_coverage, n, k / (n + 1), low, high)
