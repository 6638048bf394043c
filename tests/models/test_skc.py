"""The law of `skc`: its mixer is C1 of the specification, block by block; blocks are foretold by earlier ones alone; operators contract."""

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, logits_of, random_arrays, random_tokens, start, tiny_config

from trit.data.token_ids import BOS_ID
from trit.layers.hadamard import hadamard_matrix
from trit.layers.operator import advanced
from trit.layers.skc import skc_layer, skc_specs, skc_tables
from trit.layers.spectral import sequency_order, spectral_path, spectral_tables
from trit.models import load_arch
from trit.ops import torch_ops

SETTINGS = {
    "default": {},
    "isolated": {"isolate_documents": "true"},
    "no_coupling": {"capsule_rank": 0},
    "one_capsule": {"skc_capsules": 1, "skc_block": 2},
    "isolated_wide": {"isolate_documents": "true", "skc_block": 16, "skc_capsules": 8, "skc_conv_kernel": 1},
}


def text(length, starts, seed=0):
    """int32 (2, length) tokens that begin documents at `starts`."""
    tokens = np.random.default_rng(seed).integers(BOS_ID + 1, 64, (2, length)).astype(np.int32)
    tokens[:, starts] = BOS_ID
    return tokens


def layer_case(length=45, **settings):
    """(config, arrays of a layer "s", stream (2, length, 32), tokens)."""
    cfg = tiny_config("skc", **settings)
    x = np.random.default_rng(0).standard_normal((2, length, 32)).astype(np.float32)
    return cfg, random_arrays(skc_specs(cfg, "s")), x, text(length, [0, 11, 16, 33])


def run_layer(cfg, arrays, x, tokens, ops=torch_ops):
    """(output, auxiliary losses) of the mixer as numpy."""
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    out, losses = skc_layer(ops, p, cfg, "s", ops.from_numpy(x), skc_tables(ops, cfg, ops.from_numpy(tokens)))
    return ops.to_numpy(out), {name: float(ops.to_numpy(loss)) for name, loss in losses.items()}


def walsh(size):
    """Orthonormal Walsh matrix by its definition: rows of the Sylvester matrix sorted by how often they change sign."""
    rows = np.array([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]) / size**0.5
    return rows[np.argsort((np.diff(np.sign(rows)) != 0).sum(1))]


def sylvester(size):
    return np.array([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]) / size**0.5


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def share_of(z):
    return 2.0**-14 + (1 - 2.0**-13) * sigmoid(z)


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def operator(arrays, cfg):
    """(N, C, C): the matrix that advances each capsule by a block."""
    diagonal = 0.95 * np.tanh(arrays["s.diagonal"].astype(np.float64))
    hadamard, coupling = sylvester(diagonal.shape[1]), 0.0
    if cfg.arch.capsule_rank:
        first, second = (arrays[f"s.couple_{side}"].astype(np.float64) for side in ("in", "out"))
        coupling = second @ first * (0.04 / max(np.linalg.norm(first) * np.linalg.norm(second), 0.04))
    return np.stack([hadamard @ (np.diag(row) + coupling) @ hadamard for row in diagonal])


def document_by_document(cfg, arrays, signal, tokens):
    """What each token reads of the blocks before it (T, S), float64: blocks one after another, a fresh state where a document begins."""
    size, capsules = cfg.arch.skc_block, cfg.arch.skc_capsules
    places = np.arange(size) / (size - 1)
    centres = np.arange(capsules) / max(capsules - 1, 1) + arrays["s.centre"]
    bands = -0.5 * ((places[:, None] - centres) * capsules * np.exp(-arrays["s.width"])) ** 2
    horizons = np.exp(np.arange(signal.shape[1]) * np.log(cfg.arch.skc_memory) / (signal.shape[1] - 1))
    share, advance = share_of(arrays["s.memory"] - np.log(horizons - 0.9)), operator(arrays, cfg)
    first, out = arrays["s.first"].astype(np.float64), np.zeros(signal.shape)

    def told(state):
        return walsh(size).T @ softmax(bands) @ np.einsum("ncd,nd->nc", advance, state)

    state = first
    for begin in range(0, len(signal), size):
        block, ids = signal[begin : begin + size], tokens[begin : begin + size]
        inside = [place for place in range(len(ids)) if ids[place] == BOS_ID] if cfg.model.isolate_documents else []
        new_from = inside[0] if inside else len(ids)
        out[begin : begin + new_from] = told(state)[:new_from]
        out[begin + new_from : begin + len(ids)] = told(first)[new_from : len(ids)]
        if inside:
            state = first
        if [place for place in inside if place]:
            continue  # a block of two documents is a source for neither
        if len(block) == size:
            spectrum = walsh(size) @ block
            routing = softmax(bands + rms(spectrum) @ arrays["s.content"].astype(np.float64).T)
            found = routing.T @ spectrum / np.sqrt((routing**2).sum(0) + 1e-6)[:, None]
            state = (1 - share) * state + share * found
    return out


