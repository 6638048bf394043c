"""One optimiser step as a pure function over the arrays that a process owns: Muon for matrices, Adam for everything else.

Groups come from the ParamSpec table, so every tensor is in exactly one. Muon: Jordan et al., github.com/KellerJordan/Muon.
"""

import math


def orthogonalise(ops, cfg, x):
    """Nearest semi-orthogonal matrices to x (..., R, C) by Newton-Schulz iterations of the quintic 3.4445, -4.7750, 2.0315."""
    if cfg.train.muon_row_norm:
        x = x * ops.rsqrt(ops.sum(x * x, -1, True) + 1e-14)
    x = x * ops.rsqrt(ops.sum(ops.sum(x * x, -1, True), -2, True) + 1e-14)
    tall = x.shape[-2] > x.shape[-1]
    x = ops.swap_last(x) if tall else x
    for _ in range(cfg.train.muon_backend_steps):
        gram = x @ ops.swap_last(x)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return ops.swap_last(x) if tall else x


def stacks(specs):
    """{key: [ParamSpec, ...]}: matrices of one shape and rate are stepped as one array (M, R, C), for many small products would cost
    more than their arithmetic; every other tensor alone, under its name."""
    found = {}
    for spec in specs:
        key = f"{spec.shape} {spec.lr_scale}" if spec.group == "matrix" else spec.name
        found.setdefault(key, []).append(spec)
    return found


def stacked(ops, specs, arrays, multiple=1):
    """{key: array} of {name: array}: the stacks of `stacks`, filled up with zero matrices to a multiple of so many."""
    found = {}
    for key, members in stacks(specs).items():
        if members[0].group == "matrix":
            parts = [arrays[spec.name] for spec in members]
            found[key] = ops.stack(parts + [ops.zeros(members[0].shape, parts[0])] * (-len(parts) % multiple), 0)
        else:
            found[key] = arrays[key]
    return found


def spread(specs, held):
    """{name: array} of {key: array}: inverse of `stacked`."""
    found = {}
    for key, members in stacks(specs).items():
        for index, spec in enumerate(members):
            found[spec.name] = held[key][index] if spec.group == "matrix" else held[key]
    return found


def muon_update(ops, cfg, momentum, gradient):
    """((new momentum,), update) of a stack (M, R, C): Nesterov momentum, orthogonalised, times sqrt(max(1, rows / columns))."""
    momentum = cfg.train.muon_momentum * momentum + gradient
    direction = gradient + cfg.train.muon_momentum * momentum
    return (momentum,), orthogonalise(ops, cfg, direction) * max(1.0, gradient.shape[-2] / gradient.shape[-1]) ** 0.5


def adam_update(ops, cfg, first, second, gradient, step):
    """((first moment, second moment), update) of bias-corrected Adam; `step` counts from 1, a number or an array."""
    first = cfg.train.beta1 * first + (1.0 - cfg.train.beta1) * gradient
    second = cfg.train.beta2 * second + (1.0 - cfg.train.beta2) * gradient * gradient
    size = ops.sqrt(second * (1.0 / (1.0 - cfg.train.beta2**step))) + cfg.train.adam_eps
    return (first, second), first * (1.0 / (1.0 - cfg.train.beta1**step)) / size


def group_rate(cfg, spec):
    """Peak learning rate of a tensor."""
    rate = cfg.train.scalar_lr
    if spec.group == "matrix":
        rate = cfg.train.matrix_lr
    elif spec.group == "embed":
        rate = cfg.train.embed_lr
    elif spec.group == "engram":
        rate = cfg.train.engram_lr
    return rate * spec.lr_scale


def optimizer_state(ops, specs, held):
    """{key: zero moments} of {key: array}: one for Muon, two for Adam; and the number of steps done, under "step"."""
    # No array twice: a compiled step would be compiled again when they part.
    state = {}
    for key, (spec, *_) in stacks(specs).items():
        state[key] = tuple(ops.zeros(held[key].shape, held[key]) for _ in range(1 if spec.group == "matrix" else 2))
    return state | {"step": (ops.zeros((), held[key]),)}


def optimizer_step(ops, cfg, specs, held, gradients, state, factor, norm):
    """(new {key: array}, new state) after one step with learning rates scaled by `factor`.

    `norm` is the norm of all gradients: above grad_clip_norm they shrink to that, and where it is no finite number nothing changes.
    Rows of the engram tables that no token of the batch read keep their weights and moments.
    """
    finite, count = norm < math.inf, state["step"][0] + 1.0
    new_held, new_state = {}, {"step": (ops.where(finite, count, count - 1.0),)}
    for key, (spec, *_) in stacks(specs).items():
        x, gradient, rate = held[key], ops.cast(gradients[key], "float32"), factor * group_rate(cfg, spec)
        if cfg.train.grad_clip_norm:
            gradient = gradient * ops.clip(cfg.train.grad_clip_norm / norm, 0.0, 1.0)
        active = finite
        if cfg.arch.experts:
            # An expert that no token went to has a gradient of exactly 0: it neither decays nor moves (skc.md OP06, MO09).
            largest = ops.abs(gradient)
            largest = ops.max(ops.max(largest, -1, True), -2, True) if spec.group == "matrix" else ops.max(largest)
            active = (largest > 0) & finite
        if spec.group == "matrix":
            moments, update = muon_update(ops, cfg, *state[key], gradient)
            decay = cfg.train.muon_wd
        else:
            moments, update = adam_update(ops, cfg, *state[key], gradient, count)
            decay = cfg.train.adam_wd if spec.group == "embed" else 0.0
            if spec.group == "engram":
                active = (ops.max(ops.abs(gradient), -1, True) > 0) & finite
        new_state[key] = tuple(ops.where(active, new, old) for new, old in zip(moments, state[key]))
        new_held[key] = ops.where(active, x * (1.0 - rate * decay) - rate * update, x)
    return new_held, new_state
