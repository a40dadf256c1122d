"""Random weights, and inputs of matrices with their statistics, the same each time."""

import math

import torch

from edgec.calibrate.stats import Stats


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(tokens, cols, seed=0):
    """Return inputs (tokens, cols) of different sizes that have much in common."""
    mixed = normal(tokens, cols, seed=seed) @ normal(cols, cols, seed=seed + 1) / math.sqrt(cols)
    return (mixed + normal(tokens, 1, seed=seed + 2)) * torch.exp(normal(cols, seed=seed + 3))


def seen(inputs):
    """Return the importance and the Hessian of inputs (tokens, cols)."""
    hessian = inputs.T @ inputs / len(inputs)
    return Stats(hessian.diagonal().clone(), hessian=hessian)


def some_dead(inputs):
    """Return inputs of which every third never occurs."""
    return inputs * (torch.arange(inputs.shape[1]) % 3 > 0)
