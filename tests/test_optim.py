"""The optimiser against oracles: Adam and Muon of torch.optim, laws of orthogonalisation, decay, idle rows."""

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, random_tokens, start, tiny_config

from trit.models import load_arch
from trit.ops import mlx_ops, torch_ops
from trit.params import ParamSpec, scalar_spec
from trit.train.optimizer import group_rate, optimizer_state, optimizer_step, orthogonalise, spread, stacked

GENERATOR = np.random.default_rng(11)
FIRST_STATE = GENERATOR.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers():
    """Every test draws the same numbers, whichever run before it."""
    GENERATOR.bit_generator.state = FIRST_STATE


def normal(*shape):
    return GENERATOR.normal(0, 1, shape).astype(np.float32)


def run_steps(ops, cfg, spec, start_value, gradients, factor=1.0):
    """(parameter, state) after the given gradients, numpy."""
    return run_table(ops, cfg, [spec], {spec.name: start_value}, [{spec.name: gradient} for gradient in gradients], factor)[spec.name]


def run_table(ops, cfg, specs, values, gradients, factor=1.0):
    """{name: (parameter, state)} after the given {name: gradient} dicts, numpy."""
    held = stacked(ops, specs, {name: ops.from_numpy(value) for name, value in values.items()})
    state = optimizer_state(ops, specs, held)
    for arrays in gradients:
        moving = stacked(ops, specs, {name: ops.from_numpy(array) for name, array in arrays.items()})
        held, state = optimizer_step(ops, cfg, specs, held, moving, state, factor, ops.from_numpy(np.float32(1e-3)))
    moments = [spread(specs, {key: x[i] for key, x in state.items() if len(x) > i}) for i in range(max(map(len, state.values())))]
    p = spread(specs, held)
    return {name: (ops.to_numpy(x), [ops.to_numpy(m[name]) for m in moments if name in m]) for name, x in p.items()}


def oracle(make, start_value, gradients):
    """Parameter after `gradients` under an optimiser of torch."""
    weight = torch.nn.Parameter(torch.from_numpy(start_value.copy()))
    optimizer = make([weight])
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return weight.detach().numpy()


@pytest.mark.parametrize("backend", BACKENDS)
def test_adam_equals_torch(backend):
    cfg = tiny_config(beta1=0.8, beta2=0.97, scalar_lr=0.03)
    value, gradients = normal(5, 7), [normal(5, 7) * 10.0**power for power in (0, -1, -3, 1, 0, -2, -5, 0, 0, 0)]
    found = run_steps(BACKENDS[backend].ops, cfg, scalar_spec(cfg, "x", (5, 7), 0.0), value, gradients)[0]
    wanted = oracle(lambda ps: torch.optim.Adam(ps, lr=0.03, betas=(0.8, 0.97), eps=1e-8), value, gradients)
    assert np.abs(found - wanted).max() <= 2e-6


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_muon_equals_torch(shape):
    """torch's Muon iterates in bfloat16, so the paths agree to about a hundredth of their length."""
    cfg = tiny_config(matrix_lr=0.1, muon_wd=0.01)
    value, gradients = normal(*shape), [normal(*shape) for _ in range(5)]
    found = run_steps(torch_ops, cfg, ParamSpec("x", shape), value, gradients)[0]
    wanted = oracle(lambda ps: torch.optim.Muon(ps, lr=0.1, weight_decay=0.01, momentum=0.95, nesterov=True, ns_steps=5), value, gradients)
    assert np.linalg.norm(found - wanted) <= 0.02 * np.linalg.norm(wanted - value)


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12), (1, 8), (8, 1)])
@pytest.mark.parametrize("ops", [torch_ops, mlx_ops], ids=["torch", "mlx"])
def test_orthogonalised_singular_values_are_near_one(shape, ops):
    x = normal(*shape)
    y = ops.to_numpy(orthogonalise(ops, tiny_config(), ops.from_numpy(x)))
    values = np.linalg.svd(y, compute_uv=False)
    # The quintic trades exactness for speed: it maps the upper part of the spectrum into about 0.7 .. 1.2.
    assert values.max() < 1.3 and np.median(values) > 0.6
    left, _, right = np.linalg.svd(x, full_matrices=False)
    assert (np.diag(left.T @ y @ right.T) > 0).all()
    assert np.abs(ops.to_numpy(orthogonalise(ops, tiny_config(), ops.from_numpy(1e-3 * x))) - y).max() < 1e-3


