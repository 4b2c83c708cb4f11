"""Divergences and densities of Gaussians, element by element."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """Return KL(N(mean_q, var_q) || N(mean_p, var_p)) by element, in nats (closed form)."""
    ratio = log_var_q - log_var_p
    return 0.5 * (ratio.exp() + (mean_q - mean_p).square() * (-log_var_p).exp() - 1 - ratio)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return log N(x; mean, exp(log_var)) by element, in nats."""
    return -0.5 * (math.log(2 * math.pi) + log_var + (x - mean).square() * (-log_var).exp())


def log_prior(mean: Tensor, log_var: Tensor, *, shape: float = 1.0, rate: float = 0.01) -> Tensor:
    """Return the log density of the prior on theta by element, in nats (docs/method.md 1).

    It is log N(mean; 0, 1) + log Gamma(exp(-log_var); shape, rate).
    """
    precision = (-log_var).exp()
    log_gamma = shape * math.log(rate) - math.lgamma(shape) - (shape - 1) * log_var - rate * precision
    return gaussian_log_prob(mean, torch.zeros_like(mean), torch.zeros_like(mean)) + log_gamma
