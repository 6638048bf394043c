"""The propagators of `sem`: maps of the channels that keep the norm, the same by every solver, with the gradient of the exact solve."""

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, random_arrays, random_tokens, start, tiny_config
from sem_fixtures import tensors

from benchmarks.sem_sparse import medians, product_forms
from trit.layers import propagator
from trit.layers.propagator import (
    cayley_matrix,
    cayley_turn,
    cg_iterations,
    conjugate_gradient,
    graph_offsets,
    hamiltonian,
    kerr_turn,
    neighbours,
    propagator_specs,
    scale_offsets,
)
from trit.models import sem
from trit.ops import torch_ops

FULL = {"model_dim": 128, "graph_scales": 3, "graph_degree": 5, "spinor_block": 8}  # the presets' sizes


def case(**settings):
    """(config, weights of a propagator "u" that are nowhere constant)."""
    cfg = tiny_config("sem", **settings)
    return cfg, random_arrays(propagator_specs(cfg, "u", True))


def rows(count, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32))


def moved(cfg, p, x):
    return cayley_turn(torch_ops, p, cfg, "u", kerr_turn(torch_ops, p, cfg, "u", x))


def norm_change(before, after):
    return float((after.double().square().sum(-1) / before.double().square().sum(-1) - 1).abs().max())


@pytest.fixture(scope="module")
def learning():
    """[weights of the middle propagator, as "u", after every step] of a model that learns at the rates of its preset."""
    trained, found = start(tiny_config("sem", matrix_lr=3e-3, scalar_lr=3e-3, embed_lr=3e-3)), []
    for step in range(60):
        arrays = {name.replace("middle", "u"): array for name, array in trained.export().items() if name.startswith("middle")}
        found.append(tensors(arrays))
        batch = random_tokens(tiny_config("sem"), 4, 33, step)
        trained.step(batch[:, :-1], batch[:, 1:], 1.0, True, False)
    assert not torch.equal(found[0]["u.edges"], found[-1]["u.edges"])
    return found


@pytest.mark.parametrize("solver", ["direct", "cg", "chebyshev"])
def test_norms_stay_at_the_start_and_after_fifty_steps(learning, solver):
    """A1: of 1,000 rows, and of the matrix itself."""
    cfg, x = tiny_config("sem", cayley_solver=solver), rows(1000, 64)
    for p in (learning[0], learning[50]):
        assert norm_change(x, moved(cfg, p, x)) <= 1e-5
        matrix = cayley_matrix(torch_ops, hamiltonian(torch_ops, p, cfg, "u"), 1.0)
        assert torch.linalg.matrix_norm(matrix.T @ matrix - torch.eye(64)) <= 1e-4
        assert norm_change(x.bfloat16(), x.bfloat16() @ matrix.bfloat16().T) <= 1e-2


