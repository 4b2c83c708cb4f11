"""The `weight` family against dense draws, the `output` family against its formula."""

import math
from typing import Any

import pytest
import torch

from abmll.decoder.layout import Site, SiteTensors
from abmll.decoder.quantised import FrozenLinear
from abmll.posterior.gaussians import gaussian_kl, log_prior
from abmll.posterior.noise.output import OutputDraw
from abmll.posterior.noise.weight import (
    WeightNoise,
    draw_signs,
    sign_count,
    split_signs,
    weight_divergence,
    weight_samples,
)
from abmll.seeds import SampleSeed, derive_seed
from tests.tiny import make_config

SITE = Site(0, "q", 12, 10)
CONFIG = make_config(rank=3, alpha=6.0, offset=0.3, noise_rank=4, scale=1.5)
COUNT = sign_count([SITE], CONFIG.noise.rank)
OUTPUT = make_config(rank=3, alpha=6.0, offset=-2.0, family="output")


def tensors(tasks: int = 1, seed: int = 0, size: float = 0.3) -> SiteTensors:
    g = torch.Generator().manual_seed(seed)
    r, i, o = CONFIG.layout.rank, SITE.d_in, SITE.d_out
    a, b = (tasks, r, i), (tasks, o, r)
    return SiteTensors(*(size * torch.randn(shape, generator=g) for shape in (a, b, a, b)))


