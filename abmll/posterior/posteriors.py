"""The global posterior theta and the task posterior phi.

Each adapted layer (a `Site`) has four LoRA matrices: a mean pair and a spread pair
(docs/method.md 1, paper section 3). With s = alpha / rank, the mean is s * B_mu A_mu. The spread is
s * B_s A_s + c. It is the log-variance of the adapter's output in the noise family `output`, and
the standard deviation of the weight in the family `weight`; see `noise/`.

All numbers of one posterior lie in one flat fp32 vector. So an optimiser step, a copy or an average
is one operation, and T tasks are a [T, P] matrix. `unflatten` gives views by site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from abmll.decoder.layout import Site, SiteTensors, flat_size, site_shapes, unflatten
from abmll.errors import PosteriorMismatchError
from abmll.posterior.config import PosteriorConfig, ReadoutChoice
from abmll.similarity.class_examples import ClassExamples, all_from_tensors, all_to_tensors
from abmll.similarity.features import Whitening


@dataclass(frozen=True)
class Posterior:
    """A configuration, the sites that it applies to, and P values [P].

    The values are in fp32, because bf16 would round small updates away. Raises
    `PosteriorMismatchError` where their number is not P.
    """

    config: PosteriorConfig
    sites: tuple[Site, ...]
    values: Tensor

    def __post_init__(self) -> None:
        expected = flat_size(self.sites, self.config.layout.rank)
        if self.values.shape != (expected,):
            raise PosteriorMismatchError(
                f"expected {expected} values for {len(self.sites)} sites, got {tuple(self.values.shape)}"
            )

    @property
    def nbytes(self) -> int:
        """Return the bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.to_tensors().values())

    def by_site(self) -> list[SiteTensors]:
        """Return the matrices of every site, as views."""
        return unflatten(self.values, self.sites, self.config.layout.rank)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return named tensors for a safetensors file: `layers.15.q.mean.A` and so on."""
        return {
            f"{site.name}.{part}": getattr(tensors, field).contiguous()
            for site, tensors in zip(self.sites, self.by_site(), strict=True)
            for part, field in _PARTS.items()
        }

    @classmethod
    def from_tensors(
        cls, config: PosteriorConfig, sites: Sequence[Site], tensors: Mapping[str, Tensor]
    ) -> Self:
        """Read what `to_tensors` wrote.

        Raises `PosteriorMismatchError` with the name of the first tensor that is missing or
        misshapen.
        """
        pieces = []
        for site in sites:
            for part, shape in zip(_PARTS, site_shapes(site, config.layout.rank), strict=True):
                name = f"{site.name}.{part}"
                tensor = tensors.get(name)
                if tensor is None or tuple(tensor.shape) != shape:
                    found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                    raise PosteriorMismatchError(f"tensor {name} is {found}, expected {shape}")
                pieces.append(tensor.detach().float().reshape(-1))
        return cls(config, tuple(sites), torch.cat(pieces))


_PARTS = {"mean.A": "mean_a", "mean.B": "mean_b", "spread.A": "spread_a", "spread.B": "spread_b"}


@dataclass(frozen=True)
class GlobalPosterior(Posterior):
    """theta, where every adaptation starts.

    It is a point estimate of the prior N(mu_theta, sigma_theta^2) over task posteriors. `whitening`
    is the one of the features of the Gaussian process, if there is one.
    """

    whitening: Whitening | None = None

    @classmethod
    def untrained(cls, config: PosteriorConfig, sites: Sequence[Site], seed: int = 0) -> GlobalPosterior:
        """Return a posterior with mean 0 and spread c exactly (docs/method.md 1).

        Every A is Kaiming-uniform with a = sqrt 5, every B is zero.
        """
        generator = torch.Generator().manual_seed(seed)
        pieces = []
        for site in sites:
            bound = 1 / math.sqrt(site.d_in)  # Kaiming-uniform with a = sqrt 5
            for index, (rows, columns) in enumerate(site_shapes(site, config.layout.rank)):
                is_a = index % 2 == 0
                values = torch.zeros(rows * columns)
                pieces.append(values.uniform_(-bound, bound, generator=generator) if is_a else values)
        return cls(config, tuple(sites), torch.cat(pieces))

    def without_noise(self) -> GlobalPosterior:
        """Return the same mean with a spread of zero: ordinary LoRA.

        The spread stays zero under adaptation: with both matrices of the pair at zero, neither has
        a gradient.
        """
        values = self.values.clone()
        for tensors in unflatten(values, self.sites, self.config.layout.rank):
            tensors.spread_a.zero_()
            tensors.spread_b.zero_()
        config = replace(self.config, noise=self.config.noise.as_point())
        return replace(self, config=config, values=values)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of `Posterior.to_tensors` and of the whitening."""
        return super().to_tensors() | (self.whitening.to_tensors() if self.whitening else {})

    @classmethod
    def from_tensors(
        cls, config: PosteriorConfig, sites: Sequence[Site], tensors: Mapping[str, Tensor]
    ) -> Self:
        """Read what `to_tensors` wrote. Raises as `Posterior.from_tensors`."""
        return replace(
            super().from_tensors(config, sites, tensors), whitening=Whitening.from_tensors(tensors)
        )