def token_by_token(cfg, arrays, x, tokens):
    """The mixer in float64 as C1 writes it."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    size, kernel, out = cfg.arch.skc_state_dim, cfg.arch.skc_conv_kernel, np.zeros(x.shape)
    horizons = np.geomspace(2.0, 4.0 * cfg.arch.skc_block, size)
    for row in range(len(x)):
        mixed = x[row].astype(np.float64) @ arrays["s.in"].T
        signal = mixed[:, :size]
        far, state, past = document_by_document(cfg, arrays, signal, tokens[row]), np.zeros(size), []
        for t, token in enumerate(tokens[row]):
            if token == BOS_ID and cfg.model.isolate_documents:
                state, past = np.zeros(size), []
            past.append(signal[t])
            local = signal[t]
            if kernel > 1:
                local = sum(arrays["s.conv"][kernel - 1 - lag] * past[-1 - lag] for lag in range(min(kernel, len(past))))
            share = share_of(mixed[t, 2 * size :] + arrays["s.rate"] - np.log(horizons - 1))
            state = (1 - share) * state + share * sigmoid(mixed[t, size : 2 * size]) * local
            out[row, t] = arrays["s.out"] @ (rms(state + arrays["s.mix"] * far[t]) * arrays["s.out.gain"])
    return out


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mixer_is_the_specification_block_by_block(backend, settings):
    cfg, arrays, x, tokens = layer_case(**SETTINGS[settings])
    found, _ = run_layer(cfg, arrays, x, tokens, BACKENDS[backend].ops)
    assert np.abs(found - token_by_token(cfg, arrays, x, tokens)).max() <= 5e-5


@pytest.mark.parametrize("size", [2, 4, 16, 64])
def test_walsh_rows_are_orthonormal_in_order_of_sequency(size):
    like = torch.zeros(1)
    rows = hadamard_matrix(torch_ops, size, like).numpy()[sequency_order(size)]
    assert np.allclose(rows @ rows.T, np.eye(size), atol=1e-6)
    assert [(np.diff(np.sign(row)) != 0).sum() for row in rows] == list(range(size))
    whole = hadamard_matrix(torch_ops, size, like).numpy()
    assert np.allclose(whole @ whole, np.eye(size), atol=1e-6) and np.allclose(rows, walsh(size), atol=1e-6)


@pytest.mark.parametrize("length", [7, 8, 9, 23, 64])
def test_a_block_is_foretold_by_the_blocks_before_it_alone(length):
    cfg = tiny_config("skc")
    p = {name: torch.from_numpy(x) for name, x in random_arrays(skc_specs(cfg, "s")).items()}
    tables = spectral_tables(torch_ops, cfg, torch.zeros((1, length), dtype=torch.int32), 32)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, length, 32)).astype(np.float32))
    before = spectral_path(torch_ops, p, cfg, "s", x, tables)[0]
    for t in range(length):
        changed = x.clone()
        changed[:, t] += 1.0
        moved = (spectral_path(torch_ops, p, cfg, "s", changed, tables)[0] - before).abs().amax((0, 2))
        following = (t // 8 + 1) * 8
        assert (moved[:following] == 0).all() and (moved[following:] > 0).all()


def radius(trained, name):
    """Largest spectral radius over the capsules of one layer, and the range of its shares."""
    arrays = {"s" + key[len(name) :]: array for key, array in trained.export().items() if key.startswith(name + ".")}
    matrices = operator(arrays, tiny_config("skc"))
    return max(np.abs(np.linalg.eigvals(matrix)).max() for matrix in matrices)


def test_prediction_contracts_at_the_start_and_after_wild_training():
    cfg = tiny_config("skc", scalar_lr=0.3, matrix_lr=0.2, grad_clip_norm=0, warmup_fraction=0.0)
    trained = start(cfg)
    assert radius(trained, "block1.skc") < 1
    for seed in range(40):
        rows = random_tokens(cfg, 4, 33, seed)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
    assert radius(trained, "block1.skc") < 1
    # Whatever the numbers: even far beyond what training reaches.
    cfg, arrays, _, _ = layer_case()
    for scale in (10.0, 1e4):
        wild = {name: array * scale for name, array in arrays.items()}
        p = {name: torch.from_numpy(x) for name, x in wild.items()}
        state = torch.ones(1, 1, 4, 32)
        for _ in range(400):
            state = advanced(torch_ops, p, cfg, "s", state, hadamard_matrix(torch_ops, 32, state))
        assert state.abs().max() < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gate_shut_is_the_mixer_without_the_path(backend):
    cfg, arrays, x, tokens = layer_case()
    without = tiny_config("skc", skc_mix_init=0.0)
    arrays["s.mix"] = np.zeros_like(arrays["s.mix"])
    ops = BACKENDS[backend].ops
    assert (run_layer(cfg, arrays, x, tokens, ops)[0] == run_layer(without, arrays, x, tokens, ops)[0]).all()
    assert {spec.name for spec in skc_specs(without, "s")} == {"s.in", "s.rate", "s.conv", "s.out", "s.out.gain"}


def test_losses_are_those_of_capsules_that_came_and_move_no_logit():
    settings = {"skc_predict_weight": 1.0, "skc_rollout": 2, "skc_entropy_weight": 1.0, "skc_entropy_fraction": 1.0}
    cfg, arrays, x, tokens = layer_case(length=41, **settings)
    out, losses = run_layer(cfg, arrays, x, tokens)
    assert set(losses) == {"skc_predict", "skc_entropy"} and all(loss > 0 for loss in losses.values())
    plain, none = run_layer(tiny_config("skc", skc_predict_weight=0.0), arrays, x, tokens)
    assert (out == plain).all() and none == {}
    # A capsule that never changes and an operator that is the identity would foretell it: the loss falls as the state gets near.
    again = {name: np.array(array) for name, array in arrays.items()}
    again["s.diagonal"][:], again["s.couple_in"][:] = 10.0, 0.0
    still = np.repeat(np.tile(x[:, :8], (1, 6, 1))[:, :41], 1, 1)
    assert run_layer(cfg, again, still, tokens)[1]["skc_predict"] < losses["skc_predict"] / 2
    # One channel alone holds the energy: the entropy is missing whole.
    again["s.in"][1:32] = 0.0
    assert run_layer(cfg, again, x, tokens)[1]["skc_entropy"] == pytest.approx(np.log(32), rel=0.01)


def test_the_prediction_learns():
    """With the targets' loss alone on repeated blocks the operator finds them."""
    cfg = tiny_config("skc", skc_predict_weight=1.0, skc_rollout=2)
    trained, rows = start(cfg), np.tile(random_tokens(cfg, 2, 8), (2, 5))[:, :33]
    seen = []
    for _ in range(30):
        seen.append(trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)())
    assert seen[-1][0] < seen[0][0] - 0.3


def test_parallel_blocks_read_one_stream():
    tokens = random_tokens(tiny_config("skc"), 2, 20)
    cfg, serial = tiny_config("skc", parallel="true"), tiny_config("skc")
    arrays = random_arrays(load_arch("skc").param_specs(cfg))
    assert (logits_of(cfg, arrays, tokens) != logits_of(serial, arrays, tokens)).any()
    # Without the mixer's part the order cannot matter.
    arrays = {name: x * 0 if name.endswith(("attn_scale", "skc_scale")) else x for name, x in arrays.items()}
    assert np.allclose(logits_of(cfg, arrays, tokens), logits_of(serial, arrays, tokens), atol=1e-5)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"skc_block": 12}, "skc_block=12 must be a power of two"),
        ({"skc_state_dim": 48}, "skc_state_dim=48 must be a power of two"),
        ({"skc_capsules": 0}, "skc_capsules=0 must be positive"),
        ({"skc_memory": 1.0}, "skc_memory=1.0 must be more than 1"),
        ({"layer_map": "ax"}, "letters: a .attention. or s .SKC."),
        ({"layer_map": "aa"}, "sets the SKC mixer, but arch.layer_map='aa' has no s"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config("skc", **settings)