def test_orthogonalise_commutes_with_transposition():
    x = torch.from_numpy(normal(10, 30))
    assert torch.allclose(orthogonalise(torch_ops, tiny_config(), x).T, orthogonalise(torch_ops, tiny_config(), x.T), atol=1e-6)


def test_row_norm_forgets_the_size_of_rows():
    x, sizes = torch.from_numpy(normal(8, 20)), torch.from_numpy(np.exp(3 * normal(8, 1)))
    plain, normed = tiny_config(), tiny_config(muon_row_norm="true")
    assert torch.allclose(orthogonalise(torch_ops, normed, x), orthogonalise(torch_ops, normed, x * sizes), atol=1e-5)
    assert not torch.allclose(orthogonalise(torch_ops, plain, x), orthogonalise(torch_ops, plain, x * sizes), atol=1e-2)


@pytest.mark.parametrize("row_norm", ["false", "true"])
def test_zero_gradients_move_nothing(row_norm):
    cfg = tiny_config(muon_row_norm=row_norm)
    for spec in (ParamSpec("x", (6, 4)), scalar_spec(cfg, "x", (6, 4), 0.0), ParamSpec("x", (6, 4), group="engram")):
        value = normal(6, 4)
        found, moments = run_steps(torch_ops, cfg, spec, value, [np.zeros((6, 4), np.float32)] * 3)
        assert np.array_equal(found, value) and all((moment == 0).all() for moment in moments)


@pytest.mark.parametrize("group,decay", [("matrix", 0.1), ("embed", 0.2), ("engram", 0.0), ("scalar", 0.0)])
def test_decay_belongs_to_matrices_and_the_embedding(group, decay):
    cfg = tiny_config(muon_wd=0.1, adam_wd=0.2)
    spec, value = ParamSpec("x", (6, 4), group=group), normal(6, 4)
    found = run_steps(torch_ops, cfg, spec, value, [np.zeros((6, 4), np.float32)], factor=0.5)[0]
    assert np.allclose(found, value * (1 - 0.5 * group_rate(cfg, spec) * decay), atol=1e-7)


def test_rates_come_from_the_group_the_scale_and_the_factor():
    cfg = tiny_config(matrix_lr=0.1, scalar_lr=0.2, embed_lr=0.3, engram_lr=0.4)
    rates = [group_rate(cfg, ParamSpec("x", (2, 2), group=group, lr_scale=2.0)) for group in ("matrix", "scalar", "embed", "engram")]
    assert rates == [0.2, 0.4, 0.6, 0.8]
    spec, gradient = scalar_spec(cfg, "x", (4,), 0.0), normal(4)
    full = run_steps(torch_ops, cfg, spec, np.zeros(4, np.float32), [gradient])[0]
    half = run_steps(torch_ops, cfg, spec, np.zeros(4, np.float32), [gradient], factor=0.5)[0]
    assert np.allclose(full, -0.2 * np.sign(gradient), atol=1e-5) and np.allclose(half, full / 2, atol=1e-6)


