"""The complex state-space layer of `sem`: the recurrence token by token, horizons as declared, norms and phases that stay."""

import math

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, random_arrays, random_tokens, tiny_config
from sem_fixtures import NAME, case, normal, tensors

from trit.data.token_ids import BOS_ID
from trit.layers.complex_ssm import complex_ssm_layer, complex_ssm_tables, first_horizons, first_rates, mode_rates
from trit.layers.pairs import pair_norm, turned
from trit.layers.spinor import spinor_basis, spinor_gate
from trit.models import sem
from trit.ops import torch_ops


def complex_of(x):
    return x[..., : x.shape[-1] // 2].astype(np.float64) + 1j * x[..., x.shape[-1] // 2 :]


def token_by_token(cfg, arrays, x, tokens):
    """The layer "n" in complex128, one token after another with what a decoder would carry: the state and the last inputs of the taps."""
    a = {name[2:]: array.astype(np.float64) for name, array in arrays.items() if name.startswith("n.")}
    width, groups, block = cfg.model.model_dim, cfg.arch.state_groups, cfg.arch.spinor_block

    def matrix(name):
        return a[name][:, 0::2] + 1j * a[name][:, 1::2]

    def softplus(z):
        return np.logaddexp(z, 0)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    taps, (decays, frequencies) = a["conv"][:, :width] + 1j * a["conv"][:, width:], first_rates(cfg)
    rate, turn = softplus(a["decay"] + decays).reshape(groups, -1), (a["frequency"] + frequencies).reshape(groups, -1)
    bases, eye = [], np.eye(block)
    for g in a["spinor.generator"]:
        k = (g - g.T) + 1j * (g + g.T)
        bases.append(np.linalg.solve(eye + k / 2, eye - k / 2))
    out = np.zeros((*x.shape[:2], width), complex)
    for row in range(len(x)):
        h, past = np.zeros(rate.size, complex), []
        for t, token in enumerate(tokens[row]):
            if token == BOS_ID and cfg.model.isolate_documents:
                h, past = np.zeros(rate.size, complex), []
            psi = complex_of(x[row, t])
            past = ([psi / np.sqrt((abs(psi) ** 2).mean() + 2e-6) * a["norm"]] + past)[: len(taps)]
            q = past[0] + sum(taps[len(taps) - 1 - lag] * earlier for lag, earlier in enumerate(past))
            f = np.concatenate([q.real, q.imag])
            gates = sigmoid(1.7015 * (a["spinor.gate"] @ f + a["spinor.gate_bias"]))
            for b, basis in enumerate(bases):
                part = slice(b * block, (b + 1) * block)
                q[part] = basis @ (np.exp(1j * gates[b] * a["spinor.phase"][part]) * (basis.conj().T @ q[part]))
            steps = softplus(a["step"] @ f + a["step_bias"])
            alpha, theta = (steps[:groups, None] * rate).ravel(), (steps[groups:, None] * turn).ravel()
            h = np.exp(-alpha + 1j * theta) * h + np.sqrt(1 - np.exp(-2 * alpha)) * (matrix("in") @ q)
            y = matrix("read") @ h + a["through"] * q
            y = y * (1 - np.exp(-np.exp(a["power"]) * abs(y) ** 2)) * 2 * sigmoid(a["gate"] @ f + a["gate_bias"])
            out[row, t] = a["residual"] * (matrix("out") @ y)
    return np.concatenate([out.real, out.imag], -1)


@pytest.mark.parametrize("isolated", ["false", "true"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_is_the_recurrence_token_by_token(backend, isolated):
    """T6, T3: a decoder that carries a state and three inputs gives what the parallel form does, wherever chunks end."""
    cfg = tiny_config(NAME, isolate_documents=isolated)
    arrays = random_arrays([spec for spec in sem.param_specs(cfg) if spec.name.startswith("layer0.")])
    arrays = {name.replace("layer0", "n"): array for name, array in arrays.items()}
    x, tokens, ops = normal(2, 45, 64), random_tokens(cfg, 2, 45), BACKENDS[backend].ops
    tokens[tokens == BOS_ID] += 1
    tokens[:, [9, 10, 30]] = BOS_ID
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    found = complex_ssm_layer(ops, p, cfg, "n", ops.from_numpy(x), complex_ssm_tables(ops, cfg, ops.from_numpy(tokens)), 0)
    assert np.abs(ops.to_numpy(found) - token_by_token(cfg, arrays, x, tokens)).max() <= 1e-4


@pytest.mark.parametrize("length", [256, 512, 1024, 2048])
def test_horizons_start_where_they_are_declared(length):
    """A10: the parameter is ln(expm1(1 / tau)) to 1e-6. The two numbers that were published for it give other horizons (W-6)."""
    settings = {"train_seq_len": length, "train_batch_tokens": 2 * length, "yarn_max_len": length, "eval_seq_len": length}
    ends = {"spread": (2.0, length / 3), "issue2": (length / 3, length / 3), "s_over_e": (length / math.e, length / math.e)}
    for horizon, (first, last) in ends.items():
        cfg = tiny_config(NAME, horizon=horizon, **settings)
        horizons = np.array(first_horizons(cfg)).reshape(cfg.arch.state_groups, -1)
        assert np.allclose(horizons[:, 0], first) and np.allclose(horizons[:, -1], last)
        p = tensors({f"n.{part}": np.zeros(32, np.float32) for part in ("decay", "frequency")})
        p |= {"n.step": torch.zeros(4, 64), "n.step_bias": torch.full((4,), 0.5413248546)}
        tables = complex_ssm_tables(torch_ops, cfg, torch.zeros((1, 1), dtype=torch.int32))
        assert np.abs(tables[0].double().numpy() - np.log(np.expm1(1 / horizons.ravel()))).max() <= 1e-6
        alpha, theta = mode_rates(torch_ops, p, cfg, "n", torch.zeros(1, 1, 64), tables)
        # The impulse response of a frozen mode has fallen by e after tau tokens.
        assert np.allclose(alpha.double().numpy().ravel() * horizons.ravel(), 1, rtol=0.01)
        assert (theta >= 0).all() and theta.max() < math.pi / 5
    published = {256: (-4.55, 0.103), 2048: (-5.52, 1.006)}
    if length in published:
        number, apart = published[length]
        assert abs(abs(math.log(3 / length) - number) - apart) < 1e-3


def test_steps_in_time_start_at_one():
    cfg = tiny_config(NAME)
    arrays = {spec.name: spec for spec in sem.param_specs(cfg)}
    step = np.random.default_rng(0).standard_normal((4, 64)) * arrays["layer0.step"].value
    logits = normal(500, 64) * 0.5**0.5 @ step.T + arrays["layer0.step_bias"].value
    assert np.abs(np.logaddexp(logits, 0) - 1).mean() < 0.1 and abs(np.logaddexp(logits, 0).mean() - 1) < 0.02


def test_norm_keeps_phases():
    """A11: to 1e-6, and it commutes with a common phase."""
    cfg, x, p = tiny_config(NAME), torch.from_numpy(normal(50, 64) * 3), {"g": torch.from_numpy(np.abs(normal(32)) + 0.1)}
    before, after = complex_of(x.numpy()), complex_of(pair_norm(torch_ops, p, "g", x).numpy())
    assert np.abs(np.angle(after / before)).max() < 1e-6
    assert np.allclose((np.abs(after / p["g"].numpy()) ** 2).mean(-1), 1, atol=1e-5)
    angle = torch.full((50, 32), 1.3)
    one, two = (
        pair_norm(torch_ops, p, "g", turned(torch_ops, cfg, x, angle)),
        turned(torch_ops, cfg, pair_norm(torch_ops, p, "g", x), angle),
    )
    assert (one - two).abs().max() < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_spinor_gate_keeps_the_norm_at_every_gate(backend):
    cfg, arrays = case()
    ops = BACKENDS[backend].ops
    p = {name: ops.from_numpy(array * (3 if "generator" in name else 1)) for name, array in arrays.items()}
    basis = ops.to_numpy(spinor_basis(ops, p, "layer0.spinor")).astype(np.float64)
    assert np.abs(basis @ basis.swapaxes(-1, -2) - np.eye(8)).max() < 2e-6
    x, gates = normal(2, 20, 64), np.random.default_rng(0).random((2, 20, 8)).astype(np.float32)
    turned_x = ops.to_numpy(spinor_gate(ops, p, cfg, "layer0.spinor", ops.from_numpy(x), ops.from_numpy(gates)))
    assert np.abs((turned_x**2).sum(-1) / (x**2).sum(-1) - 1).max() < 1e-5 and np.abs(turned_x - x).max() > 0.1
    still = ops.to_numpy(spinor_gate(ops, p, cfg, "layer0.spinor", ops.from_numpy(x), ops.from_numpy(gates * 0)))
    assert np.abs(still - x).max() < 1e-5
