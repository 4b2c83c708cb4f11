"""Closed forms and values worked out by hand for the paper's constants."""

import math

import pytest
import torch

from abmll.decoder.layout import Site, unflatten
from abmll.errors import PosteriorMismatchError
from abmll.posterior.gaussians import gaussian_kl, gaussian_log_prob, log_prior
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from tests.tiny import make_config

SITES = (Site(2, "q", 6, 8), Site(2, "down", 10, 6), Site(3, "q", 6, 8))
CONFIG = make_config(rank=3, alpha=6.0, offset=-20.0, family="output")


def test_untrained_theta_has_mean_zero_and_spread_c_exactly() -> None:
    theta = GlobalPosterior.untrained(CONFIG, SITES, seed=3)
    for t in theta.by_site():
        assert torch.equal(t.mean_b @ t.mean_a, torch.zeros(t.mean_b.shape[0], t.mean_a.shape[1]))
        assert torch.equal(
            t.spread_b @ t.spread_a + CONFIG.noise.offset,
            torch.full((len(t.mean_b), t.mean_a.shape[1]), -20.0),
        )
        assert t.mean_a.abs().max() <= 1 / math.sqrt(t.mean_a.shape[1])
        assert t.mean_a.std() > 0.1 / math.sqrt(t.mean_a.shape[1])


def test_start_of_phi_is_theta_and_their_divergence_is_zero() -> None:
    theta = GlobalPosterior.untrained(CONFIG, SITES)
    phi = TaskPosterior.start(theta)
    assert torch.equal(phi.values, theta.values)
    assert phi.values.data_ptr() != theta.values.data_ptr()
    mean, log_var = torch.randn(50), torch.full((50,), -20.0)
    assert torch.equal(gaussian_kl(mean, log_var, mean, log_var), torch.zeros(50))


def test_standard_normal_at_zero() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert -float(gaussian_log_prob(zero, zero, zero)) == pytest.approx(0.918939, abs=1e-6)


def test_gamma_prior_at_the_papers_start() -> None:
    """-log Gamma(e^20; 1, 0.01) is 4,851,656.56; the standard normal's term is 0.918939."""
    value = -log_prior(torch.zeros(1, dtype=torch.float64), torch.tensor([-20.0], dtype=torch.float64))
    assert float(value) == pytest.approx(4_851_656.56 + 0.918939, abs=0.01)


def test_gamma_prior_agrees_with_torch() -> None:
    log_var = torch.linspace(-3, 3, 7, dtype=torch.float64)
    mean = torch.linspace(-1, 1, 7, dtype=torch.float64)
    gamma = torch.distributions.Gamma(
        torch.tensor(2.5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    )
    expected = gamma.log_prob((-log_var).exp()) + torch.distributions.Normal(0.0, 1.0).log_prob(mean)
    torch.testing.assert_close(log_prior(mean, log_var, shape=2.5, rate=0.3), expected)


def test_shifting_the_mean_by_d_costs_half_d_squared_over_the_variance() -> None:
    d, log_var = torch.tensor([1e-4], dtype=torch.float64), torch.tensor([-20.0], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(gaussian_kl(d, log_var, zero, log_var)) == pytest.approx(1e-8 * math.exp(20) / 2)


def test_kl_closed_form_agrees_with_torch_and_with_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_q, mean_p, log_var_q, log_var_p = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    q = torch.distributions.Normal(mean_q, (log_var_q / 2).exp())
    p = torch.distributions.Normal(mean_p, (log_var_p / 2).exp())
    closed = gaussian_kl(mean_q, log_var_q, mean_p, log_var_p)
    torch.testing.assert_close(closed, torch.distributions.kl_divergence(q, p))
    sample = mean_q + (log_var_q / 2).exp() * torch.randn(40_000, 5, dtype=torch.float64, generator=generator)
    estimates = gaussian_log_prob(sample, mean_q, log_var_q) - gaussian_log_prob(sample, mean_p, log_var_p)
    standard_error = estimates.std(0) / 200
    assert ((estimates.mean(0) - closed).abs() < 4 * standard_error).all()


def test_tensors_round_trip_and_name_what_does_not_fit() -> None:
    theta = GlobalPosterior.untrained(CONFIG, SITES, seed=1)
    tensors = theta.to_tensors()
    assert tensors["layers.2.down.spread.B"].shape == (6, 3)
    assert torch.equal(GlobalPosterior.from_tensors(CONFIG, SITES, tensors).values, theta.values)
    del tensors["layers.3.q.mean.A"]
    with pytest.raises(PosteriorMismatchError, match=r"layers\.3\.q\.mean\.A is missing"):
        GlobalPosterior.from_tensors(CONFIG, SITES, tensors)
    with pytest.raises(PosteriorMismatchError, match="expected"):
        GlobalPosterior(CONFIG, SITES, theta.values[:-1])


def test_phi_may_be_kept_without_the_values_that_are_those_of_theta() -> None:
    theta = GlobalPosterior.untrained(CONFIG, SITES, seed=1)
    whole = TaskPosterior.start(theta)
    assert whole.has_values
    assert whole.with_values(GlobalPosterior.untrained(CONFIG, SITES, seed=2)) is whole
    kept = whole.without_values()
    unmoved = TaskPosterior.unmoved(theta)
    assert (unmoved.has_values, unmoved.has_examples, unmoved.config) == (False, False, whole.config)
    assert (kept.has_values, kept.nbytes, kept.to_tensors()) == (False, 0, {})
    read = TaskPosterior.from_tensors(CONFIG, SITES, kept.to_tensors())
    assert not read.has_values
    assert torch.equal(read.with_values(theta).values, theta.values)
    with pytest.raises(PosteriorMismatchError, match="expected"):
        GlobalPosterior(CONFIG, SITES, torch.empty(0))


def test_stacked_tasks_unflatten_to_each_ones_tensors() -> None:
    one, two = (GlobalPosterior.untrained(CONFIG, SITES, seed=seed) for seed in (1, 2))
    stacked = unflatten(torch.stack([one.values, two.values]), SITES, CONFIG.layout.rank)
    for both, first, second in zip(stacked, one.by_site(), two.by_site(), strict=True):
        assert torch.equal(both.mean_a[0], first.mean_a)
        assert torch.equal(both.spread_b[1], second.spread_b)
