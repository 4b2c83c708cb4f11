"""LoRA factors of a posterior against docs/method.md 2, and back into a posterior."""

from dataclasses import replace

import pytest
import torch

from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import AdapterLayout, Site
from abmll.decoder.sites import walk_sites
from abmll.errors import PosteriorMismatchError, SampleNotALoraError
from abmll.posterior.config import NoiseConfig
from abmll.posterior.noise.weight import draw_signs, sign_count, split_signs
from abmll.posterior.plain_lora import (
    PlainLora,
    layout_of,
    mean_loras,
    sample_loras,
    with_constant_spread,
    with_mean,
)
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.seeds import sample_seeds
from tests.tiny import CONFIGS, make_config, tiny_model

SITES = (Site(1, "q", 6, 8), Site(1, "down", 5, 6), Site(2, "q", 6, 8), Site(2, "down", 5, 6))
CONFIG = make_config(rank=3, alpha=5.0, modules=("q", "down"), first_layer=1, noise_rank=2, scale=1.7)


@pytest.fixture
def prior() -> GlobalPosterior:
    return random_prior()


def random_prior(**config: object) -> GlobalPosterior:
    untrained = GlobalPosterior.untrained(CONFIG, SITES)
    values = torch.randn(untrained.values.shape, generator=torch.Generator().manual_seed(1))
    return GlobalPosterior(replace(CONFIG, **config), SITES, values)  # type: ignore[arg-type]


def update(lora: PlainLora) -> torch.Tensor:
    return lora.scaling * lora.b.double() @ lora.a.double()


def means(posterior: GlobalPosterior) -> list[torch.Tensor]:
    s = posterior.config.layout.scaling
    return [s * t.mean_b.double() @ t.mean_a.double() for t in posterior.by_site()]


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("first_layer", [0, 2])
def test_paths_are_those_of_the_sites_of_a_backbone(architecture: str, first_layer: int) -> None:
    model, layout = tiny_model(architecture), AdapterLayout(first_layer=first_layer)
    paths = {path: site for path, site, _ in walk_sites(model, layout)}
    for path, site in paths.items():
        assert tuple(model.get_submodule(path).weight.shape) == (site.d_out, site.d_in)
        assert f"layers.{site.layer}." in path
    assert tuple(paths.values()) == Backbone(model, layout).sites


def test_the_mean_keeps_its_factors_and_rank(prior: GlobalPosterior) -> None:
    loras = mean_loras(prior)
    assert tuple(loras) == SITES
    for lora, expected in zip(loras.values(), means(prior), strict=True):
        assert (lora.rank, lora.alpha) == (3, 5.0)
        torch.testing.assert_close(update(lora), expected)


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_sample_is_the_formula_with_the_signs_of_its_seed(prior: GlobalPosterior, number: int) -> None:
    m, s = CONFIG.noise.rank, CONFIG.layout.scaling
    (drawn,) = sample_seeds(7, number, number + 1, paired=True)
    signs = split_signs(draw_signs(sign_count(SITES, m), [drawn.seed]).double(), SITES, m)
    loras = sample_loras(TaskPosterior.start(prior), 7, number)
    assert tuple(loras) == SITES
    for lora, t, mean, (v, u) in zip(loras.values(), prior.by_site(), means(prior), signs, strict=True):
        sd = CONFIG.noise.scale * (s * t.spread_b.double() @ t.spread_a.double() + CONFIG.noise.offset)
        noise = sum(u[0, k][:, None] * sd * v[0, k] for k in range(m)) / m**0.5
        assert (lora.rank, lora.scaling) == (3 + m * 4, 1.0)
        torch.testing.assert_close(update(lora), mean + drawn.flip * noise, rtol=1e-5, atol=1e-5)


def test_with_noise_in_the_readout_the_other_sites_have_the_mean(prior: GlobalPosterior) -> None:
    noise = replace(CONFIG.noise, readout_scale=2.5)
    some = TaskPosterior.start(replace(prior, config=replace(CONFIG, noise=noise)))
    loras = sample_loras(some, 7, 0)
    assert {lora.rank for lora in loras.values()} == {3 + 3 + 2 * 4}
    for site, mean in zip(SITES, means(prior), strict=True):
        gap = (update(loras[site]) - mean).abs().max()
        assert gap > 0.1 if site == SITES[-1] else gap < 1e-5


