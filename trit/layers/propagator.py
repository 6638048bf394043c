"""Cayley-soliton propagator: two maps of the channels of every position that keep its norm. It mixes channels, never positions.

Soliton (Kerr): each channel's phase turns by its share of the power. Cayley: (I + i d H) x' = (I - i d H) x with H the Laplacian of a
graph on the channels, its spectrum in 0 .. 1. The solve is that of the real, symmetric and positive definite I + d^2 H^2 (sem.md 1.3):
conjugate gradients on the pair operator [[I, -d H], [d H, I]] would diverge, for it is not symmetric. Shapes: D complex channels.
"""

import math
from dataclasses import dataclass

from trit.layers.pairs import halves, quarter_turned, turned
from trit.layers.spinor import identity
from trit.params import scalar_spec, table_spec
from trit.setting import check_values, setting

WARM_ITERATIONS = 4  # of conjugate gradients with the step before's inverse as preconditioner
SOLVE_TOLERANCE = 1e-6  # of an iterative solve, and of a polynomial of H
WIDE = 512  # channels above which iterative solvers hold H by its entries: a matrix would be nearly all zeros


@dataclass(frozen=True)
class PropagatorConfig:
    """What one can set of the propagators."""

    propagators: int = setting(2, "0 none, 1 one behind the last layer, 2 another in the middle")
    graph_scales: int = setting(3, "graphs of doubling degree whose edges are mixed")
    graph_degree: int = setting(5, "degree of the sparsest of them")
    cayley_step: float = setting(1.0, "strength d of the Cayley step; phases turn by 2 atan(d) at most")
    cayley_solver: str = setting(
        "direct", "an inverse for each forward, conjugate gradients, or a polynomial", choices=("direct", "cg", "chebyshev")
    )
    cg_tolerance: str = setting(
        "fixed",
        "what conjugate gradients may leave: 1e-6, or in training 1e-4 for 1,000 steps and 1e-5 up to step 10,000",
        choices=("fixed", "schedule"),
    )
    last_cayley: bool = setting(True, "the propagator behind the last layer has a Cayley step, which norm and head could absorb")


def check_propagator(cfg):
    """ValueError where the propagators' settings cannot be."""
    width, scales, degree = cfg.model.model_dim, cfg.arch.graph_scales, cfg.arch.graph_degree
    most = width // 2 - 1
    widest = scale_offsets(cfg, scales - 1) if scales > 0 else 0
    check_values(
        ("propagators", cfg.arch.propagators, 0 <= cfg.arch.propagators <= 2, "must be 0, 1 or 2"),
        ("graph_scales", scales, scales > 0, "must be positive"),
        ("graph_degree", degree, degree > 1 and widest <= most, f"asks for {widest} offsets; model.model_dim={width} has {most}"),
        ("cayley_step", cfg.arch.cayley_step, cfg.arch.cayley_step > 0, "must be positive"),
    )


def scale_offsets(cfg, scale):
    """How many offsets the graph of a scale has: two edges a node each."""
    return max(2, round(cfg.arch.graph_degree * 2**scale / 2))