def dense_moments(t: SiteTensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of the weight update, straight from the equations."""
    mean = CONFIG.layout.scaling * t.mean_b[0] @ t.mean_a[0]
    return mean, CONFIG.noise.scale * (
        CONFIG.layout.scaling * t.spread_b[0] @ t.spread_a[0] + CONFIG.noise.offset
    )


def weights(t: SiteTensors, count: int, seed: int = 0) -> torch.Tensor:
    """Return `count` sampled weight updates [count, d_out, d_in]."""
    signs = draw_signs(COUNT, [derive_seed(seed, n) for n in range(count)])
    (lora,) = weight_samples(CONFIG, [SITE], [t], signs, [0] * count).loras
    return lora.b @ lora.a


def test_a_weight_sample_is_an_ordinary_lora_of_rank_r_plus_m_times_r_plus_one() -> None:
    (lora,) = weight_samples(CONFIG, [SITE], [tensors()], draw_signs(COUNT, [1, 2]), [0, 0]).loras
    assert lora.a.shape == (2, 3 + 4 * 4, 12)
    assert lora.b.shape == (2, 10, 3 + 4 * 4)


def test_weight_samples_have_the_mean_and_variance_of_dense_draws() -> None:
    t, n = tensors(), 20_000
    drawn = weights(t, n)
    mean, sd = dense_moments(t)
    z = (drawn.mean(0) - mean) / (sd.abs() / math.sqrt(n))
    assert z.abs().max() < 5
    assert z.std() == pytest.approx(1, abs=0.25)
    torch.testing.assert_close(drawn.std(0), sd.abs(), rtol=0.05, atol=1e-3)


def test_pre_activations_covary_over_tokens_and_units_as_under_dense_draws() -> None:
    """Cov(y_ti, y_sk) = 1[i = k] sum_j sigma_ij^2 x_tj x_sj, jointly for two tokens."""
    t, n = tensors(), 40_000
    x = torch.randn(2, SITE.d_in, generator=torch.Generator().manual_seed(5))
    mean, sd = dense_moments(t)
    y = (weights(t, n) - mean) @ x.T  # [n, d_out, tokens]
    flat = y.flatten(1)
    found = flat.T @ flat / n
    expected = torch.zeros(SITE.d_out, 2, SITE.d_out, 2)
    for unit in range(SITE.d_out):
        expected[unit, :, unit, :] = (x * sd[unit].square()) @ x.T
    scale = expected.flatten(0, 1).flatten(1, 2).diag().sqrt()
    difference = (found - expected.flatten(0, 1).flatten(1, 2)) / scale[:, None] / scale[None, :]
    assert difference.abs().max() < 6 * math.sqrt(2 / n)


def test_signs_depend_on_their_own_seed_alone() -> None:
    together, alone = draw_signs(COUNT, [7, 8, 9]), draw_signs(COUNT, [8])
    assert torch.equal(together[1], alone[0])
    assert set(together.unique().tolist()) == {-1.0, 1.0}
    assert together.mean().abs() < 0.2
    assert not torch.equal(together[0], together[1])


def frozen(bias: bool = False) -> FrozenLinear:
    """Return a frozen layer of the site's shape, zero so that only the adapter shows."""
    layer = torch.nn.Linear(SITE.d_in, SITE.d_out, bias=bias)
    torch.nn.init.zeros_(layer.weight)
    return FrozenLinear(layer.requires_grad_(False))


def test_rows_pick_their_task_and_sample_by_index() -> None:
    t = tensors(tasks=2)
    task_of_sample = [1, 0, 1]
    seeds = [SampleSeed(4), SampleSeed(5, -1), SampleSeed(6)]
    arguments: Any = {"task_of_sample": task_of_sample, "dtype": torch.float32}
    samples = WeightNoise().samples(CONFIG, [SITE], [t], seeds=seeds, **arguments)
    lengths = [5, 2, 4, 5]
    x = torch.randn(sum(lengths), SITE.d_in)
    index = [2, 0, 1, 2]
    together = samples.for_rows(index, lengths)(0, x, frozen()).split(lengths)
    for sample, part, found in zip(index, x.split(lengths), together, strict=True):
        one = SiteTensors(*(v[task_of_sample[sample]][None] for v in vars(t).values()))
        alone = WeightNoise().samples(
            CONFIG, [SITE], [one], seeds=[seeds[sample]], task_of_sample=[0], dtype=torch.float32
        )
        torch.testing.assert_close(found, alone.for_rows([0], [len(part)])(0, part, frozen()))


def test_a_signed_layer_is_the_sum_of_its_sampled_weights_forward_and_backward() -> None:
    """The expected values are the dense update of each row's signs, and autograd.

    Two tasks are in one batch, and the layer has a bias.
    """
    config = make_config(rank=3, alpha=6.0, offset=0.3)
    t, lengths, tasks, seeds = tensors(tasks=2), [4, 3, 5], [0, 1, 1], [7, 8, 9]
    layer = torch.nn.Linear(SITE.d_in, SITE.d_out).requires_grad_(False)
    x = torch.randn(sum(lengths), SITE.d_in, requires_grad=True)
    leaves = [v.clone().requires_grad_() for v in vars(t).values()]
    draw = WeightNoise().training_draw(
        config, [SITE], [SiteTensors(*leaves)], seeds=seeds, task_of_row=tasks, row_tokens=lengths,
        dtype=torch.float32,
    )  # fmt: skip
    found = draw(0, x, FrozenLinear(layer))
    signs = split_signs(draw_signs(sign_count([SITE], 1), seeds), [SITE], 1)[0]
    parts = []
    for part, task, v, u in zip(x.split(lengths), tasks, *signs, strict=True):
        mean_a, mean_b, spread_a, spread_b = (leaf[task] for leaf in leaves)
        sd = config.layout.scaling * spread_b @ spread_a + config.noise.offset
        parts.append(layer(part) + part @ (config.layout.scaling * mean_b @ mean_a + u.T * sd * v).T)
    expected = torch.cat(parts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weight = torch.randn(expected.shape)
    gradients = [torch.autograd.grad((y * weight).sum(), [x, *leaves]) for y in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_weight_divergence_is_the_dense_closed_form() -> None:
    q, p = tensors(seed=1, size=0.2), tensors(seed=2, size=0.2)
    (mean_q, sd_q), (mean_p, sd_p) = dense_moments(q), dense_moments(p)
    kl, prior = weight_divergence(CONFIG, q, p)
    expected = gaussian_kl(mean_q, 2 * sd_q.abs().log(), mean_p, 2 * sd_p.abs().log())
    torch.testing.assert_close(kl[0], expected.sum())
    torch.testing.assert_close(prior[0], log_prior(mean_p, 2 * sd_p.abs().log()).sum())
    assert float(weight_divergence(CONFIG, p, p)[0]) == pytest.approx(0, abs=1e-4)


def test_divergence_on_some_rows_is_unbiased() -> None:
    q, p = tensors(seed=1, size=0.2), tensors(seed=2, size=0.2)
    whole = weight_divergence(CONFIG, q, p)[0]
    by_row = torch.stack(
        [weight_divergence(CONFIG, q, p, torch.tensor([row]))[0] for row in range(SITE.d_out)]
    )
    torch.testing.assert_close(by_row.mean(0), whole)


def output_draw(t: SiteTensors, rows: int, length: int, seeds: list[int], **more: Any) -> OutputDraw:
    return OutputDraw(OUTPUT, [t], [0] * rows, [length] * rows, seeds, **more)


def test_output_noise_has_the_stated_mean_and_variance() -> None:
    t, x = tensors(), torch.randn(3, SITE.d_in)
    n = 4000
    y = output_draw(t, n, 3, list(range(n)))(0, x.repeat(n, 1), frozen()).view(n, 3, -1)
    mean = OUTPUT.layout.scaling * x @ t.mean_a[0].T @ t.mean_b[0].T
    sd = ((OUTPUT.layout.scaling * x @ t.spread_a[0].T @ t.spread_b[0].T - 2.0) / 2).exp()
    bias = frozen().bias
    assert ((y.mean(0) - mean - (0 if bias is None else bias)).abs() < 5 * sd / math.sqrt(n)).all()
    torch.testing.assert_close(y.std(0), sd, rtol=0.08, atol=0)


def test_output_noise_of_a_row_does_not_depend_on_its_batch_mates() -> None:
    t, x = tensors(), torch.randn(11, SITE.d_in)
    together = OutputDraw(OUTPUT, [t], [0, 0], [7, 4], [3, 4])(0, x, frozen())
    torch.testing.assert_close(together[7:], output_draw(t, 1, 4, [4])(0, x[7:], frozen()))


def test_output_divergence_is_zero_at_theta_and_else_the_closed_form_of_each_token() -> None:
    q, p, x = tensors(tasks=2, seed=1), tensors(tasks=2, seed=2), torch.randn(7, SITE.d_in)
    at_theta = output_draw(q, 1, 3, [0], prior=[q])
    at_theta(0, x[:3], frozen())
    torch.testing.assert_close(at_theta.divergence([])[0], torch.zeros(2), atol=1e-5, rtol=0)
    draw = OutputDraw(OUTPUT, [q], [0, 0, 1], [3, 2, 2], [4, 5, 6], prior=[p])
    draw(0, x, frozen())
    kl, prior = draw.divergence([])
    for task, tokens in enumerate((x[:5], x[5:])):
        moments = []
        for t in (q, p):
            mean = OUTPUT.layout.scaling * tokens @ t.mean_a[task].T @ t.mean_b[task].T
            moments += [mean, OUTPUT.layout.scaling * tokens @ t.spread_a[task].T @ t.spread_b[task].T - 2.0]
        torch.testing.assert_close(kl[task], gaussian_kl(*moments).sum())
        torch.testing.assert_close(prior[task], log_prior(*moments[2:]).sum())
