"""The law of `koopman_ssm`: its mixer is the recurrence token by token, its decays stay inside (0, 1), what is off changes nothing."""

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, logits_of, random_arrays, random_tokens, start, tiny_config

from trit.compress.hadamard import hadamard_rotate
from trit.data.token_ids import BOS_ID
from trit.eval.ttt import scope_specs
from trit.layers.koopman import koopman_layer, koopman_specs, koopman_tables
from trit.layers.scan import SHARE_MARGIN, state_share
from trit.models import load_arch
from trit.models.koopman_ssm import param_specs
from trit.ops import torch_ops

NAME = "koopman_ssm"


def text(length, starts, seed=0):
    """int32 (2, length) tokens that begin documents at `starts`."""
    tokens = np.random.default_rng(seed).integers(BOS_ID + 1, 64, (2, length)).astype(np.int32)
    tokens[:, starts] = BOS_ID
    return tokens


def run_layer(cfg, arrays, x, tokens, ops=torch_ops):
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    return ops.to_numpy(koopman_layer(ops, p, cfg, "k", ops.from_numpy(x), koopman_tables(ops, cfg, ops.from_numpy(tokens))))


def layer_case(length=40, seed=0, **settings):
    """(config, arrays of a layer "k", stream (2, length, 32))."""
    cfg = tiny_config(NAME, **settings)
    x = np.random.default_rng(seed).standard_normal((2, length, 32)).astype(np.float32)
    return cfg, random_arrays(koopman_specs(cfg, "k")), x


