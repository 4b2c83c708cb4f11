"""The global posterior theta, the task posterior phi, and the distances between them.

Each adapted layer (a `Site`) has four LoRA matrices: a *mean* pair and a *spread* pair (docs/method.md 1, paper section 3).
With s = alpha / rank, the mean is s * B_mu A_mu. The spread is s * B_s A_s + c and means, by noise family,
the log-variance of the adapter's output (`output`) or the standard deviation of the weight (`weight`); see `noise.py`.

All numbers of one posterior lie in one flat fp32 vector, so an optimiser step, a copy or an average is one operation,
and T tasks are a [T, P] matrix. `unflatten` gives the views by site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from abmll.errors import PosteriorMismatchError
from abmll.features import Whitening
from abmll.head import Head
from abmll.uncertainty import temperature_after

NoiseFamily = Literal["output", "weight"]
MODULES = ("q", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class AdapterConfig:
    """What is adapted and how it is random; recorded with every posterior.

    `spread_offset` is the constant c: a log-variance for `output` (the paper's -20), a standard deviation of the
    weight for `weight`. `noise_rank` is m of the sign-structured draw. `noise_scale` multiplies every standard deviation
    in prediction, and a temperature flattens (above 1) or sharpens the averaged distribution over options; both are
    calibrated after training, and adaptation does not know them. How the temperature goes with the number of examples is
    in `uncertainty.temperature_after`; `choice_temperature` is that of multiple choice (None: the same). `head_weight`,
    `head_noise` and `head_spread` are those of the Gaussian process beside the adapter (`head.py`), calibrated likewise; with a
    weight of 0 there is none. `sentence_encoder` names one whose embeddings it sees beside the states of the trunk.
    `modules` are the names of `backbone.MODULE_NAMES`; layers below `first_layer` stay frozen and unadapted.
    """

    rank: int = 8
    alpha: float = 16.0
    modules: tuple[str, ...] = MODULES
    first_layer: int = 0
    noise: NoiseFamily = "weight"
    spread_offset: float = 1e-3
    noise_rank: int = 4
    noise_scale: float = 1.0
    temperature: float = 1.0
    temperature_exponent: float = 0.0
    choice_temperature: float | None = None
    head_weight: float = 0.0
    head_noise: float = 0.5
    head_spread: float = 0.5
    sentence_encoder: str | None = None

    @property
    def scaling(self) -> float:
        """s = alpha / rank."""
        return self.alpha / self.rank

    def without_noise(self) -> AdapterConfig:
        """The same adapter as a point: the `weight` family with a standard deviation of zero."""
        return replace(self, noise="weight", spread_offset=0.0, noise_scale=1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest; without those of no temperature and of no head, as it was before there were any."""
        values = {**asdict(self), "modules": list(self.modules)}
        for name, none in (
            ("temperature", 1), ("temperature_exponent", 0), ("choice_temperature", None), ("head_weight", 0),
            ("sentence_encoder", None),
        ):  # fmt: skip
            if values[name] == none:
                del values[name]
        if not self.head_weight:
            del values["head_noise"], values["head_spread"]
        return values

    def untempered(self) -> AdapterConfig:
        """The same adapter without a temperature: all that the samples depend on."""
        return replace(self, temperature=1.0, temperature_exponent=0.0, choice_temperature=None)

    def after(self, examples: int, *, multiple_choice: bool = False) -> AdapterConfig:
        """That of a task posterior which has seen so many examples of its kind: its temperature is one number."""
        own = self.choice_temperature if multiple_choice else None
        temperature = temperature_after(examples, own or self.temperature, self.temperature_exponent)
        return replace(self.untempered(), temperature=temperature)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**{**values, "modules": tuple(values["modules"])})


@dataclass(frozen=True)
class Site:
    """One adapted linear layer: decoder layer index, module name of the rule, and the base weight's shape."""

    layer: int
    module: str
    d_in: int
    d_out: int

    @property
    def name(self) -> str:
        """A name that is stable across architectures, such as `layers.15.q`."""
        return f"layers.{self.layer}.{self.module}"


@dataclass(frozen=True)
class SiteTensors:
    """The four matrices of one site; with T tasks each has a leading dimension T. A: [r, d_in], B: [d_out, r]."""

    mean_a: Tensor
    mean_b: Tensor
    spread_a: Tensor
    spread_b: Tensor


def site_shapes(site: Site, rank: int) -> list[tuple[int, int]]:
    """Shapes of the four matrices in flat order."""
    pair = [(rank, site.d_in), (site.d_out, rank)]
    return pair + pair


def flat_size(sites: Sequence[Site], rank: int) -> int:
    """P, the number of values of one posterior."""
    return sum(a * b for site in sites for a, b in site_shapes(site, rank))


