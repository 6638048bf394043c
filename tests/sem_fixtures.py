"""What the tests of sem and of its layers share: tiny configurations, weights, arrays."""

import numpy as np
import torch
from model_fixtures import random_arrays, tiny_config

from trit.models import sem

NAME = "sem"


def case(**settings):
    """(config, weights that are nowhere constant)."""
    cfg = tiny_config(NAME, **settings)
    return cfg, random_arrays(sem.param_specs(cfg))


def tensors(arrays):
    """Weights as PyTorch has them."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def normal(*shape, seed=0):
    """Float32 numbers of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
