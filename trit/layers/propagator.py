"""Cayley-soliton propagator: two maps of the channels of every position that keep its norm. It mixes channels, never positions.

Soliton (Kerr): each channel's phase turns by its share of the power. Cayley: (I + i d H) x' = (I - i d H) x with H the Laplacian of a
graph on the channels, its spectrum in 0 .. 1. The solve is that of the real, symmetric and positive definite I + d^2 H^2 (sem.md 1.3):
conjugate gradients on the pair operator [[I, -d H], [d H, I]] would diverge, for it is not symmetric. Shapes: D complex channels.
"""

import math
from dataclasses import dataclass

from trit.layers.functions import softmax_last
from trit.layers.pairs import halves, quarter_turned, turned
from trit.layers.spinor import identity
from trit.params import scalar_spec, table_spec
from trit.setting import check_values, setting

WARM_ITERATIONS = 4  # of conjugate gradients with the step before's inverse as preconditioner
SOLVE_TOLERANCE = 1e-6  # of an iterative solve, and of a polynomial of H


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


def hamiltonian(ops, p, cfg, name):
    """Laplacian (D, D) float32 of the weighted graph over twice its largest degree, which bounds its spectrum (Gershgorin)."""
    width, offsets = cfg.model.model_dim, graph_offsets(cfg)
    shares = softmax_last(ops, ops.cast(p[name + ".scales"], "float32"))
    member = ops.constant([[float(first <= scale) for scale in range(cfg.arch.graph_scales)] for _, first in offsets], shares)
    weights = ops.softplus(ops.cast(p[name + ".edges"], "float32")) * ops.sum(member * shares, -1, True)
    places = ops.arange(width, weights)
    apart = places - places[:, None]
    apart = ops.where(apart < 0, apart + width, apart)
    slots = [float(len(offsets))] * width
    for slot, (offset, _) in enumerate(offsets):
        slots[offset] = float(slot)
    slot = ops.take(ops.constant(slots, weights)[:, None], ops.cast(apart, "int64"))[..., 0]
    flat = ops.reshape(ops.pad(weights, ((0, 1), (0, 0))), (-1, 1))  # a last row of zeros for nodes that are not joined
    one_way = ops.take(flat, ops.cast(slot * width + places[:, None], "int64"))[..., 0]
    joined = one_way + ops.swap_last(one_way)
    degrees = ops.sum(joined, -1)
    laplacian = identity(ops, width, weights) * degrees[:, None] - joined
    return laplacian * (0.5 / ops.max(ops.stop_gradient(degrees)))


def on_parts(ops, x, matrix):
    """Real matrix (D, D) times the real and the imaginary parts of x (..., 2 D)."""
    parts = ops.linear(ops.reshape(x, (*x.shape[:-1], 2, x.shape[-1] // 2)), matrix)
    return ops.reshape(parts, x.shape)


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


def resolvent_parts(ops, x, h, step):
    """(real, imaginary) part of the resolvent 1 / (1 + i d H), each applied to x (..., 2 D) as a real map of both its parts."""
    series = chebyshev_series(step, resolvent_degree(step))
    before, now = x, 2.0 * on_parts(ops, x, h) - x
    real, imaginary = series[0][0] * before + series[1][0] * now, series[0][1] * before + series[1][1] * now
    for a, b in series[2:]:
        before, now = now, 2.0 * (2.0 * on_parts(ops, now, h) - now) - before
        real, imaginary = real + a * now, imaginary + b * now
    return real, imaginary


def conjugate_gradient(ops, rows, h, step, factor, iterations, tolerance):
    """(solutions, iterations that each needed) of (I + d^2 H^2) y = row for rows (R, D). `factor` (D, D) approximates the inverse, or is
    None. A row stands still once its own residual is below `tolerance` of its right-hand side: no row decides for another."""

    def applied(y):
        return y + step * step * ops.linear(ops.linear(y, h), h)

    def dot(a, b):
        return ops.sum(a * b, -1, True)

    y, residual = ops.zeros(rows.shape, rows), rows
    direction = z = residual if factor is None else ops.linear(residual, factor)
    size, goal = dot(residual, z), dot(rows, rows) * tolerance**2
    needed = ops.zeros((rows.shape[0], 1), rows)
    for _ in range(iterations):
        open_rows = ops.cast(dot(residual, residual) > goal, "float32")
        image = applied(direction)
        share = open_rows * size / ops.maximum(dot(direction, image), 1e-30)
        y, residual, needed = y + share * direction, residual - share * image, needed + open_rows
        z = residual if factor is None else ops.linear(residual, factor)
        grown = dot(residual, z)
        direction, size = z + grown / ops.maximum(size, 1e-30) * direction, grown
    return y, needed[:, 0]


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


def cayley_turn(ops, p, cfg, name, x):
    """x (B, T, 2 D) -> (I + i d H)^-1 (I - i d H) x. Under `name` + ".factor" `p` may hold an approximate inverse of I + d^2 H^2."""
    h, step = hamiltonian(ops, p, cfg, name), cfg.arch.cayley_step
    if cfg.arch.cayley_solver == "direct":
        return ops.linear(x, ops.cast(cayley_matrix(ops, h, step), cfg.train.compute_dtype))
    x = ops.cast(x, "float32")
    if cfg.arch.cayley_solver == "chebyshev":
        real, imaginary = resolvent_parts(ops, x, h, step)
        moved = 2.0 * (real + quarter_turned(ops, imaginary)) - x
    else:
        still, given = ops.stop_gradient(h), ops.stop_gradient(x)
        factor = p.get(name + ".factor")
        rows = ops.reshape(given, (-1, cfg.model.model_dim))
        rounds = cg_iterations(step, SOLVE_TOLERANCE) if factor is None else WARM_ITERATIONS
        solved = ops.reshape(conjugate_gradient(ops, rows, still, step, factor, rounds, SOLVE_TOLERANCE)[0], x.shape)
        # What is left of the equation is about 0, but it has the gradients of x and H: the polynomial carries them through the solve.
        left = x - solved - step * step * on_parts(ops, on_parts(ops, solved, h), h)
        solved = solved + resolvent_parts(ops, left, still, step)[0]
        moved = 2.0 * solved - x - 2.0 * step * quarter_turned(ops, on_parts(ops, solved, h))
    return ops.cast(moved, cfg.train.compute_dtype)


def kerr_turn(ops, p, cfg, name, x):
    """x (B, T, 2 D) with every channel turned by its power over the mean power, times a learned angle."""
    real, imaginary = halves(ops.cast(x, "float32"))
    power = real * real + imaginary * imaginary
    angles = ops.cast(p[name + ".kerr"], "float32") * power / (ops.mean(power, -1, True) + 1e-6)
    return turned(ops, cfg, x, angles)
