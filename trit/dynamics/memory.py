"""Dense associative memory as a circuit of neurons: states, Lagrangians, currents, energy. numpy alone; solver.py integrates it.

    tau_v v' = f W + a - v        tau_h h' = g W^T + b - h        g = dL_v/dv, f = dL_h/dh, the same W (N_h, N_v) in both directions
    E = g (v - a) - L_v(v) + f (h - b) - L_h(h) - f W g           which never rises where the Lagrangians are convex

Hidden neurons come in parts, each with a Lagrangian of its own. States have any leading axes: runs that do not know of each other, and
`drive`, `bias` and `weights` may have them too. Potentials have no unit; times are in units of tau_v = 1.
"""

from dataclasses import dataclass, replace

import numpy as np

KINDS = ("identity", "softmax", "relu")


@dataclass(frozen=True)
class Part:
    """So many neurons under one Lagrangian: identity |x|^2 / 2, softmax log(sum exp(beta x)) / beta, relu |relu(x)|^2 / 2."""

    kind: str
    count: int
    beta: float = 1.0


@dataclass(frozen=True)
class Memory:
    """Weights (..., N_h, N_v), parts of hidden neurons that add up to N_h, `drive` a (..., N_v), `bias` b (..., N_h), time constants, and a
    mask (N_v,) of visible neurons that are held where they begin."""

    weights: np.ndarray
    parts: tuple
    drive: np.ndarray
    bias: np.ndarray
    visible_time: float = 1.0
    hidden_time: float = 0.1
    held: np.ndarray | None = None


