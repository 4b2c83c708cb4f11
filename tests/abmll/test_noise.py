"""The `weight` family against dense draws, the `output` family against its formula."""

import math

import pytest
import torch

from abmll.noise import (
    LoraDraw,
    OutputDraw,
    derive_seed,
    draw_samples,
    draw_signs,
    mean_samples,
    weight_divergence,
    weight_samples,
)
from abmll.posterior import AdapterConfig, Site, SiteTensors, gaussian_kl, log_prior

SITE = Site(0, "q", 12, 10)
CONFIG = AdapterConfig(rank=3, alpha=6.0, spread_offset=0.3, noise_rank=4, noise_scale=1.5)
OUTPUT = AdapterConfig(rank=3, alpha=6.0, spread_offset=-2.0, noise="output")


def tensors(tasks: int = 1, seed: int = 0, size: float = 0.3) -> SiteTensors:
    g = torch.Generator().manual_seed(seed)
    r, i, o = CONFIG.rank, SITE.d_in, SITE.d_out
    a, b = (tasks, r, i), (tasks, o, r)
    return SiteTensors(*(size * torch.randn(shape, generator=g) for shape in (a, b, a, b)))


def dense_moments(t: SiteTensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the weight update, straight from the equations."""
    mean = CONFIG.scaling * t.mean_b[0] @ t.mean_a[0]
    return mean, CONFIG.noise_scale * (CONFIG.scaling * t.spread_b[0] @ t.spread_a[0] + CONFIG.spread_offset)


def weights(t: SiteTensors, count: int, seed: int = 0) -> torch.Tensor:
    """`count` sampled weight updates [count, d_out, d_in]."""
    signs = draw_signs(CONFIG, [SITE], [derive_seed(seed, n) for n in range(count)])
    (lora,) = weight_samples(CONFIG, [SITE], [t], signs, torch.zeros(count, dtype=torch.long)).loras
    return lora.b @ lora.a


def test_a_weight_sample_is_an_ordinary_lora_of_rank_r_plus_m_times_r_plus_one() -> None:
    (lora,) = weight_samples(
        CONFIG, [SITE], [tensors()], draw_signs(CONFIG, [SITE], [1, 2]), torch.zeros(2, dtype=torch.long)
    ).loras
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
    together, alone = draw_signs(CONFIG, [SITE], [7, 8, 9]), draw_signs(CONFIG, [SITE], [8])
    assert torch.equal(together[1], alone[0])
    assert set(together.unique().tolist()) == {-1.0, 1.0}
    assert together.mean().abs() < 0.2
    assert not torch.equal(together[0], together[1])


def test_rows_pick_their_task_and_sample_by_index() -> None:
    t = tensors(tasks=2)
    task_of_sample = torch.tensor([1, 0, 1])
    seeds = [4, 5, 6]
    samples = draw_samples(
        CONFIG, [SITE], [t], seeds=seeds, task_of_sample=task_of_sample, dtype=torch.float32
    )
    x = torch.randn(4, 5, SITE.d_in)
    index = torch.tensor([2, 0, 1, 2])
    together = samples.for_rows(index, torch.ones(4, 5, dtype=torch.bool))(0, x)
    for row, sample in enumerate(index.tolist()):
        one = SiteTensors(*(v[task_of_sample[sample]][None] for v in vars(t).values()))
        alone = draw_samples(
            CONFIG,
            [SITE],
            [one],
            seeds=[seeds[sample]],
            task_of_sample=torch.zeros(1, dtype=torch.long),
            dtype=torch.float32,
        )
        expected = alone.for_rows(torch.zeros(1, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool))(
            0, x[row : row + 1]
        )
        torch.testing.assert_close(together[row : row + 1], expected)


def test_contiguous_and_gathered_rows_agree() -> None:
    lora = mean_samples(CONFIG, [tensors(tasks=2)]).loras
    x = torch.randn(6, 5, SITE.d_in)
    blocks = LoraDraw(lora, torch.tensor([0, 0, 0, 1, 1, 1]))(0, x)
    order = torch.tensor([3, 0, 4, 1, 5, 2])
    gathered = LoraDraw(lora, torch.tensor([0, 0, 0, 1, 1, 1])[order])(0, x[order])
    torch.testing.assert_close(gathered, blocks[order])


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


def output_draw(t: SiteTensors, rows: int, length: int, seeds: list[int], **more: object) -> OutputDraw:
    valid = torch.ones(rows, length, dtype=torch.bool)
    return OutputDraw(OUTPUT, [t], torch.zeros(rows, dtype=torch.long), valid, seeds, **more)  # type: ignore[arg-type]


def test_output_noise_has_the_stated_mean_and_variance() -> None:
    t, x = tensors(), torch.randn(1, 3, SITE.d_in)
    n = 4000
    y = output_draw(t, n, 3, list(range(n)))(0, x.expand(n, 3, SITE.d_in))
    mean = OUTPUT.scaling * x @ t.mean_a.mT @ t.mean_b.mT
    log_var = OUTPUT.scaling * x @ t.spread_a.mT @ t.spread_b.mT - 2.0
    sd = (log_var / 2).exp()[0]
    assert ((y.mean(0) - mean[0]).abs() < 5 * sd / math.sqrt(n)).all()
    torch.testing.assert_close(y.std(0), sd, rtol=0.08, atol=0)


def test_output_noise_of_a_row_does_not_depend_on_padding_or_batch_mates() -> None:
    t, x = tensors(), torch.randn(2, 7, SITE.d_in)
    together = output_draw(t, 2, 7, [3, 4])
    together.valid[1, 4:] = False
    alone = output_draw(t, 1, 4, [4])
    torch.testing.assert_close(together(0, x)[1, :4], alone(0, x[1:, :4])[0])


def test_output_divergence_both_estimators() -> None:
    """Zero at theta for any noise; the one-sample estimator averages to the closed form."""
    q, p, x = tensors(seed=1), tensors(seed=2), torch.randn(1, 3, SITE.d_in)
    at_theta = output_draw(q, 1, 3, [0], prior=[q], kl_estimator="sample")
    at_theta(0, x)
    torch.testing.assert_close(at_theta.kl, torch.zeros(1), atol=1e-5, rtol=0)
    n = 4000
    closed, sampled = (
        output_draw(q, n, 3, list(range(n)), prior=[p], kl_estimator=kind) for kind in ("closed", "sample")
    )
    closed(0, x.expand(n, 3, SITE.d_in))
    sampled(0, x.expand(n, 3, SITE.d_in))
    error = sampled.kl.std() / math.sqrt(n)  # type: ignore[union-attr]
    assert abs(sampled.kl.mean() - closed.kl[0]) < 4 * error  # type: ignore[union-attr, index]