def test_tall_matrices_take_larger_steps():
    cfg, gradient = tiny_config(matrix_lr=1.0), normal(32, 8)
    tall = run_steps(torch_ops, cfg, ParamSpec("x", (32, 8)), np.zeros((32, 8), np.float32), [gradient])[0]
    wide = run_steps(torch_ops, cfg, ParamSpec("x", (8, 32)), np.zeros((8, 32), np.float32), [gradient.T])[0]
    assert np.allclose(tall, 2.0 * wide.T, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_engram_rows_that_no_token_read_stay_bit_for_bit(backend):
    cfg = tiny_config(engram_buckets=512)
    trained = start(cfg, backend)
    rows = random_tokens(cfg, 4, 33)
    trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
    before = trained.state()
    rows = random_tokens(cfg, 4, 33, 1)
    trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
    after = trained.state()
    moved = (before["p/engram.table"] != after["p/engram.table"]).any(-1)
    assert 0 < moved.mean() < 0.5
    for key in ("optimizer/engram.table/0", "optimizer/engram.table/1"):
        assert np.array_equal(before[key][~moved], after[key][~moved])
        assert (before[key][moved] != after[key][moved]).any()
    assert (np.abs(before["optimizer/engram.table/0"][~moved]).max(-1) > 0).any()


def test_every_tensor_of_every_group_moves():
    cfg = tiny_config(engram_buckets=64)
    trained, rows = start(cfg), random_tokens(cfg, 4, 33)
    before = trained.export()
    trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
    after = trained.export()
    assert all((before[spec.name] != after[spec.name]).any() for spec in load_arch("unet").param_specs(cfg))


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_bounds_the_gradient_and_reports_its_norm(backend):
    rows = random_tokens(tiny_config(), 4, 33)
    norms, moments = [], []
    for clip in (0, 0.01, 1e6):
        trained = start(tiny_config(grad_clip_norm=clip), backend)
        norms.append(trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()[1])
        # After one step Adam's first moment is (1 - beta1) times the gradient and Muon's is the gradient.
        state = trained.state()
        moments.append({k: x for k, x in state.items() if k.startswith("optimizer/") and k.endswith("/0")})
    assert np.allclose(norms, norms[0], rtol=1e-6)
    for name, moment in moments[0].items():
        assert np.allclose(moment * (0.01 / norms[0]), moments[1][name], atol=1e-7, rtol=1e-3)
        assert np.array_equal(moment, moments[2][name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_moving_average_starts_at_its_first_update(backend):
    cfg = tiny_config(ema_decay=0.9)
    trained = start(cfg, backend)
    held = []
    for seed, averaging in enumerate((False, False, True, True)):
        rows = random_tokens(cfg, 4, 33, seed)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, averaging)
        held.append((trained.export(), trained.state()))
    for exported, state in held[:3]:
        assert all(np.allclose(exported[name], state[f"p/{name}"], atol=1e-6) for name in exported)
    assert not any(key.startswith("ema/") for key in held[1][1])
    exported, state = held[3]
    for name in exported:
        assert np.array_equal(exported[name], state[f"ema/{name}"])
        assert np.allclose(exported[name], 0.9 * held[2][1][f"ema/{name}"] + 0.1 * state[f"p/{name}"], atol=1e-6)


@pytest.mark.parametrize("ops", [torch_ops, mlx_ops], ids=["torch", "mlx"])
def test_matrices_of_one_shape_do_not_mix(ops):
    """They are orthogonalised as one batch; each must move as it would alone."""
    cfg = tiny_config()
    specs = [ParamSpec(name, shape) for name, shape in (("a", (8, 20)), ("b", (8, 20)), ("c", (20, 8)), ("d", (8, 20)))]
    values = {spec.name: normal(*spec.shape) for spec in specs}
    gradients = {spec.name: normal(*spec.shape) * 10.0**index for index, spec in enumerate(specs)}
    together = run_table(ops, cfg, specs, values, [gradients])
    for spec in specs:
        alone, moments = run_steps(ops, cfg, spec, values[spec.name], [gradients[spec.name]])
        assert np.allclose(together[spec.name][0], alone, atol=1e-6)
        assert np.array_equal(together[spec.name][1][0], moments[0])