def check_memory(memory):
    """ValueError where a memory cannot be."""
    hidden, visible = memory.weights.shape[-2:]
    unknown = [part.kind for part in memory.parts if part.kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown Lagrangian {unknown[0]!r}; possible: {', '.join(KINDS)}")
    if sum(part.count for part in memory.parts) != hidden:
        raise ValueError(
            f"parts of {[part.count for part in memory.parts]} hidden neurons do not add up to the {hidden} rows of the weights"
        )
    if memory.drive.shape[-1] != visible or memory.bias.shape[-1] != hidden:
        raise ValueError(f"drive {memory.drive.shape} and bias {memory.bias.shape} do not fit weights of {hidden} x {visible}")
    if min(memory.visible_time, memory.hidden_time) <= 0:
        raise ValueError(f"time constants {memory.visible_time} and {memory.hidden_time} must be positive")
    if any(part.kind == "softmax" and part.beta <= 0 for part in memory.parts):
        raise ValueError("beta of a softmax must be positive: its Lagrangian would not be convex, and the energy could rise")


def pattern_bias(patterns):
    """Bias (N,) with which the scores W v + b of patterns (N, N_v) order them by their distance from v: -|pattern|^2 / 2."""
    return -0.5 * np.square(patterns).sum(-1)


def pattern_memory(patterns, beta, held=None, hidden_time=0.1):
    """The memory that retrieves the pattern (a row of (N, N_v)) nearest to where it begins."""
    patterns = np.asarray(patterns, np.float64)
    count, width = patterns.shape
    memory = Memory(patterns, (Part("softmax", count, beta),), np.zeros(width), pattern_bias(patterns), 1.0, hidden_time, held)
    check_memory(memory)
    return memory


def split(memory, x):
    """[(part, its states)] of hidden states x (..., N_h)."""
    ends = np.cumsum([part.count for part in memory.parts])
    return list(zip(memory.parts, np.split(x, ends[:-1], -1)))


def output(part, x):
    """Slope of a part's Lagrangian at states x (..., N)."""
    if part.kind == "identity":
        return x
    if part.kind == "relu":
        return np.maximum(x, 0.0)
    grown = np.exp(part.beta * (x - x.max(-1, keepdims=True)))
    return grown / grown.sum(-1, keepdims=True)


def lagrangian(part, x):
    """Lagrangian (...) of a part at states x (..., N)."""
    if part.kind == "softmax":
        top = x.max(-1)
        return top + np.log(np.exp(part.beta * (x - top[..., None])).sum(-1)) / part.beta
    return 0.5 * np.square(np.maximum(x, 0.0) if part.kind == "relu" else x).sum(-1)


def curvature(part, x, y):
    """y^T H y (...) with the Hessian H of a part's Lagrangian at x; `y` (..., N)."""
    if part.kind == "identity":
        return np.square(y).sum(-1)
    if part.kind == "relu":
        return np.square(y * (x > 0)).sum(-1)
    f = output(part, x)
    return part.beta * ((f * y * y).sum(-1) - np.square((f * y).sum(-1)))


def hidden_outputs(memory, h):
    """f (..., N_h) of hidden states h."""
    return np.concatenate([output(part, x) for part, x in split(memory, h)], -1)


def down(memory, f):
    """f W (..., N_v): what hidden outputs (..., N_h) send to the visible neurons."""
    return (f[..., None, :] @ memory.weights)[..., 0, :] if memory.weights.ndim > 2 else f @ memory.weights


def up(memory, g):
    """W g (..., N_h): what visible outputs (..., N_v) send to the hidden neurons."""
    return (memory.weights @ g[..., None])[..., 0] if memory.weights.ndim > 2 else g @ memory.weights.T


def free(memory, velocity):
    """A velocity (..., N_v) of the visible neurons, zero where they are held."""
    return velocity if memory.held is None else np.where(memory.held, 0.0, velocity)


def velocity(memory, v, h):
    """(v', h') of states v (..., N_v) and h (..., N_h). Visible outputs are the states themselves (identity)."""
    toward_v = down(memory, hidden_outputs(memory, h)) + memory.drive - v
    return free(memory, toward_v / memory.visible_time), (up(memory, v) + memory.bias - h) / memory.hidden_time


def circuit_velocity(memory, v, h):
    """`velocity` as a crossbar of conductances W computes it: each crossing carries a current W (g - f) for the difference of potentials,
    and a path of each neuron onto itself gives back what the difference took."""
    f, w = hidden_outputs(memory, h), memory.weights
    to_hidden = (w * (v[..., None, :] - f[..., :, None])).sum(-1) + f * w.sum(-1)
    to_visible = (w * (f[..., :, None] - v[..., None, :])).sum(-2) + v * w.sum(-2)
    return free(memory, (to_visible + memory.drive - v) / memory.visible_time), (to_hidden + memory.bias - h) / memory.hidden_time


def energy(memory, v, h):
    """Energy (...) of states v (..., N_v) and h (..., N_h)."""
    f = hidden_outputs(memory, h)
    hidden = (f * (h - memory.bias)).sum(-1) - sum(lagrangian(part, x) for part, x in split(memory, h))
    return (v * (v - memory.drive)).sum(-1) - 0.5 * np.square(v).sum(-1) + hidden - (f * up(memory, v)).sum(-1)


def energy_slope(memory, v, h):
    """dE/dt (...) along the currents: -tau_v v' H_v v' - tau_h h' H_h h', never above 0."""
    moved_v, moved_h = velocity(memory, v, h)
    hidden = sum(curvature(part, x, y) for (part, x), (_, y) in zip(split(memory, h), split(memory, moved_h)))
    return -memory.visible_time * np.square(moved_v).sum(-1) - memory.hidden_time * hidden


def settled_hidden(memory, v):
    """Hidden states (..., N_h) that infinitely fast hidden neurons have at v: W v + b."""
    return up(memory, v) + memory.bias


def effective_velocity(memory, v):
    """v' where hidden neurons are infinitely fast: minus the slope of `effective_energy`, over tau_v."""
    return velocity(memory, v, settled_hidden(memory, v))[0]


def effective_energy(memory, v):
    """Energy (...) of v (..., N_v) under infinitely fast hidden neurons."""
    return energy(memory, v, settled_hidden(memory, v))


def check_conductances(memory):
    """ValueError where a weight is negative, which no conductance can be."""
    lowest = float(memory.weights.min())
    if lowest < 0:
        raise ValueError(
            f"{int((memory.weights < 0).sum())} weights are negative (lowest {lowest:g}), and a conductance cannot be; "
            f"shift them by {-lowest:g} or more (shifted)"
        )


def shifted(memory, offset):
    """The same memory with weights W + offset. Softmax neurons do not see what all of them gain, and the visible neurons' surplus is taken
    off their drive; so biases stay those of the true patterns. ValueError where a hidden neuron is no softmax one."""
    others = [part.kind for part in memory.parts if part.kind != "softmax"]
    if others or len(memory.parts) != 1:
        raise ValueError(f"{others[0] if others else 'several'} parts see a constant offset of their weights; one softmax part does not")
    return replace(memory, weights=memory.weights + offset, drive=memory.drive - offset)
