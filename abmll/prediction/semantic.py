"""Free-text answers by meaning: clusters of answers, and entropies over them in nats.

See docs/free-text.md. Semantic entropy is from Farquhar, Kossen, Kuhn and Gal ("Detecting
hallucinations in large language models using semantic entropy", Nature 2024). This is their
probability-weighted estimator: every candidate text has its exact probability under every posterior
sample. The entropy is over the meanings, given that the answer is one of the candidates.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from abmll.prediction.uncertainty import Predictive, blocks_of, entropy, summarise

ARTICLES = frozenset({"a", "an", "the"})
# Punctuation that distinguishes answers: C# and C, 50% and 50, AT&T; per mille and per ten
# thousand, the section sign, and the primes of feet and inches.
_KEPT_MARKS = frozenset("#%&@*/\\\u2030\u2031\u00a7\u2032\u2033")
# A mark that belongs to a number (1.5, 10:30, .5), and an apostrophe in a word (we're, 5'10).
_INSIDE = re.compile(r"[.,:](?=\d)|(?<=[^\W_])'(?=[^\W_])")
# A sign (-5, but not the dash of 2019-2020), and a minus behind a word (A-, O-, Cl-), which people
# also write as U+2212, as a hyphen or as an en dash.
_MINUS = re.compile(
    r"(?<![^\W_])[-\u2212](?=\d)|(?<=[^\W_])[-\u2212\u2010\u2013](?![^\W_]|[-\u2212\u2010\u2013])"
)
# Where NFKC would run a number into its power (10^5 becomes 105) or into the fraction behind it.
_POWER = re.compile(r"(?<=\d)(?=[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b])")
_FRACTION = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215f\u2189])")
# One spelling of an apostrophe and of a fraction's slash.
_ONE_SPELLING = str.maketrans({"\u2019": "'", "\u2044": "/"})


class Equivalence(Protocol):
    """Decides when two answers mean the same.

    It should be reflexive and symmetric. It need not be transitive.
    """

    def same(self, query_text: str, a: str, b: str) -> bool:
        """Return whether `a` and `b`, as answers to `query_text`, mean the same."""


class NormalisedMatch:
    """An `Equivalence`: answers are the same where `normalise` makes them the same text.

    The query does not matter.
    """

    def same(self, query_text: str, a: str, b: str) -> bool:
        """See `Equivalence`."""
        return normalise(a) == normalise(b)


def normalise(text: str) -> str:
    """Return `text` without case, articles, punctuation and extra space.

    SQuAD's scores compare answers like this. Unlike there, what may change an answer's meaning
    stays: marks inside numbers and words (`1.5`, `we're`), a sign before a number, a minus behind a
    word (`A-`), powers (`10^5`, however it is written), the marks in `_KEPT_MARKS`, symbols
    (`C++`), and an article that nothing follows (`vitamin A`). A text of punctuation alone stays.
    """
    spaced = _FRACTION.sub(" ", _POWER.sub("^", text))
    folded = unicodedata.normalize("NFKC", spaced).casefold().translate(_ONE_SPELLING)
    inside = {match.start(): folded[match.start()] for match in _INSIDE.finditer(folded)}
    inside |= {match.start(): "-" for match in _MINUS.finditer(folded)}
    kept = [inside.get(i) or _without_punctuation(mark) for i, mark in enumerate(folded)]
    words = "".join(kept).split()
    named = [word for i, word in enumerate(words) if word not in ARTICLES or i == len(words) - 1]
    return " ".join(named) or " ".join(folded.split())


def _without_punctuation(mark: str) -> str:
    category = unicodedata.category(mark)
    if category == "Pd":
        return " "
    return "" if category.startswith("P") and mark not in _KEPT_MARKS else mark


def cluster(query_text: str, texts: Sequence[str], equivalence: Equivalence) -> list[list[int]]:
    """Return the indices of `texts` by meaning.

    Each text joins the first cluster all of whose members mean the same, or begins one. So all
    members of a cluster are equivalent to each other. Where a ~ b and b ~ c only, c stays apart
    from a and b: this gives more clusters, and more entropy, than merging them would. It takes at
    most C (C - 1) / 2 comparisons of C texts.
    """
    clusters: list[list[int]] = []
    for i, text in enumerate(texts):
        for members in clusters:
            if all(equivalence.same(query_text, texts[j], text) for j in members):
                members.append(i)
                break
        else:
            clusters.append([i])
    return clusters


@dataclass(frozen=True)
class Cluster:
    """Candidate answers that mean the same, the most probable one first.

    `probability` is the sum of the members' probabilities in the predictive. `share` is the
    probability of the cluster given that the answer is one of the candidates.
    """

    members: tuple[str, ...]
    probability: float
    share: float

    @property
    def answer(self) -> str:
        """Return the most probable member."""
        return self.members[0]


@dataclass(frozen=True)
class SemanticEntropy:
    """Entropies over meanings, given that the answer is one of the candidates, in nats.

    `total` is the entropy of the predictive. `expected` is the mean entropy of the samples, each
    weighted by the probability that it gives to the candidates. `mutual_information` is the
    difference, corrected for the number of samples: how much the samples disagree.
    """

    total: float
    expected: float
    mutual_information: float


@dataclass(frozen=True)
class TextAnswer:
    """A free-text answer, with its uncertainty and the other candidates.

    `sequence_logprob` is in nats. `tokens` counts the end of the text as one. `complete` says
    whether the model ended the text; one that was cut off has the probability of all texts that
    begin so. `clusters` are all candidates by meaning, the most probable first; the answer is the
    first one's.
    """

    sequence_logprob: float
    tokens: int
    complete: bool
    entropy: SemanticEntropy
    clusters: tuple[Cluster, ...]

    @property
    def logprob_per_token(self) -> float:
        """Return the answer's log-probability divided by its number of tokens."""
        return self.sequence_logprob / self.tokens