def token_by_token(cfg, arrays, x, tokens):
    """The mixer in float64, one token after another, as skc.md B7 writes it with its corrections."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    size, kernel = cfg.arch.koopman_state_dim, cfg.arch.koopman_conv_kernel

    def sigmoid(z):
        return 1.0 / (1.0 + np.exp(-z))

    def rotated(rows):
        return hadamard_rotate(torch_ops, torch.from_numpy(rows)).numpy() if cfg.arch.koopman_hadamard else rows

    horizons = np.geomspace(2.0, cfg.arch.koopman_horizon, size)
    out = np.zeros(x.shape)
    for row in range(len(x)):
        state, past = np.zeros(size), []
        for t, token in enumerate(tokens[row]):
            if token == BOS_ID and cfg.model.isolate_documents:
                state, past = np.zeros(size), []
            value, gate, rate = np.split(arrays["k.in"] @ x[row, t].astype(np.float64), 3)
            past.append(value)
            if kernel > 1:
                value = sum(arrays["k.conv"][kernel - 1 - lag] * past[-1 - lag] for lag in range(min(kernel, len(past))))
            share = SHARE_MARGIN + (1 - 2 * SHARE_MARGIN) * sigmoid(rate + arrays["k.rate"] - np.log(horizons - 1))
            state = (1 - share) * state + share * sigmoid(gate) * rotated(value[None])[0]
            read = state
            if cfg.arch.koopman_rank:
                read = state + arrays["k.couple_out"] @ (arrays["k.couple_in"] @ state)
            read = rotated(read[None])[0]
            out[row, t] = arrays["k.out"] @ (read / np.sqrt((read**2).mean() + 1e-6) * arrays["k.out.gain"])
    return out


SETTINGS = {
    "default": {},
    "isolated": {"isolate_documents": "true"},
    "plain": {"koopman_conv_kernel": 1, "koopman_rank": 0, "koopman_hadamard": "false"},
    "odd_width": {"koopman_state_dim": 21, "koopman_hadamard": "false"},
    "isolated_long_kernel": {"isolate_documents": "true", "koopman_conv_kernel": 7, "koopman_state_dim": 64, "koopman_rank": 64},
    "one_channel": {"koopman_state_dim": 1, "koopman_rank": 1},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mixer_is_the_recurrence_token_by_token(backend, settings):
    cfg, arrays, x = layer_case(**SETTINGS[settings])
    tokens = text(40, [0, 9, 10, 12, 30])
    found = run_layer(cfg, arrays, x, tokens, BACKENDS[backend].ops)
    assert np.abs(found - token_by_token(cfg, arrays, x, tokens)).max() <= 2e-5


def test_horizons_start_log_spaced_from_two_tokens():
    cfg = tiny_config(NAME, koopman_horizon=2048.0, koopman_state_dim=128)
    logits = koopman_tables(torch_ops, cfg, torch.zeros((1, 4), dtype=torch.int32))[0]
    horizons = 1.0 / state_share(torch_ops, logits).double().numpy()
    assert np.allclose(horizons[[0, -1]], [2, 2048], rtol=0.15) and (np.diff(horizons) > 0).all()
    assert np.allclose(horizons[:64], np.geomspace(2, 2048, 128)[:64], rtol=0.01)
    # What the slowest channel took in halves after 2048 * ln 2 tokens, about.
    assert abs((1 - 1 / horizons[-1]) ** (2048 * np.log(2)) - 0.5) < 0.05


def test_decays_stay_inside_zero_and_one():
    """Strictly, in float32, whatever the logits: the spectral radius of the recurrence is below one and no channel ever freezes."""
    for logits in (np.linspace(-20, 20, 401), np.array([-1e30, -1e4, -100, -50, 50, 100, 1e4, 1e30, np.inf, -np.inf])):
        for side in BACKENDS.values():
            share = state_share(side.ops, side.ops.from_numpy(logits.astype(np.float32)))
            decays = side.ops.to_numpy(1.0 - share)
            assert (decays > 0).all() and (decays < 1).all() and (side.ops.to_numpy(share) > 0).all()
            assert decays.max() <= 1 - 0.9 * SHARE_MARGIN and decays.min() >= 0.9 * SHARE_MARGIN


@pytest.mark.parametrize("rate", [0.01, 1.0, 30.0])
def test_decays_stay_inside_after_steps_of_any_size(rate):
    cfg = tiny_config(NAME, scalar_lr=rate, matrix_lr=rate, grad_clip_norm=0, warmup_fraction=0.0)
    trained, seen = start(cfg), []
    for seed in range(4):
        rows = random_tokens(cfg, 4, 33, seed)
        arrays = trained.export()
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal((64, 32)).astype(np.float32)) * 3
        horizon = koopman_tables(torch_ops, cfg, torch.from_numpy(rows))[0]
        for block in ("block0", "block1"):
            logits = (
                x @ torch.from_numpy(arrays[f"{block}.koopman.in"][64:]).T + torch.from_numpy(arrays[f"{block}.koopman.rate"]) + horizon
            )
            seen.append(1.0 - state_share(torch_ops, logits))
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
    decays = torch.stack(seen)
    assert (decays > 0).all() and (decays < 1).all()
    assert rate < 1 or (decays[-1] - decays[0]).abs().max() > 0.2
    assert all(np.isfinite(array).all() for array in trained.export().values())


def test_a_document_forgets_all_before_it():
    """State and convolution's tail both: the mixer's output after a BOS is the same to the last bit whatever stood before."""
    cfg, arrays, x = layer_case(isolate_documents="true")
    tokens = text(40, [13, 14, 30])
    before = run_layer(cfg, arrays, x, tokens)
    for begin in (13, 14, 30):
        other = x.copy()
        other[:, :begin] = 1e3 * np.random.default_rng(9).standard_normal((2, begin, 32))
        after = run_layer(cfg, arrays, other, tokens)
        assert np.array_equal(after[:, begin:], before[:, begin:]) and not np.array_equal(after[:, :begin], before[:, :begin])


def test_what_is_off_changes_nothing():
    """Bit for bit: parts that are off, and parts whose weights say nothing."""
    cfg, arrays, x = layer_case()
    tokens = text(40, [])
    whole = run_layer(cfg, arrays, x, tokens)
    assert np.array_equal(run_layer(tiny_config(NAME, isolate_documents="true"), arrays, x, tokens), whole)
    silent = arrays | {"k.couple_out": np.zeros_like(arrays["k.couple_out"])}
    without = {name: array for name, array in arrays.items() if "couple" not in name}
    assert np.array_equal(run_layer(cfg, silent, x, tokens), run_layer(tiny_config(NAME, koopman_rank=0), without, x, tokens))
    own = np.zeros_like(arrays["k.conv"])
    own[-1] = 1.0
    without = {name: array for name, array in arrays.items() if name != "k.conv"}
    assert np.array_equal(
        run_layer(cfg, arrays | {"k.conv": own}, x, tokens), run_layer(tiny_config(NAME, koopman_conv_kernel=1), without, x, tokens)
    )
    for changed in (silent, arrays | {"k.conv": own}):
        assert not np.array_equal(run_layer(cfg, changed, x, tokens), whole)


def test_silent_mixers_leave_a_unet_without_attention():
    cfg, plain = tiny_config(NAME, num_layers=3, engram_buckets=64), tiny_config("unet", num_layers=3, engram_buckets=64)
    arrays, tokens = random_arrays(param_specs(cfg)), random_tokens(cfg, 2, 20)
    others = random_arrays(load_arch("unet").param_specs(plain))
    shared = {name: arrays[name] for name in others if name in arrays}
    for i in range(3):
        arrays[f"block{i}.koopman_scale"][:] = 0.0
        others[f"block{i}.attn_scale"][:] = 0.0
    assert len(shared) > 10 and np.array_equal(logits_of(cfg, arrays, tokens), logits_of(plain, others | shared, tokens))


def test_a_long_segment_carries_the_state_through():
    """One-pass evaluation limits attention, not the state: a segment is one forward."""
    tokens = text(150, [0, 70])
    for isolated in ("false", "true"):
        plain, segments = (tiny_config(NAME, isolate_documents=isolated, eval_segment_tokens=n) for n in (0, 200))
        arrays = random_arrays(param_specs(plain))
        assert np.array_equal(logits_of(plain, arrays, tokens), logits_of(segments, arrays, tokens))


def test_memory_reaches_back_over_many_tokens():
    cfg = tiny_config(NAME, koopman_horizon=2048.0)
    arrays = random_arrays(param_specs(cfg))
    tokens = random_tokens(cfg, 1, 800)
    changed = tokens.copy()
    changed[0, :8] = (changed[0, :8] + 1) % 64
    assert np.abs(logits_of(cfg, arrays, tokens) - logits_of(cfg, arrays, changed))[0, -1].max() > 1e-4


def test_bfloat16_trains_like_float32():
    losses = []
    for dtype in ("float32", "bfloat16"):
        cfg = tiny_config(NAME, compute_dtype=dtype)
        trained = start(cfg)
        rows = random_tokens(cfg, 4, 33)
        losses.append([trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()[0] for _ in range(6)])
    assert np.allclose(*losses, atol=0.05) and losses[1][-1] < losses[1][0]


def test_test_time_training_knows_decays_and_taps():
    cfg = tiny_config(NAME)
    names = [spec.name for spec in scope_specs(param_specs(cfg), "skc_safe")]
    assert {"block0.koopman.rate", "block0.koopman.conv", "block1.koopman_scale"} <= set(names)
    assert not [name for name in names if "couple" in name or name.endswith((".in", ".out"))]


@pytest.mark.parametrize(
    "setting,message",
    [
        ({"koopman_state_dim": 48}, r"arch.koopman_state_dim=48 must be a power of two with arch.koopman_hadamard"),
        ({"koopman_state_dim": 0}, "arch.koopman_state_dim=0 must be positive"),
        ({"koopman_conv_kernel": 0}, "arch.koopman_conv_kernel=0 must be 1"),
        ({"koopman_rank": 33}, "arch.koopman_rank=33 must be 0"),
        ({"koopman_rank": -1}, "arch.koopman_rank=-1 must be 0"),
        ({"koopman_horizon": 2.0}, "arch.koopman_horizon=2.0 must lie between 2 and 16384"),
        ({"koopman_horizon": 20000.0}, "arch.koopman_horizon=20000.0 must lie between"),
    ],
)
def test_impossible_settings_are_errors_at_the_start(setting, message):
    for arch in (NAME, "hybrid"):
        with pytest.raises(ValueError, match=message):
            tiny_config(arch, **setting)