def unflatten(values: Tensor, sites: Sequence[Site], rank: int) -> list[SiteTensors]:
    """Views [..., rows, columns] by site of flat `values` [..., P]; differentiable with one backward node."""
    shapes = [shape for site in sites for shape in site_shapes(site, rank)]
    pieces = torch.split(values, [a * b for a, b in shapes], dim=-1)
    views = [piece.reshape(*piece.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return [SiteTensors(*views[i : i + 4]) for i in range(0, len(views), 4)]


@dataclass(frozen=True)
class Posterior:
    """A configuration, the sites it applies to, and P values [P] in fp32 (bf16 would round small updates away)."""

    config: AdapterConfig
    sites: tuple[Site, ...]
    values: Tensor

    def __post_init__(self) -> None:
        expected = flat_size(self.sites, self.config.rank)
        if self.values.shape != (expected,):
            raise PosteriorMismatchError(
                f"expected {expected} values for {len(self.sites)} sites, got {tuple(self.values.shape)}"
            )

    def by_site(self) -> list[SiteTensors]:
        """The matrices of every site, as views."""
        return unflatten(self.values, self.sites, self.config.rank)

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file: `layers.15.q.mean.A` and so on."""
        return {
            f"{site.name}.{part}": getattr(tensors, field).contiguous()
            for site, tensors in zip(self.sites, self.by_site(), strict=True)
            for part, field in _PARTS.items()
        }

    @classmethod
    def from_tensors(
        cls, config: AdapterConfig, sites: Sequence[Site], tensors: Mapping[str, Tensor]
    ) -> Self:
        """Inverse of `to_tensors`. Raises `PosteriorMismatchError` naming the first tensor that is missing or misshapen."""
        pieces = []
        for site in sites:
            for part, shape in zip(_PARTS, site_shapes(site, config.rank), strict=True):
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
    """theta: what all tasks share. A point estimate of the prior N(mu_theta, sigma_theta^2) over task posteriors.

    `whitening` is that of the Gaussian process beside the adapter (`head.py`), if any.
    """

    whitening: Whitening | None = None

    @classmethod
    def untrained(cls, config: AdapterConfig, sites: Sequence[Site], seed: int = 0) -> GlobalPosterior:
        """Every A Kaiming-uniform(a = sqrt 5), every B zero: mean 0 and spread c exactly (docs/method.md 1)."""
        generator = torch.Generator().manual_seed(seed)
        pieces = []
        for site in sites:
            bound = 1 / math.sqrt(site.d_in)  # Kaiming-uniform with a = sqrt 5
            for index, (rows, columns) in enumerate(site_shapes(site, config.rank)):
                is_a = index % 2 == 0
                values = torch.zeros(rows * columns)
                pieces.append(values.uniform_(-bound, bound, generator=generator) if is_a else values)
        return cls(config, tuple(sites), torch.cat(pieces))

    def without_noise(self) -> GlobalPosterior:
        """The same mean with a spread of zero, which stays zero under adaptation: ordinary LoRA.

        With both matrices of the spread pair at zero, neither has a gradient.
        """
        values = self.values.clone()
        for tensors in unflatten(values, self.sites, self.config.rank):
            tensors.spread_a.zero_()
            tensors.spread_b.zero_()
        return replace(self, config=self.config.without_noise(), values=values)

    def to_tensors(self) -> dict[str, Tensor]:
        """As `Posterior.to_tensors`, with the whitening's."""
        return super().to_tensors() | (self.whitening.to_tensors() if self.whitening else {})

    @classmethod
    def from_tensors(
        cls, config: AdapterConfig, sites: Sequence[Site], tensors: Mapping[str, Tensor]
    ) -> Self:
        """Inverse of `to_tensors`. Raises as `Posterior.from_tensors`."""
        return replace(
            super().from_tensors(config, sites, tensors), whitening=Whitening.from_tensors(tensors)
        )


@dataclass(frozen=True)
class TaskPosterior(Posterior):
    """phi: one task's q(phi | D) = N(mu_phi, sigma_phi^2), started at theta's values; with fixed classes it may have a `head`."""

    head: Head | None = None

    @classmethod
    def start(cls, prior: GlobalPosterior) -> TaskPosterior:
        """phi = theta, all four matrices copied."""
        return cls(prior.config, prior.sites, prior.values.clone())

    def with_noise_scale(self, scale: float) -> TaskPosterior:
        """The same posterior with every standard deviation multiplied by `scale`."""
        return replace(self, config=replace(self.config, noise_scale=scale))

    def with_temperature_times(self, factor: float) -> TaskPosterior:
        """The same posterior with its temperature multiplied by `factor`."""
        return replace(self, config=replace(self.config, temperature=self.config.temperature * factor))

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.values.nbytes + (self.head.nbytes if self.head else 0)

    def to_tensors(self) -> dict[str, Tensor]:
        """As `Posterior.to_tensors`, with the head's."""
        return super().to_tensors() | (self.head.to_tensors() if self.head else {})

    @classmethod
    def from_tensors(
        cls, config: AdapterConfig, sites: Sequence[Site], tensors: Mapping[str, Tensor]
    ) -> Self:
        """Inverse of `to_tensors`. Raises as `Posterior.from_tensors`."""
        return replace(super().from_tensors(config, sites, tensors), head=Head.from_tensors(tensors))


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """KL(N(mean_q, var_q) || N(mean_p, var_p)) by element, in nats (closed form)."""
    ratio = log_var_q - log_var_p
    return 0.5 * (ratio.exp() + (mean_q - mean_p).square() * (-log_var_p).exp() - 1 - ratio)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; mean, exp(log_var)) by element, in nats."""
    return -0.5 * (math.log(2 * math.pi) + log_var + (x - mean).square() * (-log_var).exp())


def kl_one_sample(
    sample: Tensor, mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor
) -> Tensor:
    """log q(sample) - log p(sample) by element: unbiased for `gaussian_kl` when `sample` ~ q (the released code's estimator)."""
    return gaussian_log_prob(sample, mean_q, log_var_q) - gaussian_log_prob(sample, mean_p, log_var_p)


def log_prior(mean: Tensor, log_var: Tensor, *, shape: float = 1.0, rate: float = 0.01) -> Tensor:
    """log N(mean; 0, 1) + log Gamma(exp(-log_var); shape, rate) by element (docs/method.md 1)."""
    precision = (-log_var).exp()
    log_gamma = shape * math.log(rate) - math.lgamma(shape) - (shape - 1) * log_var - rate * precision
    return gaussian_log_prob(mean, torch.zeros_like(mean), torch.zeros_like(mean)) + log_gamma