def graph_offsets(cfg):
    """[[offset, first scale that has it], ...]: node i is joined to node i + offset modulo D. Of each scale's offsets one half are near,
    1, 2, ..., and the other far, spread over the graph by the golden ratio. A scale has all of those below it."""
    width, found, near = cfg.model.model_dim, [], 0
    for scale in range(cfg.arch.graph_scales):
        while len(found) < scale_offsets(cfg, scale):
            if len(found) % 2 == 0:
                near += 1
                offset = near
            else:
                offset = width // 8 + int((width // 2 - width // 8) * (len(found) * 0.6180339887498949 % 1.0))
            while offset in [each for each, _ in found] or not 0 < offset < width / 2:
                offset = offset % (width // 2 - 1) + 1
            found.append([offset, scale])
    return found


def propagator_specs(cfg, name, cayley):
    """Strengths of the Kerr turn (D,), and with a Cayley step the weights of the edges (offsets, D) and of the scales."""
    specs = [scalar_spec(cfg, name + ".kerr", (cfg.model.model_dim,), 0.1)]
    if cayley:
        specs.append(table_spec(cfg, name + ".edges", (len(graph_offsets(cfg)), cfg.model.model_dim), 0.1))
        specs.append(scalar_spec(cfg, name + ".scales", (cfg.arch.graph_scales,), 0.0))
    return specs


def neighbours(ops, p, cfg, name):
    """H by its rows, the Laplacian of the weighted graph over twice its largest degree, which bounds its spectrum (Gershgorin): the nodes
    that each is joined with and itself (D, N) int64, and their entries (D, N) float32. Made once, it serves every product of a forward."""
    width, offsets = cfg.model.model_dim, graph_offsets(cfg)
    shares = ops.softmax(ops.cast(p[name + ".scales"], "float32"))
    member = ops.constant([[float(first <= scale) for scale in range(cfg.arch.graph_scales)] for _, first in offsets], shares)
    weights = ops.softplus(ops.cast(p[name + ".edges"], "float32")) * ops.sum(member * shares, -1, True)
    nodes = ops.arange(width, weights)[:, None]
    apart = [float(offset) for offset, _ in offsets]
    joined = nodes + ops.constant(apart + [width - offset for offset in apart] + [0.0], weights)
    joined = ops.where(joined < width, joined, joined - width)
    # An edge's weight stands in the row of its offset, at the node that it leads away from.
    rows = ops.arange(len(apart), weights) * width
    kept = ops.cast(ops.concat([nodes + rows, joined[:, len(apart) : -1] + rows], -1), "int64")
    entries = ops.take(ops.reshape(weights, (-1, 1)), kept)[..., 0]
    degrees = ops.sum(entries, -1, True)
    return ops.cast(joined, "int64"), ops.concat([-entries, degrees], -1) * (0.5 / ops.max(ops.stop_gradient(degrees)))


def hamiltonian(ops, p, cfg, name):
    """H as a matrix (D, D) float32."""
    joined, entries = neighbours(ops, p, cfg, name)
    return ops.weighted_rows(identity(ops, cfg.model.model_dim, entries), joined, entries)


def wide(cfg):
    """Whether iterative solvers hold H as its `neighbours`."""
    return cfg.model.model_dim > WIDE


def held_hamiltonian(ops, p, cfg, name):
    """H as iterative solvers hold it."""
    return neighbours(ops, p, cfg, name) if wide(cfg) else hamiltonian(ops, p, cfg, name)


def constant_hamiltonian(ops, cfg, h):
    """`h` without its gradient."""
    return (h[0], ops.stop_gradient(h[1])) if wide(cfg) else ops.stop_gradient(h)


def times(ops, cfg, h, x):
    """H x of columns x (D, R), with `h` a matrix or, where the graph is wide, its `neighbours`."""
    if wide(cfg):
        return ops.weighted_rows(x, h[0], h[1])
    return h @ x


def cayley_matrix(ops, h, step):
    """The Cayley step of `h` (D, D) as an orthogonal matrix (2 D, 2 D) of real and imaginary parts."""
    one = identity(ops, h.shape[0], h)
    solved = ops.inverse(one + step * step * (h @ h))
    real, imaginary = 2.0 * solved - one, -2.0 * step * (h @ solved)
    return ops.concat([ops.concat([real, -imaginary], -1), ops.concat([imaginary, real], -1)], -2)


def resolvent_degree(step):
    """Degree at which a Chebyshev series of 1 / (1 + i d t) on 0 .. 1 is good to SOLVE_TOLERANCE: its pole is i / d."""
    ellipse = abs(complex(-1.0, 2.0 / step) + (complex(-1.0, 2.0 / step) ** 2 - 1.0) ** 0.5)
    return math.ceil(math.log(10.0 / SOLVE_TOLERANCE) / abs(math.log(ellipse)))


def chebyshev_series(step, degree):
    """Coefficients (real, imaginary) of that series in T_k(2 t - 1), from its values at the Chebyshev nodes."""
    nodes = [math.pi * (k + 0.5) / (degree + 1) for k in range(degree + 1)]
    values = [1.0 / complex(1.0, step * (math.cos(node) + 1.0) / 2.0) for node in nodes]
    found = []
    for k in range(degree + 1):
        total = sum(value * math.cos(k * node) for value, node in zip(values, nodes)) * ((2.0 if k else 1.0) / (degree + 1))
        found.append((total.real, total.imag))
    return found


def resolvent_parts(ops, cfg, x, h):
    """(real, imaginary) part of the resolvent 1 / (1 + i d H), each applied to columns x (D, R) as a real map."""
    step = cfg.arch.cayley_step
    series = chebyshev_series(step, resolvent_degree(step))
    before, now = x, 2.0 * times(ops, cfg, h, x) - x
    real, imaginary = series[0][0] * before + series[1][0] * now, series[0][1] * before + series[1][1] * now
    for a, b in series[2:]:
        before, now = now, 2.0 * (2.0 * times(ops, cfg, h, now) - now) - before
        real, imaginary = real + a * now, imaginary + b * now
    return real, imaginary


def conjugate_gradient(ops, cfg, x, h, factor, iterations, tolerance):
    """(solutions, iterations that each needed) of (I + d^2 H^2) y = x for columns x (D, R). `factor` (D, D) approximates the inverse, or is
    None. A column stands still once its own residual is below `tolerance` of its right-hand side: none decides for another."""
    step = cfg.arch.cayley_step

    def dot(a, b):
        return ops.sum(a * b, 0, True)

    y, residual = ops.zeros(x.shape, x), x
    direction = z = residual if factor is None else factor @ residual
    size, goal = dot(residual, z), dot(x, x) * tolerance**2
    needed = ops.zeros((1, x.shape[1]), x)
    for _ in range(iterations):
        still_open = ops.cast(dot(residual, residual) > goal, "float32")
        image = direction + step * step * times(ops, cfg, h, times(ops, cfg, h, direction))
        share = still_open * size / ops.maximum(dot(direction, image), 1e-30)
        y, residual, needed = y + share * direction, residual - share * image, needed + still_open
        z = residual if factor is None else factor @ residual
        grown = dot(residual, z)
        direction, size = z + grown / ops.maximum(size, 1e-30) * direction, grown
    return y, needed[0]


def cg_iterations(step, tolerance):
    """Iterations after which the bound from the condition number, 1 + d^2 at most, is below `tolerance`."""
    root = (1.0 + step * step) ** 0.5
    return math.ceil(math.log(2.0 / tolerance) / math.log((root + 1.0) / (root - 1.0)))


def warm_factor(ops, p, cfg, name):
    """Approximate inverse (D, D) of I + d^2 H^2 for the next training step: that of the step before after one Newton iteration, which
    follows slow weights without a factorisation; an inverse if there is none."""
    h = ops.stop_gradient(hamiltonian(ops, p, cfg, name))
    operator = identity(ops, cfg.model.model_dim, h) + cfg.arch.cayley_step**2 * (h @ h)
    if name + ".factor" in p:
        factor = p[name + ".factor"]
        return 2.0 * factor - factor @ operator @ factor
    return ops.inverse(operator)


def propagator_state(ops, p, cfg):
    """What a training step's conjugate gradients shall find in its `p`, {name: array}: inverses where H is a matrix, and with a schedule the
    number (1,) of steps before."""
    found = {}
    if cfg.arch.cg_tolerance == "schedule" and cfg.arch.propagators > 0:
        found["solves"] = p["solves"] + 1.0 if "solves" in p else ops.constant([0.0], p["last.kerr"])
    if not wide(cfg):
        if cfg.arch.propagators > 1:
            found["middle.factor"] = warm_factor(ops, p, cfg, "middle")
        if cfg.arch.propagators > 0 and cfg.arch.last_cayley:
            found["last.factor"] = warm_factor(ops, p, cfg, "last")
    return found


def solve_tolerance(ops, p, cfg):
    """Share of its right-hand side that a solve may leave: 1e-6, or with a schedule 1e-4 in the first 1,000 steps of a training and 1e-5 up
    to 10,000. Evaluation has no steps."""
    if cfg.arch.cg_tolerance == "schedule" and "solves" in p:
        early, young = (ops.cast(p["solves"] < steps, "float32") for steps in (10_000.0, 1_000.0))
        return SOLVE_TOLERANCE + 9e-6 * early + 9e-5 * young
    return SOLVE_TOLERANCE


def warm_solve(ops, p, cfg, name, x, h):
    """`conjugate_gradient` with what `p` holds of the step before. Constants for the gradient."""
    factor = p.get(name + ".factor")
    rounds = cg_iterations(cfg.arch.cayley_step, SOLVE_TOLERANCE) if factor is None else WARM_ITERATIONS
    return conjugate_gradient(ops, cfg, x, h, factor, rounds, solve_tolerance(ops, p, cfg))


def columns_of(ops, x, width):
    """x (..., 2 D) -> (D, 2 R) float32: a column for the real parts of every position, then one for the imaginary ones."""
    return ops.reshape(ops.permute(ops.reshape(ops.cast(x, "float32"), (-1, 2, width)), (2, 1, 0)), (width, -1))


def cayley_turn(ops, p, cfg, name, x):
    """x (B, T, 2 D) -> (I + i d H)^-1 (I - i d H) x. Under `name` + ".factor" `p` may hold an approximate inverse of I + d^2 H^2."""
    step, shape = cfg.arch.cayley_step, x.shape
    if cfg.arch.cayley_solver == "direct":
        return ops.linear(x, ops.cast(cayley_matrix(ops, hamiltonian(ops, p, cfg, name), step), cfg.train.compute_dtype))
    h, x = held_hamiltonian(ops, p, cfg, name), columns_of(ops, x, cfg.model.model_dim)
    if cfg.arch.cayley_solver == "chebyshev":
        real, imaginary = resolvent_parts(ops, cfg, x, h)
        moved = 2.0 * (real + quarter_turned(ops, imaginary)) - x
    else:
        still = constant_hamiltonian(ops, cfg, h)
        solved = warm_solve(ops, p, cfg, name, ops.stop_gradient(x), still)[0]
        # What is left of the equation is about 0, but it has the gradients of x and H: the polynomial carries them through the solve.
        left = x - solved - step * step * times(ops, cfg, h, times(ops, cfg, h, solved))
        solved = solved + resolvent_parts(ops, cfg, left, still)[0]
        moved = 2.0 * solved - x - 2.0 * step * quarter_turned(ops, times(ops, cfg, h, solved))
    moved = ops.reshape(ops.permute(ops.reshape(moved, (cfg.model.model_dim, 2, -1)), (2, 1, 0)), shape)
    return ops.cast(moved, cfg.train.compute_dtype)


def solve_counts(ops, p, cfg, name, x):
    """Iterations (2 R,) that each column of x (..., 2 D) needs in the solve of `cayley_turn`."""
    h = constant_hamiltonian(ops, cfg, held_hamiltonian(ops, p, cfg, name))
    return warm_solve(ops, p, cfg, name, columns_of(ops, x, cfg.model.model_dim), h)[1]


def kerr_turn(ops, p, cfg, name, x):
    """x (B, T, 2 D) with every channel turned by its power over the mean power, times a learned angle."""
    real, imaginary = halves(ops.cast(x, "float32"))
    power = real * real + imaginary * imaginary
    angles = ops.cast(p[name + ".kerr"], "float32") * power / (ops.mean(power, -1, True) + 1e-6)
    return turned(ops, cfg, x, angles)