@pytest.mark.parametrize("step", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_solvers_give_the_same(backend, step):
    """A1: within 1e-5, and that of complex128."""
    ops, found, x = BACKENDS[backend].ops, [], np.random.default_rng(0).standard_normal((1, 40, 256)).astype(np.float32)
    for solver in ("direct", "cg", "chebyshev"):
        cfg, arrays = case(**FULL, cayley_solver=solver, cayley_step=step)
        p = {name: ops.from_numpy(array) for name, array in arrays.items()}
        found.append(ops.to_numpy(cayley_turn(ops, p, cfg, "u", ops.from_numpy(x))))
    h = hamiltonian(torch_ops, tensors(arrays), cfg, "u").double().numpy()
    wanted = np.linalg.solve(np.eye(128) + 1j * step * h, (np.eye(128) - 1j * step * h) @ (x[0, :, :128] + 1j * x[0, :, 128:]).T).T
    for each in found:
        assert np.abs(each[0] - np.concatenate([wanted.real, wanted.imag], -1)).max() <= 1e-5


def test_the_graph_is_connected_near_and_far():
    """Every scale has a ring and a quarter of its links far; the spectrum of H lies in 0 .. 1; its constant is not moved."""
    for settings in (FULL, {}):
        cfg, arrays = case(**settings)
        width, offsets = cfg.model.model_dim, graph_offsets(cfg)
        assert len({offset for offset, _ in offsets}) == len(offsets) and all(0 < offset < width / 2 for offset, _ in offsets)
        for scale in range(cfg.arch.graph_scales):
            mine = [offset for offset, first in offsets if first <= scale]
            assert 1 in mine and len(mine) == scale_offsets(cfg, scale) and sum(offset >= width // 8 for offset in mine) >= len(mine) / 4
        h = hamiltonian(torch_ops, tensors(arrays), cfg, "u").double()
        values = torch.linalg.eigvalsh(h)
        assert torch.equal(h, h.T) and values[0] > -1e-6 and 0.2 < values[-1] <= 1 and values[1] > 1e-3
        assert h.sum(1).abs().max() < 1e-5 and (h != 0).sum() == width * (2 * len(offsets) + 1)


def test_gradients_are_those_of_the_exact_solve():
    """A3: of conjugate gradients and of the polynomial against the direct form, for stream and edges; that one by finite differences."""
    found = []
    for solver in ("direct", "cg", "chebyshev"):
        cfg, arrays = case(**FULL, cayley_solver=solver)
        p = {name: x.requires_grad_() for name, x in tensors(arrays).items()}
        x = rows(20, 256)[None].requires_grad_()
        loss = (cayley_turn(torch_ops, p, cfg, "u", x) * rows(20, 256, 1)).sum()
        found.append(torch.autograd.grad(loss, [x, p["u.edges"], p["u.scales"]]))
    for other in found[1:]:
        for wanted, each in zip(found[0], other, strict=True):
            assert (each - wanted).norm() <= 1e-4 * wanted.norm()
    h = torch.rand(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: cayley_matrix(torch_ops, h + h.T, 1.0), [h])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["cg", "chebyshev"])
def test_a_wide_graph_is_the_same_by_its_entries(solver, backend, monkeypatch):
    """Cayley step by the rows of H against that by its matrix, on both libraries; its gradients to rounding, for stream, edges and scales."""
    cfg, arrays = case(**FULL, cayley_solver=solver)
    ops, x = BACKENDS[backend].ops, rows(40, 256).numpy()[None]
    p, found, gradients = {name: ops.from_numpy(array) for name, array in arrays.items()}, [], []
    for least in (512, 64):
        monkeypatch.setattr(propagator, "WIDE", least)
        assert propagator.wide(cfg) == (least == 64)
        found.append(ops.to_numpy(cayley_turn(ops, p, cfg, "u", ops.from_numpy(x))))
        leaves = {name: t.requires_grad_() for name, t in tensors({**arrays, "x": x}).items()}
        (cayley_turn(torch_ops, leaves, cfg, "u", leaves["x"]) * rows(40, 256, 1)).sum().backward()
        gradients.append([leaves[name].grad for name in ("x", "u.edges", "u.scales")])
    assert np.abs(found[0] - found[1]).max() < 1e-5
    for dense, sparse in zip(*gradients, strict=True):
        assert (dense - sparse).norm() <= 1e-5 * dense.norm()


@pytest.mark.parametrize("solver", ["cg", "chebyshev"])
def test_a_wide_graph_has_no_matrix(solver, monkeypatch):
    """Chosen by the width alone, forward and in what a training step keeps; H times x and the norm are right there."""
    cfg, arrays = case(model_dim=640, embed_dim=640, cayley_solver=solver)
    p, x = tensors(arrays), rows(6, 1280)[None]
    matrix = hamiltonian(torch_ops, p, cfg, "u").double()
    product = torch_ops.weighted_rows(x[0, :, :640].T.contiguous(), *neighbours(torch_ops, p, cfg, "u"))
    assert (product - matrix @ x[0, :, :640].T.double()).abs().max() < 1e-6
    monkeypatch.setattr(propagator, "hamiltonian", None)
    assert norm_change(x, moved(cfg, p, x)) <= 1e-5
    assert not propagator.propagator_state(torch_ops, {"last.kerr": p["u.kerr"]}, cfg)


@pytest.mark.slow
def test_entries_are_made_once_a_forward():
    """A5: of 1,024 channels, 12 products that share their entries take at most half of the time of 12 that each make them, for the 16
    columns of a decoder; and for 512 of a training step's at most a fifth of that with a matrix made for each, as it was first built."""
    few, many = (medians(product_forms(1024, count), 7) for count in (16, 512))
    assert few["cached"] <= 0.5 * few["rebuilt"], few
    assert many["cached"] <= 0.2 * many["dense rebuilt"] and many["cached"] <= 0.2 * many["dense"], many


def test_conjugate_gradients_need_few_iterations(learning):
    """A2: with the inverse of up to 50 steps ago as preconditioner below 3 on average, over 200 solves of every tolerance, at d = 1 and at
    what the published step of 0.02 makes of an unnormalised H; each column counts for itself and no count depends on its neighbours."""
    matrices, eye = [hamiltonian(torch_ops, p, tiny_config("sem"), "u") for p in learning], torch.eye(32)
    for step in (0.113, 1.0):
        cfg = tiny_config("sem", cayley_step=step)
        for tolerance in (1e-4, 1e-5, 1e-6):
            counts, plain = [], []
            for number, h in enumerate(matrices):
                old = matrices[number // 50 * 50]
                factor, x = torch.linalg.inv(eye + step**2 * old @ old), rows(4, 32, number).T
                solved, count = conjugate_gradient(torch_ops, cfg, x, h, factor, 12, tolerance)
                error = torch.linalg.solve(eye + step**2 * h @ h, x) - solved
                assert error.norm() <= 3 * tolerance * x.norm() + 1e-6
                counts.append(count)
                plain.append(conjugate_gradient(torch_ops, cfg, x, h, None, 12, tolerance)[1])
            counts = torch.cat(counts)
            print(f"A2: d={step:g}, tolerance {tolerance:g}: {counts.mean():.2f} iterations, plain {torch.cat(plain).mean():.2f}")
            assert len(counts) >= 200 and counts.mean() < 3 and counts.mean() <= torch.cat(plain).mean()
            assert torch.cat(plain).max() <= cg_iterations(step, tolerance)
    alone = conjugate_gradient(torch_ops, cfg, x[:, :1], h, None, 12, 1e-6)
    beside = conjugate_gradient(torch_ops, cfg, torch.cat([x[:, :1], 1e6 * rows(1, 32, 9).T], 1), h, None, 12, 1e-6)
    assert torch.allclose(alone[0][:, 0], beside[0][:, 0], atol=1e-6) and alone[1][0] == beside[1][0]


@pytest.mark.parametrize("begun,tolerance", [(None, 1e-4), (999.0, 1e-5), (9_999.0, 1e-6)])
def test_solves_of_a_training_need_few_iterations_at_every_tolerance_of_the_schedule(begun, tolerance):
    """A2 in training: the tolerance of a step is that of its number, also after a checkpoint; the mean of all solves of six steps, each on
    its own stream, stays below 3 with the factor of the step before; evaluation solves to 1e-6 whatever the step was."""
    cfg = tiny_config("sem", cayley_solver="cg", cg_tolerance="schedule", matrix_lr=3e-3, scalar_lr=3e-3, embed_lr=3e-3)
    trained, means, cold = start(cfg), [], []
    if begun is not None:
        batch = random_tokens(cfg, 4, 33)
        trained.step(batch[:, :-1], batch[:, 1:], 1.0, True, False)()
        trained.restore(trained.state() | {"derived/solves": np.array([begun], np.float32)})
    for seed in range(6):
        batch = random_tokens(cfg, 4, 33, seed)
        trained.step(batch[:, :-1], batch[:, 1:], 1.0, True, False)()
        arrays = {name[8:]: array for name, array in trained.state().items() if name.startswith("derived/")}
        assert arrays["solves"][0] == (seed if begun is None else begun + 1 + seed)
        p = tensors(trained.export() | arrays)
        found = sem.probe(torch_ops, p, cfg, torch.from_numpy(batch[:, :-1].copy()))
        means += [found["iterations_middle_warm"], found["iterations_last_warm"]]
        cold += [found["iterations_middle_cold"], found["iterations_last_cold"]]
        assert max(found["energy_middle"], found["energy_last"]) < 1e-5
    assert float(propagator.solve_tolerance(torch_ops, p, cfg)) == pytest.approx(tolerance, rel=1e-4)
    before = {"solves": torch.tensor([arrays["solves"][0] - 6])}
    assert begun is None or propagator.solve_tolerance(torch_ops, before, cfg) > 5 * tolerance
    assert propagator.solve_tolerance(torch_ops, tensors(trained.export()), cfg) == 1e-6
    print(f"A2: tolerance {tolerance:g}, mean iterations {np.mean(means):.2f}, without the step before {np.mean(cold):.2f}")
    assert np.mean(means) < 3 and np.mean(means) < np.mean(cold)


def test_conjugate_gradients_on_the_pair_operator_diverge():
    """A2, the published form (W-14): [[I, -d H], [d H, I]] is not symmetric, and an unnormalised H at dt = 0.1 makes its residual grow."""
    cfg, arrays = case(**FULL)
    h = hamiltonian(torch_ops, tensors(arrays), cfg, "u").double()
    h = h * (0.52 / torch.linalg.eigvalsh(h)[-1])
    eye, b = torch.eye(128, dtype=torch.float64), rows(1, 256)[0].double()
    for operator, grows in (
        (torch.cat([torch.cat([eye, -h], 1), torch.cat([h, eye], 1)]), True),
        (torch.block_diag(eye + h @ h, eye + h @ h), False),
    ):
        y, residual, sizes = torch.zeros_like(b), b.clone(), []
        direction = residual
        for _ in range(30):
            image = operator @ direction
            share = (residual @ residual) / (direction @ image)
            y, after = y + share * direction, residual - share * image
            direction = after + (after @ after) / (residual @ residual) * direction
            residual = after
            sizes.append(float((b - operator @ y).norm() / b.norm()))
        assert (sizes[-1] > 3 * min(sizes)) == grows and (sizes[-1] < 1e-6) != grows
