"""MLX's arrays are lazy: a step that left its graph behind would grow, and so would one whose micro-batches wait for one another."""

import mlx.core as mx
import numpy as np
import pytest
from model_fixtures import random_tokens, start, tiny_config

from trit.train.phases import Moment, has_moments

SETTINGS = {
    "plain": {},
    "everything": {
        "grad_accum_steps": 2, "ema_decay": 0.9, "engram_buckets": 64, "quant.noise": 0.1, "drop_path": 0.1, "quant.rate_penalty": 0.01,
    },
    "carried": {"name": "koopman_ssm", "koopman_state_dim": 32, "carry": "true", "grad_accum_steps": 2},
}  # fmt: skip
STEPS = 200


def trained(cfg, steps, rows, after=lambda step: None):
    """Take `steps` steps on `rows` windows each."""
    backend = start(cfg, "mlx")
    given = [Moment(False, 1, 0, 0.0, np.ones(rows, np.float32))] if has_moments(cfg) else []
    for step in range(steps):
        tokens = random_tokens(cfg, rows, 33, step)
        backend.step(tokens[:, :-1], tokens[:, 1:], 0.1, True, True, *given)()
        after(step)
    return backend


@pytest.mark.parametrize("name", SETTINGS)
def test_active_memory_is_flat_over_many_steps(name):
    settings = dict(SETTINGS[name])
    held = []

    def after(step):
        mx.synchronize()
        held.append(mx.get_active_memory())

    trained(tiny_config(settings.pop("name", "unet"), **settings), STEPS, 4, after)
    # Medians: MLX's own thread lets go of a step's last few arrays after it has said that it is done, sooner or later.
    early, *later = [np.median(part) for part in np.array_split(held[20:], 6)]
    assert early > 100_000
    assert np.allclose(later, early, rtol=0.02)


def test_many_micro_batches_take_no_more_memory_than_two():
    peaks = []
    for parts in (2, 8):
        cfg = tiny_config(grad_accum_steps=parts, train_batch_tokens=32 * 4 * parts)
        trained(cfg, 1, 4 * parts)
        mx.reset_peak_memory()
        trained(cfg, 2, 4 * parts)
        peaks.append(mx.get_peak_memory())
    assert peaks[1] <= 1.1 * peaks[0]
