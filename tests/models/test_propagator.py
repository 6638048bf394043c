"""The propagators of `sem`: maps of the channels that keep the norm, the same by every solver, with the gradient of the exact solve."""

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, random_arrays, random_tokens, start, tiny_config
from sem_fixtures import tensors

from trit.layers.propagator import (
    cayley_matrix,
    cayley_turn,
    cg_iterations,
    conjugate_gradient,
    graph_offsets,
    hamiltonian,
    kerr_turn,
    propagator_specs,
    scale_offsets,
)
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


def test_conjugate_gradients_need_few_iterations(learning):
    """A2: with the inverse of up to 50 steps ago as preconditioner below 3 on average, over 200 solves of every tolerance, at d = 1 and at
    what the published step of 0.02 makes of an unnormalised H; each row counts for itself and no count depends on its neighbours."""
    matrices, eye = [hamiltonian(torch_ops, p, tiny_config("sem"), "u") for p in learning], torch.eye(32)
    for step in (1.0, 0.113):
        for tolerance in (1e-4, 1e-5, 1e-6):
            counts, plain = [], []
            for number, h in enumerate(matrices):
                old = matrices[number // 50 * 50]
                factor, x = torch.linalg.inv(eye + step**2 * old @ old), rows(4, 32, number)
                solved, count = conjugate_gradient(torch_ops, x, h, step, factor, 12, tolerance)
                error = torch.linalg.solve(eye + step**2 * h @ h, x.T).T - solved
                assert error.norm() <= 3 * tolerance * x.norm() + 1e-6
                counts.append(count)
                plain.append(conjugate_gradient(torch_ops, x, h, step, None, 12, tolerance)[1])
            counts = torch.cat(counts)
            assert len(counts) >= 200 and counts.mean() < 3 and counts.mean() <= torch.cat(plain).mean()
            assert torch.cat(plain).max() <= cg_iterations(step, tolerance)
    alone = conjugate_gradient(torch_ops, x[:1], h, 1.0, None, 12, 1e-6)
    beside = conjugate_gradient(torch_ops, torch.cat([x[:1], 1e6 * rows(1, 32, 9)]), h, 1.0, None, 12, 1e-6)
    assert torch.allclose(alone[0][0], beside[0][0], atol=1e-6) and alone[1][0] == beside[1][0]


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