@dataclass(frozen=True)
class TaskPosterior(Posterior):
    """phi: the posterior of one task, q(phi | D) = N(mu_phi, sigma_phi^2).

    Each question with fixed classes may have `class_examples`, which its Gaussian process learns
    from. theta itself, as `start` returns it, has seen no examples. Where no gradient step moved
    phi, its values are those of theta: it may be kept and sent without them, as values [0].
    """

    class_examples: tuple[ClassExamples, ...] = ()
    has_examples: bool = True

    def __post_init__(self) -> None:
        if self.has_values:
            super().__post_init__()

    @property
    def has_values(self) -> bool:
        """Return whether it has values of its own; else they are those of theta."""
        return self.values.shape != (0,)

    def without_values(self) -> TaskPosterior:
        """Return the same posterior to be kept without values, which are those of theta."""
        return replace(self, values=self.values.new_empty(0))

    def with_values(self, theta: Posterior) -> TaskPosterior:
        """Return the posterior with its values, or where it has none with those of `theta`."""
        return self if self.has_values else replace(self, values=theta.values)

    @classmethod
    def start(cls, prior: GlobalPosterior) -> TaskPosterior:
        """Return phi = theta, with a copy of all four matrices."""
        return cls(prior.config, prior.sites, prior.values.clone(), has_examples=False)

    @classmethod
    def unmoved(cls, prior: GlobalPosterior) -> TaskPosterior:
        """Return phi = theta, without values."""
        return cls(prior.config, prior.sites, torch.empty(0), has_examples=False)

    def is_zero_shot(self, question: tuple[int, ...]) -> bool:
        """Return whether it has no examples of a question, by its tokens.

        An adapter of several questions has class examples of each that it has examples of.
        """
        known = {examples.question for examples in self.class_examples}
        return not self.has_examples or (bool(known) and question not in known)

    def with_noise_scale(self, scale: float) -> TaskPosterior:
        """Return the same posterior with the noise scale `scale`."""
        return replace(self, config=replace(self.config, noise=replace(self.config.noise, scale=scale)))

    def with_readout_scale(self, readout: ReadoutChoice) -> TaskPosterior:
        """Return the same posterior with samples that differ as `readout` says."""
        return replace(self, config=replace(self.config, noise=self.config.noise.sampled(readout)))

    def with_temperature_times(
        self, factor: float, by_question: Mapping[tuple[int, ...], float] | None = None
    ) -> TaskPosterior:
        """Return the same posterior with its temperature changed as by `TemperatureRule.times`."""
        rule = self.config.temperature.times(factor, by_question)
        return replace(self, config=replace(self.config, temperature=rule))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of `Posterior.to_tensors`, if it has values, and of the class examples."""
        return (super().to_tensors() if self.has_values else {}) | all_to_tensors(self.class_examples)

    @classmethod
    def from_tensors(
        cls, config: PosteriorConfig, sites: Sequence[Site], tensors: Mapping[str, Tensor]
    ) -> Self:
        """Read what `to_tensors` wrote. Raises as `Posterior.from_tensors`."""
        examples = all_from_tensors(tensors)
        if not any(f"{site.name}.{part}" in tensors for site in sites for part in _PARTS):
            return cls(config, tuple(sites), torch.empty(0), examples)
        return replace(super().from_tensors(config, sites, tensors), class_examples=examples)
