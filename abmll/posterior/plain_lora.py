"""Posteriors as plain LoRA factors, the form that other software reads, and back.

The mean is a LoRA of rank r. A sample of the `weight` family is one of rank r + m (r + 1) (docs/method.md 2). A sample of the
`output` family is redrawn for every token, so it is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from abmll.decoder.backbone import rule_name
from abmll.decoder.layout import Site, unflatten
from abmll.errors import PosteriorMismatchError, SampleNotALoraError
from abmll.posterior.config import AdapterConfig
from abmll.posterior.noise.weight import draw_signs, sign_count, weight_samples
from abmll.posterior.posteriors import GlobalPosterior, Posterior
from abmll.seeds import sample_seeds


@dataclass(frozen=True)
class PlainLora:
    """Adds alpha / R * B A x to one linear layer's output: A [R, d_in] and B [d_out, R], in fp32."""

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[0]

    @property
    def scaling(self) -> float:
        """alpha / R."""
        return self.alpha / self.rank


def mean_loras(posterior: Posterior) -> dict[Site, PlainLora]:
    """The mean, of rank r: the same numbers that the posterior holds."""
    sites = zip(posterior.sites, posterior.by_site(), strict=True)
    return {site: PlainLora(t.mean_a, t.mean_b, posterior.config.alpha) for site, t in sites}


def sample_loras(posterior: Posterior, seed: int, number: int) -> dict[Site, PlainLora]:
    """Sample `number` of the sequence that `seed` names, of rank r + m (r + 1) with scaling 1.

    It is the one that a prediction with this seed draws in fp32. Raises `SampleNotALoraError` for the `output` family.
    """
    config, sites = posterior.config, posterior.sites
    if config.noise == "output":
        raise SampleNotALoraError(
            "samples of the noise family `output` are redrawn for every token: only the mean is a LoRA"
        )
    (drawn,) = sample_seeds(seed, number, number + 1, config.noise)
    values = posterior.values.detach().cpu()
    signs = draw_signs(sign_count(sites, config.noise_rank), [drawn.seed])
    tensors = unflatten(values[None], sites, config.rank)
    loras = weight_samples(config, sites, tensors, signs, [0], [drawn.flip]).loras
    return {
        site: PlainLora(lora.a[0], lora.b[0], float(lora.a.shape[1]))
        for site, lora in zip(sites, loras, strict=True)
    }


def with_mean(prior: GlobalPosterior, loras: Mapping[Site, PlainLora]) -> GlobalPosterior:
    """`prior` with the mean given by `loras` and its own spread; sites without one get a mean of zero.

    A rank below r is filled up with columns of B that are zero, whose rows of A are an untrained posterior's, so that
    adaptation can use them. Raises `PosteriorMismatchError` for another site, another shape, or a larger rank.
    """
    config, sites = prior.config, prior.sites
    values = GlobalPosterior.untrained(config, sites).values
    if other := next((site for site in loras if site not in sites), None):
        raise PosteriorMismatchError(f"{other.name} is not adapted by the posterior")
    for site, new, old in zip(sites, unflatten(values, sites, config.rank), prior.by_site(), strict=True):
        new.spread_a.copy_(old.spread_a)
        new.spread_b.copy_(old.spread_b)
        if (lora := loras.get(site)) is None:
            continue
        if lora.rank > config.rank:
            raise PosteriorMismatchError(
                f"{site.name} has rank {lora.rank}, more than the posterior's {config.rank}"
            )
        if (*lora.a.shape, *lora.b.shape) != (lora.rank, site.d_in, site.d_out, lora.rank):
            found = f"A {tuple(lora.a.shape)} and B {tuple(lora.b.shape)}"
            raise PosteriorMismatchError(
                f"{site.name} is a layer {site.d_in} -> {site.d_out}; {found} do not fit"
            )
        new.mean_a[: lora.rank] = lora.a
        new.mean_b[:, : lora.rank] = lora.b * (lora.scaling / config.scaling)
    return replace(prior, values=values)


def with_constant_spread(prior: GlobalPosterior, standard_deviation: float) -> GlobalPosterior:
    """The same mean in the `weight` family, every weight with this standard deviation: B_s zero, A_s as it was."""
    values = prior.values.clone()
    for tensors in unflatten(values, prior.sites, prior.config.rank):
        tensors.spread_b.zero_()
    config = replace(prior.config, noise="weight", spread_offset=standard_deviation, noise_scale=1.0)
    return replace(prior, config=config, values=values)


def layout_of(loras: Mapping[Site, PlainLora]) -> AdapterConfig:
    """The smallest configuration that holds `loras`: their modules, from their first layer on, with their largest rank."""
    largest = max(loras.values(), key=lambda lora: lora.rank)
    return AdapterConfig(
        rank=largest.rank,
        alpha=largest.alpha,
        modules=tuple(sorted({site.module for site in loras})),
        first_layer=min(site.layer for site in loras),
    )


def module_paths(model: Any, config: AdapterConfig) -> dict[str, Site]:
    """The sites of `config` in a causal `transformers` model, by the path of their module; those of a `Backbone`, in its order.

    The model must not be wrapped by a `Backbone`; its weights are not looked at.
    """
    layers = model.base_model.layers
    prefix = next(name for name, module in model.named_modules() if module is layers)
    paths: dict[str, Site] = {}
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            name = rule_name(path.rpartition(".")[2], config.modules)
            if name and index >= config.first_layer:
                paths[f"{prefix}.{index}.{path}"] = Site(index, name, module.in_features, module.out_features)
    return paths