@dataclass(frozen=True)
class Candidate:
    """A text that some posterior sample wrote; `complete` unless it was cut off."""

    text: str
    tokens: int
    complete: bool


def read_answers(
    query_text: str,
    candidates: Sequence[Candidate],
    log_probs: Tensor,
    equivalence: Equivalence,
    *,
    samples: int,
    paired: bool = False,
) -> tuple[Predictive, TextAnswer]:
    """Return the predictive over meanings, and the answer.

    The answer is the most probable text of the most probable meaning. `log_probs` [max(S, 1), C]
    are the log-probabilities of whole texts under each sample. S is `samples` (0: the mean alone).
    `paired` is as in `summarise`.

    The predictive's options are the clusters' answers. Its probabilities are not renormalised over
    the candidates, so the confidence is a lower bound of the probability of that meaning: texts
    that no sample wrote count as one more outcome. Renormalised, an answer without a rival would be
    certain, however improbable it is. With S = 0 and one answer a sample, no answer has a rival.
    """
    scores = log_probs.double()
    own = _log_mean(scores)
    order = sorted(range(len(candidates)), key=lambda i: -float(own[i]))
    found = cluster(query_text, [candidates[i].text for i in order], equivalence)
    groups = [[order[i] for i in members] for members in found]
    masses = _at_most_one(torch.stack([scores[:, members].logsumexp(-1) for members in groups], -1))
    mean = _log_mean(masses)
    ranked = sorted(range(len(groups)), key=lambda k: -float(mean[k]))
    groups, masses, mean = [groups[k] for k in ranked], masses[:, ranked], mean[ranked]
    clusters = tuple(
        Cluster(tuple(candidates[i].text for i in members), probability, share)
        for members, probability, share in zip(
            groups, mean.exp().tolist(), mean.softmax(0).tolist(), strict=True
        )
    )
    best = groups[0][0]
    answer = TextAnswer(
        sequence_logprob=min(0.0, float(own[best])),
        tokens=candidates[best].tokens,
        complete=candidates[best].complete,
        entropy=semantic_entropy(masses, paired=paired),
        clusters=clusters,
    )
    texts = tuple(c.answer for c in clusters)
    return summarise(texts, masses.exp(), samples=samples, paired=paired), answer


def semantic_entropy(log_masses: Tensor, *, paired: bool = False) -> SemanticEntropy:
    """Return the entropies of the clusters' log-probabilities [S, K] under each sample.

    `paired` is as in `summarise`. Given that the answer is a candidate, cluster k under sample n
    has q_n(k) = p_n(k) / Z_n, and n itself the weight w_n = Z_n / sum Z, with Z_n = sum_k p_n(k).
    The mutual information of meaning and weights is total H[sum_n w_n q_n] less expected sum_n w_n
    H[q_n]. The jackknife over independent blocks corrects its bias, as in `jackknife_information`.
    """
    if log_masses.shape[1] == 1:  # exact zeros, so that a threshold of 0 is met
        return SemanticEntropy(0.0, 0.0, 0.0)
    log_totals, within = log_masses.logsumexp(-1), log_masses.softmax(-1)
    total, expected = _entropies(log_totals, within)
    information = total - expected
    blocks = len(blocks_of(log_masses, paired=paired))
    if blocks > 1:
        block = torch.arange(len(log_totals)) // (len(log_totals) // blocks)
        left_out = block == torch.arange(blocks)[:, None]
        total_without, expected_without = _entropies(log_totals.masked_fill(left_out, -math.inf), within)
        information = blocks * information - (blocks - 1) * (total_without - expected_without).mean()
    return SemanticEntropy(float(total), float(expected), max(0.0, float(information)))


def _entropies(log_totals: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    """Return total and expected entropy [...] of samples with log Z_n [..., S] and q_n [S, K]."""
    weights = log_totals.softmax(-1)
    return entropy(weights @ within), weights @ entropy(within)


def _log_mean(scores: Tensor) -> Tensor:
    """Return the log of the mean over samples of exp(`scores`), for `scores` [S, C]."""
    return scores.logsumexp(0) - math.log(len(scores))


def _at_most_one(log_masses: Tensor) -> Tensor:
    """Divide rows [S, K] of log-probabilities by their sum where it is over one.

    Rounding can bring it there. So can the `output` family, in which every text has other noise.
    """
    return log_masses - log_masses.logsumexp(-1, keepdim=True).clamp_min(0)
