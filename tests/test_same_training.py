"""Training with MLX is training with torch: the first steps of a run agree, and any step from the same state."""

import numpy as np
import pytest
from model_fixtures import BACKENDS, COMBINED, FLAG_SETS, largest_difference, random_tokens, start, takes, tiny_config

from trit.compress.quantize import quantize
from trit.data.loader import open_loader
from trit.models import arch_names, load_arch
from trit.ops import torch_ops
from trit.train.log import Log
from trit.train.run import run_training
from trit.train.schedule import learning_rate_factor

STEPS, RUN = 20, 20000
SIZES = {
    "vocab_size": 260,
    "num_layers": 3,
    "model_dim": 64,
    "embed_dim": 64,
    "engram_buckets": 256,
    "train_seq_len": 64,
    "yarn_max_len": 64,
}
BATCH = {"train_batch_tokens": 512, "iterations": RUN, "calibration_tokens": 64}


def ternary_codes(cfg, arrays):
    """All ternary codes of trained arrays, one after the other."""
    specs = [spec for spec in load_arch(cfg.model.name).param_specs(cfg) if spec.scheme == "ternary"]
    tensors = quantize(torch_ops, cfg, specs, {spec.name: torch_ops.from_numpy(arrays[spec.name]) for spec in specs}, {})
    return np.concatenate([tensors[spec.name].codes.reshape(-1) for spec in specs])


# A relaxation takes some hundred products a step, which the CPU wheel of MLX does slowly; tests/models/test_equilibrium.py compares one step.
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "equilibrium")) for name in arch_names()])
def test_twenty_steps_of_a_run_are_the_same(name, shard_folder):
    """Under the learning rates with which a run of the contest's 20,000 steps begins. Later, and sooner at full rates, the last bits of two libraries
    move one weight over its threshold, and from there two runs part as two seeds do."""
    cfg = tiny_config(name, **SIZES | BATCH)
    loader, sides = open_loader(cfg, shard_folder, 1, 0, 1, 0), [start(cfg, side) for side in BACKENDS]
    for step in range(STEPS):
        inputs, targets = loader.next_batch()
        factor = learning_rate_factor(cfg, step / RUN)
        left, right = (side.step(inputs, targets, factor, True, False)()[0] for side in sides)
        assert abs(left - right) <= 1e-3 * left
    loader.close()
    begun, *codes = (ternary_codes(cfg, arrays) for arrays in (start(cfg).export(), *(side.export() for side in sides)))
    assert len(codes[0]) > 50_000 and (codes[0] != begun).mean() > 1e-3
    assert (codes[0] != codes[1]).mean() <= 1e-4


def test_mlx_steps_under_way_change_nothing(shard_folder):
    """As on a GPU the next step begins before the last one is read."""
    cfg = tiny_config(iterations=12, checkpoint_every=5, ema_decay=0.9, engram_buckets=64)
    ended = []
    for device in ("cpu", "gpu"):
        trained, saved = start(cfg, "mlx", device=device), []
        run_training(
            cfg, load_arch("unet").param_specs(cfg), trained, shard_folder, 1, Log(1), None, lambda *kept, saved=saved: saved.append(kept)
        )
        ended.append((trained.ahead, [state for state, *_ in saved]))
    assert [ahead for ahead, _ in ended] == [0, 1] and len(ended[0][1]) >= 3
    assert all(largest_difference(one, two) == 0 for one, two in zip(ended[0][1], ended[1][1], strict=True))


@pytest.mark.parametrize("flags", ["plain", "engram", *(flags for flags in COMBINED if takes("unet", FLAG_SETS[flags]))])
def test_any_step_from_the_same_state_is_the_same(flags):
    """At full rates, each step of MLX from the state that torch has come to, and the other way round."""
    cfg = tiny_config(grad_accum_steps=2, ema_decay=0.9, **FLAG_SETS[flags])
    sides = [start(cfg, side) for side in BACKENDS]
    for step in range(6):
        leader, follower = sides if step % 2 else sides[::-1]
        follower.restore(leader.state())
        rows = random_tokens(cfg, 4, 33, step)
        one, two = (side.step(rows[:, :-1], rows[:, 1:], 1.0, True, True)() for side in (leader, follower))
        assert np.allclose(one, two, rtol=1e-5, atol=1e-5)
        assert largest_difference(leader.state(), follower.state()) <= 1e-3
        codes = [ternary_codes(cfg, side.export()) for side in (leader, follower)]
        assert (codes[0] != codes[1]).sum() <= 3  # of some 15,000: a weight on its threshold may fall either way
