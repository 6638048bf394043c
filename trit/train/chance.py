"""What chance adds to training steps: noise on three-valued codes, and blocks left out for some windows. Both are functions of the seed
and of the step alone, so that ranks, micro-batches and resumed runs agree; an evaluation knows neither.
"""

import numpy as np

from trit.compress.quantize import decode, encode
from trit.layers.noise import even_noise


def noise_key(cfg, moment):
    """(key int64 (1,), strength float32 (1,)) of a step's noise: quant.noise at the start of the clock, 0 at its end."""
    key = np.random.default_rng([moment.seed, moment.step, 0]).integers(2**62, size=1)
    return key, np.full(1, cfg.quant.noise * (1.0 - moment.progress), np.float32)


def noisy_quantize(ops, cfg, specs, p, key, strength):
    """`fake_quantize` of parameters `p`, with noise on the codes of ternary tensors: its deviation is `strength` times the group's scale."""
    q = {}
    for number, spec in enumerate(specs):
        x = p[spec.name]
        codes, scales = encode(ops, cfg, spec, ops.stop_gradient(x), {})
        if spec.scheme == "ternary":
            codes = codes + strength * even_noise(ops, codes.shape, key + (number << 32), codes)
        q[spec.name] = ops.straight_through(x, decode(ops, cfg, spec, codes, scales))
    return q


def kept_blocks(cfg, moment, rows, rank, world):
    """What a step multiplies the update of each block with, for each of a rank's `rows` windows: float32 (layers, rows, 1, 1), 0 with the
    probability train.drop_path, else what makes its mean 1."""
    draws = np.random.default_rng([moment.seed, moment.step, 1]).random((rows * world, cfg.model.num_layers))
    kept = (draws >= cfg.train.drop_path)[rank * rows : (rank + 1) * rows].T
    return np.ascontiguousarray(kept[:, :, None, None] / (1.0 - cfg.train.drop_path), np.float32)
