"""Chance in training: noise on ternary codes and blocks left out. Functions of seed and step alone, on average nothing, never in evaluation."""

import numpy as np
import pytest
from model_fixtures import BACKENDS, largest_difference, load_arch, logits_of, random_arrays, random_tokens, start, takes, tiny_config

from trit.compress.quantize import fake_quantize, group_layout, quantize
from trit.models import arch_names
from trit.train.chance import even_noise, kept_blocks, noise_key, noisy_quantize
from trit.train.phases import Moment

DROPPED = [name for name in arch_names() if name != "equilibrium"]  # whose cells have no update of their own to leave out
NOISY, DROPPING = {"noise": 0.2}, {"drop_path": 0.4, "num_layers": 4}


def at(step=3, progress=0.25, seed=1):
    return Moment(False, seed, step, progress)


def mixed(x):
    """The hash of trit/layers/engram.py in numpy."""
    x = x * np.int64(-7046029254386353131)
    x = x ^ ((x >> 29) & 0x7FFFFFFFF)
    x = x * np.int64(-4658895280553007687)
    return x ^ ((x >> 32) & 0xFFFFFFFF)


def drawn(backend, shape, key):
    ops = BACKENDS[backend].ops
    return ops.to_numpy(even_noise(ops, shape, ops.from_numpy(np.array([key])), ops.from_numpy(np.zeros(1, np.float32))))


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_the_same_everywhere(backend):
    """Its 24 bits exactly; the one product with a constant that follows is exact in neither library, and equal in both."""
    with np.errstate(over="ignore"):
        rows = mixed(np.int64(2**61 + 5) + np.arange(50) + 1)
        bits = mixed(mixed(rows[:, None] + np.arange(70) * 65599)) & 0xFFFFFF
    wanted = (bits.astype(np.float32) - np.float32(8388607.5)) * np.float32(3.0**0.5 / 8388608.0)
    assert np.array_equal(drawn(backend, (50, 70), 2**61 + 5), wanted)


def test_noise_is_even_and_unrelated():
    x = drawn("torch", (400, 500), 77)
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01 and np.abs(x).max() <= 3**0.5
    counts = np.histogram(x, 20)[0]
    assert np.abs(counts / counts.mean() - 1).max() < 0.05
    for y in (np.roll(x, 1, 0), np.roll(x, 1, 1), np.roll(x, (1, -1), (0, 1)), drawn("torch", (400, 500), 78)):
        assert abs((x * y).mean()) < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extra", [{}, {"rotate_matrices": "true"}, {"scale_steps": 8, "scalar_bits": 6, "embed_bits": 1}])
def test_noise_is_a_share_of_each_scale_on_ternary_tensors_alone(backend, extra):
    cfg, ops = tiny_config(**NOISY, **extra), BACKENDS[backend].ops
    specs = load_arch("unet").param_specs(cfg)
    p = {name: ops.from_numpy(array) for name, array in random_arrays(specs).items()}
    plain, stored = fake_quantize(ops, cfg, specs, p, {}), quantize(ops, cfg, specs, p, {})
    assert noise_key(cfg, at())[1] == np.float32(0.15) and noise_key(cfg, at(progress=1.0))[1] == 0
    noisy = noisy_quantize(ops, cfg, specs, p, *map(ops.from_numpy, noise_key(cfg, at())))
    silent = noisy_quantize(ops, cfg, specs, p, *map(ops.from_numpy, noise_key(cfg, at(progress=1.0))))
    for spec in specs:
        change = ops.to_numpy(noisy[spec.name]) - ops.to_numpy(plain[spec.name])
        assert np.array_equal(ops.to_numpy(silent[spec.name]), ops.to_numpy(plain[spec.name]))
        if spec.scheme != "ternary":
            assert (change == 0).all()
            continue
        groups = change.reshape(-1, group_layout(spec)[1]) / stored[spec.name].scales.astype(np.float32)
        assert 0.13 < groups.std() < 0.17 and (spec.rotate or np.abs(groups).max() < 0.15 * 3**0.5 + 1e-3)


@pytest.mark.parametrize("settings", [NOISY, DROPPING])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_depends_on_seed_and_step_and_on_nothing_else(backend, settings):
    cfg = tiny_config(**settings)
    rows = random_tokens(cfg, 4, 33)

    def state(moment):
        trained = start(cfg, backend)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False, moment)()
        return trained.state()

    assert largest_difference(state(at()), state(at())) == 0
    assert largest_difference(state(at()), state(at(step=4))) > 1e-5 < largest_difference(state(at()), state(at(seed=2)))


