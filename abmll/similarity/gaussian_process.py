"""Gaussian process beside the adapter, for tasks with fixed classes (docs/method.md 5).

A few gradient steps change the adapter in the same way for every input. So its samples disagree no
more about an input that is like no example than about one that is like some. A linear model on
frozen features has a posterior in closed form, which is wider for inputs that are like no example.

The model is f_c(x) = <w_c, h(x)> for each class c. h(x) are the features of the prompt
(`features.py`). The prior is w_c ~ N(m_c, I), where m_c is 0, or the embedding of the class's name
minus the mean of all names. The observations are the one-hot labels minus the smoothed frequencies
of the classes, and have the variance `noise`. This is least-squares classification with a Gaussian
process (Rasmussen and Williams 2006, section 6.5), which Patacchiola et al. (2020) use on learned
features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.seeds import SampleSeed, derive_seed
from abmll.similarity.class_examples import ClassExamples
from abmll.text.prompting import EncodedPrompt

# Values that the examples choose from: multiples of the configuration's weight, and factors on the
# names of classes.
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
NAMES = (0.0, 1.0)
# The spread of samples grows with this power of the variance of f at the input, relative to that at
# examples left out, up to this value. `SHARPNESS` was chosen on validation tasks. `FARTHEST` is for
# examples that are all alike.
SHARPNESS = 8
FARTHEST = 4.0


@dataclass(frozen=True)
class SimilarityConfig:
    """Config of the Gaussian process beside the adapter.

    It is calibrated after training, and adaptation does not use it. `weight` multiplies the mean.
    `noise` is the variance of observations. `spread` is the distance of samples from the mean, in
    nats. `sentence_encoder` names the encoder whose embeddings are part of the features, if any.
    """

    weight: float = 4.0
    noise: float = 0.5
    spread: float = 0.5
    sentence_encoder: str | None = None


class GaussianProcess:
    """Posterior of w given some examples, in fp64 on the CPU, and what it adds to options' scores.

    By the mean, this is the mean of f times a weight. The weight is `weight` times one of
    `WEIGHTS`, and m_c is the name of the class times one of `NAMES`. The result is averaged over
    all pairs of both, each weighted by the likelihood of every example's label given the other
    examples.

    A sample adds the deviation of a draw of f from its mean, times `spread` nats and
    (v / v')^`SHARPNESS`, which is at most `FARTHEST`. v is the variance of f at the input, and v'
    the mean of the variances at the examples, each given the others. Features of many dimensions
    are never much alike, so v is little below 1 for all inputs, even for those of another task. The
    power tells them apart.
    """

    def __init__(self, examples: ClassExamples, config: SimilarityConfig) -> None:
        noise = config.noise
        self._noise, self._spread = noise, config.spread
        self._number = {ids: number for number, ids in enumerate(examples.classes)}
        self._states = examples.features.double()
        one_hot = torch.nn.functional.one_hot(examples.labels, len(examples.classes)).double()
        shares = (one_hot.sum(0) + 1) / (len(one_hot) + len(examples.classes))
        self._observed = one_hot - shares
        gram = self._states @ self._states.T
        self._inverse: Tensor = torch.linalg.inv(gram + noise * torch.eye(len(gram), dtype=gram.dtype))
        names = examples.names.double()
        self._mean = self._averaged(config.weight, one_hot, (names - names.mean(0)).T)
        self._left_out_variance = float((1 / self._inverse.diagonal() - noise).mean())
        self._drawn: dict[SampleSeed, Tensor] = {}

    def scores(self, prompt: EncodedPrompt, state: Tensor, sample: SampleSeed | None) -> Tensor:
        """Return what a sample adds to the scores [continuations] of a prompt, in nats.

        `state` are the features h of the prompt. Without a `sample`, the result is by the mean. It
        is 0 where one of the continuations is not a class.
        """
        numbers = [self._number[ids] for ids in prompt.continuations if ids in self._number]
        if len(numbers) < len(prompt.continuations):
            return state.new_zeros(len(prompt.continuations))
        scores = state.double() @ self._mean
        if sample is not None:
            if sample not in self._drawn:
                self._drawn[sample] = self._deviation(sample)
            scores = scores + self._spread_at(state.double()) * (state.double() @ self._drawn[sample])
        return scores[numbers].float()

    def typicality(self, state: Tensor) -> float:
        """Return the p-value of "this input is like the examples", for features h = `state`.

        Of the n examples and the input, it is the proportion whose variance of f, given all others,
        is at least the input's. The input counts too, so the least value is 1 / (n + 1). For an
        input drawn as the examples were, the probability of a value of at most p is at most p
        (conformal anomaly detection: Laxhammar and Falkman 2010; Vovk et al. 2005, section 2.2).
        """
        variance, solved = self._variance(state.double())
        own = variance + self._noise
        # The input is one more row and column of K + noise I. The inverse of this
        # bordered matrix has a diagonal of 1 over the variances, with noise.
        others = 1 / (self._inverse.diagonal() + solved.square() / own)
        return (int((others >= own * (1 - 1e-6)).sum()) + 1) / (len(others) + 1)

    def _averaged(self, weight: float, one_hot: Tensor, names: Tensor) -> Tensor:
        """Return the matrix [d, C] by which h(x) becomes the scores of the mean.

        It is averaged over `WEIGHTS` and over `NAMES`, the factors on `names` [d, C] in m. Each
        pair is weighted by its likelihood of the labels `one_hot` [n, C], left out one at a time
        (Rasmussen and Williams 2006, equation 5.12).
        """
        # Logarithms of the smoothed frequencies among the other examples, without the constant that
        # is the same for all classes.
        shares = (one_hot.sum(0) - one_hot + 1).log()
        likelihoods, found = [], []
        for name in NAMES:
            solved = self._inverse @ (self._observed - name * self._states @ names)
            left_out = self._observed - solved / self._inverse.diagonal()[:, None]
            for multiple in WEIGHTS:
                scores = shares + weight * multiple * left_out
                likelihoods.append((scores.log_softmax(-1) * one_hot).sum())
                found.append(weight * multiple * (name * names + self._states.T @ solved))
        return torch.einsum("k,kdc->dc", torch.stack(likelihoods).softmax(0), torch.stack(found))

    def _spread_at(self, state: Tensor) -> float:
        """Return the nats that one unit of a draw's deviation adds to a score at `state`."""
        variance = self._variance(state)[0] / self._left_out_variance
        return self._spread * min(FARTHEST, float(variance) ** SHARPNESS)

    def _variance(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the variance of f at `state`, and (K + noise I)^-1 k [n].

        k [n] are the products of `state` with the features of the examples.
        """
        k = self._states @ state
        solved = self._inverse @ k
        return state @ state - k @ solved, solved

    def _deviation(self, sample: SampleSeed) -> Tensor:
        """Return a draw of w minus its mean, [d, C].

        It is a draw from the prior, corrected by the examples (Matheron's rule).
        """
        # The name of this seed does not change, because another name would change answers.
        generator = torch.Generator().manual_seed(derive_seed(sample.seed, "head"))
        size, classes = self._states.shape[1], self._observed.shape[1]
        prior = sample.flip * torch.randn(size, classes, generator=generator).double()
        error = sample.flip * torch.randn(self._observed.shape, generator=generator).double()
        left = self._states @ prior + self._noise**0.5 * error
        deviation: Tensor = prior - self._states.T @ self._inverse @ left
        return deviation