def test_samples_come_in_pairs_around_the_mean_and_depend_on_the_seed(prior: GlobalPosterior) -> None:
    first, second, other = (sample_loras(prior, seed, number) for seed, number in ((7, 0), (7, 1), (8, 0)))
    for site, mean in zip(SITES, means(prior), strict=True):
        torch.testing.assert_close(update(first[site]) + update(second[site]), 2 * mean, rtol=1e-5, atol=1e-5)
        assert (update(first[site]) - update(other[site])).abs().max() > 0.1


def test_a_sample_of_the_output_family_is_no_lora_and_its_mean_is() -> None:
    prior = random_prior(noise=NoiseConfig("output"))
    with pytest.raises(SampleNotALoraError, match="redrawn for every token"):
        sample_loras(prior, 0, 0)
    assert len(mean_loras(prior)) == len(SITES)


def test_a_mean_taken_over_whole_is_the_same_to_the_bit_and_the_spread_stays(prior: GlobalPosterior) -> None:
    start = random_prior()
    start = GlobalPosterior(start.config, SITES, start.values.flip(0))
    found = with_mean(start, mean_loras(prior))
    assert found.config == start.config
    for new, given, old in zip(found.by_site(), prior.by_site(), start.by_site(), strict=True):
        assert torch.equal(new.mean_a, given.mean_a)
        assert torch.equal(new.mean_b, given.mean_b)
        assert torch.equal(new.spread_a, old.spread_a)
        assert torch.equal(new.spread_b, old.spread_b)


def test_smaller_ranks_other_scalings_and_missing_sites_give_the_same_update(prior: GlobalPosterior) -> None:
    generator = torch.Generator().manual_seed(2)
    given = {
        site: PlainLora(
            torch.randn(rank, site.d_in, generator=generator), torch.randn(site.d_out, rank, generator=generator), alpha
        )
        for site, rank, alpha in ((SITES[0], 2, 32.0), (SITES[3], 1, 0.5))
    }  # fmt: skip
    found = with_mean(prior, given)
    for site, mean in zip(SITES, means(found), strict=True):
        expected = update(given[site]) if site in given else torch.zeros_like(mean)
        torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-7)
    free = found.by_site()[0].mean_a[2:]  # where B is zero, A is not, so that it can learn
    assert free.abs().min() > 0


@pytest.mark.parametrize(
    ("site", "a", "b", "message"),
    [
        (SITES[0], (4, 6), (8, 4), r"layers\.1\.q has rank 4, more than the posterior's 3"),
        (SITES[0], (2, 5), (8, 2), r"layer 6 -> 8; A \(2, 5\) and B \(8, 2\)"),
        (SITES[0], (2, 6), (8, 3), "do not fit"),
        (SITES[0], (1, 6), (1, 1), "do not fit"),
        (Site(0, "q", 6, 8), (2, 6), (8, 2), r"layers\.0\.q is not adapted"),
    ],
)
def test_what_does_not_fit_is_refused(
    prior: GlobalPosterior, site: Site, a: tuple[int, int], b: tuple[int, int], message: str
) -> None:
    with pytest.raises(PosteriorMismatchError, match=message):
        with_mean(prior, {site: PlainLora(torch.ones(a), torch.ones(b), 1.0)})


def test_a_constant_spread_moves_every_weight_by_one_standard_deviation(prior: GlobalPosterior) -> None:
    found = with_constant_spread(random_prior(noise=NoiseConfig("output", rank=1)), 0.25)
    assert found.config.noise.family == "weight"
    for lora, mean in zip(sample_loras(found, 3, 0).values(), means(prior), strict=True):
        torch.testing.assert_close(
            (update(lora) - mean).abs(), torch.full_like(mean, 0.25), atol=1e-5, rtol=0
        )


def test_the_layout_of_an_adapter_is_the_smallest_that_holds_it() -> None:
    loras = {
        Site(2, "v", 6, 4): PlainLora(torch.ones(2, 6), torch.ones(4, 2), 8.0),
        Site(4, "q", 6, 8): PlainLora(torch.ones(5, 6), torch.ones(8, 5), 10.0),
    }
    found = layout_of(loras)
    assert found == AdapterLayout(5, 10.0, ("q", "v"), 2)
