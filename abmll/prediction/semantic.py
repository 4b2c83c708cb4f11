"""Free-text answers by what they mean (docs/free-text.md): clusters of answers, and the entropies over them, in nats.

Semantic entropy is Farquhar, Kossen, Kuhn and Gal's ("Detecting hallucinations in large language models using semantic
entropy", Nature 2024), its probability-weighted estimator: every candidate text has its exact probability under every
posterior sample, and an answer's uncertainty is that between meanings, given that the answer is one of the candidates.
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
# Punctuation that tells answers apart: C# and C, 50% and 50, AT&T.
_KEPT_MARKS = frozenset("#%&@*/\\")
# A mark that belongs to a number (1.5, 10:30, .5), and a sign (-5, but not the dash of 2019-2020).
_IN_NUMBER = re.compile(r"[.,:](?=\d)|(?<![^\W_])-(?=\d)")


class Equivalence(Protocol):
    """When two answers mean the same. Expected to be reflexive and symmetric, not to be transitive."""

    def same(self, question: str, a: str, b: str) -> bool:
        """Whether `a` and `b`, as answers to `question`, mean the same."""


class NormalisedMatch:
    """Answers are the same where `normalise` makes them the same text; the question does not matter."""

    def same(self, question: str, a: str, b: str) -> bool:
        """See `Equivalence`."""
        return normalise(a) == normalise(b)


def normalise(text: str) -> str:
    """`text` without case, articles, punctuation and extra space, as SQuAD's scores compare answers.

    Other than there, what may change an answer's meaning stays: marks inside numbers and a sign before one, the marks in
    `#%&@*/` and symbols (`C++`), and an article that nothing follows (`vitamin A`). A text of punctuation alone stays as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    numeric = {match.start() for match in _IN_NUMBER.finditer(folded)}
    kept = [mark if i in numeric else _without_punctuation(mark) for i, mark in enumerate(folded)]
    words = "".join(kept).split()
    named = [word for i, word in enumerate(words) if word not in ARTICLES or i == len(words) - 1]
    return " ".join(named) or " ".join(folded.split())


def _without_punctuation(mark: str) -> str:
    category = unicodedata.category(mark)
    if category == "Pd":
        return " "
    return "" if category.startswith("P") and mark not in _KEPT_MARKS else mark


def cluster(question: str, texts: Sequence[str], equivalence: Equivalence) -> list[list[int]]:
    """Indices of `texts` by meaning: each text joins the first cluster whose every member means the same, or begins one.

    So all members of a cluster are equivalent to each other. An equivalence that is not transitive is not closed: where a ~ b
    and b ~ c only, c stays apart. That keeps more clusters, and more entropy, than merging would. At most C (C - 1) / 2
    comparisons.
    """
    clusters: list[list[int]] = []
    for i, text in enumerate(texts):
        for members in clusters:
            if all(equivalence.same(question, texts[j], text) for j in members):
                members.append(i)
                break
        else:
            clusters.append([i])
    return clusters


@dataclass(frozen=True)
class Cluster:
    """Candidate answers that mean the same, the most probable one first.

    `probability` is what the posterior predictive gives to the members, `share` the same as a part of all candidates'.
    """

    members: tuple[str, ...]
    probability: float
    share: float

    @property
    def answer(self) -> str:
        """The most probable member."""
        return self.members[0]


@dataclass(frozen=True)
class SemanticEntropy:
    """Entropies between meanings, given that the answer is one of the candidates, in nats.

    `total` is that of the predictive's shares, `expected` the average within a weight sample (by how much of its probability
    the candidates have), `mutual_information` the difference, corrected for the number of samples: the weights' disagreement.
    """

    total: float
    expected: float
    mutual_information: float


@dataclass(frozen=True)
class TextAnswer:
    """What is known of a free-text answer: its own log-probability in nats, its tokens (its end is one), and its rivals.

    `complete` says whether the model ended it; one that was cut off has the probability of all texts that begin so.
    `clusters` are all candidates by meaning, the most probable first: the answer is the first one's.
    """

    sequence_logprob: float
    tokens: int
    complete: bool
    entropy: SemanticEntropy
    clusters: tuple[Cluster, ...]

    @property
    def logprob_per_token(self) -> float:
        """The answer's log-probability by its number of tokens."""
        return self.sequence_logprob / self.tokens


@dataclass(frozen=True)
class Candidate:
    """A text that some posterior sample wrote; `complete` unless it was cut off."""

    text: str
    tokens: int
    complete: bool


def read_answers(
    question: str,
    candidates: Sequence[Candidate],
    log_probs: Tensor,
    equivalence: Equivalence,
    *,
    samples: int,
    paired: bool = False,
) -> tuple[Predictive, TextAnswer]:
    """The predictive over meanings, and the answer: the most probable text of the most probable meaning.

    `log_probs` [max(S, 1), C] are whole texts' under each sample, S is `samples` (0: the mean alone), `paired` as in `summarise`.

    The predictive's options are the clusters' answers. Its probabilities are not renormalised over the candidates, so the
    confidence is a lower bound of what the model gives to that meaning: texts that nobody wrote count against it, as one
    more outcome. Renormalised, an answer without a rival would be certain however improbable it is, as is any with S = 0.
    """
    scores = log_probs.double()
    own = _log_mean(scores)
    order = sorted(range(len(candidates)), key=lambda i: -float(own[i]))
    found = cluster(question, [candidates[i].text for i in order], equivalence)
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
    """From the clusters' log-probabilities [S, K] under each sample; `paired` as in `summarise`.

    Given that the answer is a candidate, cluster k under sample n has q_n(k) = p_n(k) / Z_n, and n itself the weight
    w_n = Z_n / sum Z with Z_n = sum_k p_n(k). Total H[sum_n w_n q_n] less expected sum_n w_n H[q_n] is the mutual information
    of meaning and weights. Its bias goes by the jackknife over independent blocks, as in `jackknife_information`.
    """
    if log_masses.shape[1] == 1:  # exactly, so that a gate at 0 lets it through
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
    """Total and expected entropy [...] of samples with log Z_n [..., S] and q_n [S, K]."""
    weights = log_totals.softmax(-1)
    return entropy(weights @ within), weights @ entropy(within)


def _log_mean(scores: Tensor) -> Tensor:
    """log mean_n exp of [S, C], over the samples."""
    return scores.logsumexp(0) - math.log(len(scores))


def _at_most_one(log_masses: Tensor) -> Tensor:
    """Rows [S, K] divided by their sum where it is over one: by rounding, or in the `output` family, with other noise a text."""
    return log_masses - log_masses.logsumexp(-1, keepdim=True).clamp_min(0)