@pytest.mark.parametrize("name", arch_names())
def test_both_array_libraries_take_the_same_step(name):
    recurring = {"recurrent_layers": "0", "recurrence_start": 0.5}
    recurring = recurring if takes(name, recurring) else {}
    dropping = DROPPING if name in DROPPED else {}
    cfg = tiny_config(name, **NOISY, **dropping, grad_accum_steps=2, loss_chunk_tokens=16, **recurring)
    rows = random_tokens(cfg, 4, 33)
    for shallow in (True, False):
        found = [
            start(cfg, backend).step(rows[:, :-1], rows[:, 1:], 1.0, True, False, Moment(shallow, 1, 3, 0.2))() for backend in BACKENDS
        ]
        assert np.allclose(*found, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_micro_batches_share_out_the_draws(backend):
    rows, found = random_tokens(tiny_config(), 4, 33), []
    for parts in (1, 2, 4):
        trained = start(tiny_config(**DROPPING, grad_accum_steps=parts), backend)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, False, False, at())()
        found.append({name: x for name, x in trained.state().items() if name.startswith("optimizer/") and name.endswith("/0")})
    assert largest_difference(found[0], found[1]) < 1e-5 > largest_difference(found[0], found[2])


def test_ranks_share_out_the_draws():
    cfg = tiny_config(**DROPPING)
    whole = kept_blocks(cfg, at(), 8, 0, 1)
    for world in (2, 4, 8):
        parts = [kept_blocks(cfg, at(), 8 // world, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts, 1), whole)
    assert whole.shape == (4, 8, 1, 1) and set(np.unique(whole)) == {0, np.float32(1 / 0.6)}
    means = np.mean([kept_blocks(cfg, at(step), 8, 0, 1) for step in range(500)], (0, 2))
    assert np.abs(means - 1).max() < 0.05


def stream(cfg, name, backend, arrays, tokens, keep=None):
    ops = BACKENDS[backend].ops
    p = {key: ops.from_numpy(array) for key, array in arrays.items()}
    if keep is not None:
        p["keep"] = ops.from_numpy(np.asarray(keep, np.float32)[:, :, None, None])
    return ops.to_numpy(load_arch(name).forward(ops, p, cfg, ops.from_numpy(tokens))[0])


@pytest.mark.parametrize("share", [0.1, 0.4, 0.75])
def test_what_blocks_are_multiplied_with_is_1_on_average(share):
    cfg = tiny_config(drop_path=share, num_layers=4)
    kept = np.stack([kept_blocks(cfg, at(step=step), 64, 0, 1) for step in range(100)])
    assert kept.shape == (100, 4, 64, 1, 1) and set(np.unique(kept)) == {np.float32(0), np.float32(1 / (1 - share))}
    assert abs(kept.mean() - 1) < 5 * (share / (1 - share) / kept.size) ** 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DROPPED)
def test_the_expected_update_of_a_block_is_its_update(name, backend):
    own = {"skc": {"layer_map": "s"}, "hybrid": {"layer_map": "ak"}, "sem": {"propagators": 0}}.get(name, {})
    cfg = tiny_config(name, drop_path=0.4, **own | ({"num_layers": 1} if name != "hybrid" else {}))
    arrays, tokens = random_arrays(load_arch(name).param_specs(cfg)), random_tokens(cfg, 3, 17)
    layers = cfg.model.num_layers

    def last(value):
        """Only the last block varies: the stream is linear in what its update is multiplied with."""
        return stream(cfg, name, backend, arrays, tokens, [[1.0] * 3] * (layers - 1) + [[value] * 3])

    without = stream(cfg, name, backend, arrays, tokens)
    assert np.abs(0.4 * last(0.0) + 0.6 * last(1 / 0.6) - without).max() < 1e-4 and np.abs(last(1.0) - without).max() < 1e-5
    assert np.abs(last(0.0) - without).max() > 1e-2
    one = stream(cfg, name, backend, arrays, tokens, [[1.0, 0.0, 1.0]] * layers)
    assert np.abs(one[[0, 2]] - without[[0, 2]]).max() < 1e-5 and np.abs(one[1] - without[1]).max() > 1e-2


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_knows_no_chance(backend):
    arrays, tokens = random_arrays(load_arch("unet").param_specs(tiny_config())), random_tokens(tiny_config(), 2, 32)
    plain = logits_of(tiny_config(), arrays, tokens, backend)
    assert np.array_equal(plain, logits_of(tiny_config(noise=0.2, drop_path=0.4), arrays, tokens, backend))


@pytest.mark.parametrize("settings,message", [
    ({"drop_path": 1.0}, "train.drop_path=1.0 must be at least 0"),
    ({"noise": -0.1}, "must not be negative"),
    ({"noise": 0.1, "matrix_scheme": "int"}, "needs ternary weights"),
    ({"noise": 0.1, "fp8": "true"}, "not exact in train.fp8"),
])  # fmt: skip
def test_impossible_settings_are_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)
