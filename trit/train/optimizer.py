"""One optimiser step as a pure function over the backend's arrays: Muon for matrices, Adam for everything else.

Groups come from the ParamSpec table, so every tensor is in exactly one. Muon: Jordan et al., github.com/KellerJordan/Muon.
"""


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


def muon_updates(ops, cfg, specs, gradients, state):
    """{name: (new momentum, update)} of all matrices: Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns)).

    Matrices of one shape are orthogonalised as one batch: many small products would cost more than their arithmetic.
    """
    shapes, found = {}, {}
    for spec in specs:
        if spec.group == "matrix":
            shapes.setdefault(spec.shape, []).append(spec)
    for (rows, columns), members in shapes.items():
        momenta = [cfg.train.muon_momentum * state[spec.name][0] + gradients[spec.name] for spec in members]
        directions = [gradients[spec.name] + cfg.train.muon_momentum * momentum for spec, momentum in zip(members, momenta)]
        updates = orthogonalise(ops, cfg, ops.stack(directions, 0)) * max(1.0, rows / columns) ** 0.5
        for index, (spec, momentum) in enumerate(zip(members, momenta)):
            found[spec.name] = momentum, updates[index]
    return found


def adam_update(ops, cfg, first, second, gradient, step):
    """(first moment, second moment, update) of bias-corrected Adam; `step` counts from 1."""
    first = cfg.train.beta1 * first + (1.0 - cfg.train.beta1) * gradient
    second = cfg.train.beta2 * second + (1.0 - cfg.train.beta2) * gradient * gradient
    size = ops.sqrt(second * (1.0 / (1.0 - cfg.train.beta2**step))) + cfg.train.adam_eps
    return first, second, first * (1.0 / (1.0 - cfg.train.beta1**step)) / size


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


def optimizer_state(ops, specs, p):
    """Zero moments {name: arrays}: one for Muon, two for Adam."""
    return {spec.name: tuple(ops.zeros(spec.shape, p[spec.name]) for _ in range(1 if spec.group == "matrix" else 2)) for spec in specs}


def optimizer_step(ops, cfg, specs, p, gradients, state, factor, step):
    """(new parameters, new state) after one step with learning rates scaled by `factor`.

    Rows of the engram tables that no token of the batch read keep their weights and moments.
    """
    new_p, new_state = {}, {}
    matrices = muon_updates(ops, cfg, specs, gradients, state)
    for spec in specs:
        x, gradient, rate = p[spec.name], gradients[spec.name], factor * group_rate(cfg, spec)
        if spec.group == "matrix":
            momentum, update = matrices[spec.name]
            new_state[spec.name] = (momentum,)
            new_p[spec.name] = x * (1.0 - rate * cfg.train.muon_wd) - rate * update
            continue
        first, second, update = adam_update(ops, cfg, *state[spec.name], gradient, step)
        if spec.group == "engram":
            active = ops.max(ops.abs(gradient), -1, True) > 0
            first = ops.where(active, first, state[spec.name][0])
            second = ops.where(active, second, state[spec.name][1])
            update = ops.where(active, update, ops.zeros((), x))
        new_state[spec.name] = (first, second)
        decay = cfg.train.adam_wd if spec.group == "embed" else 0.0
        new_p[spec.name] = x * (1.0 - rate * decay) - rate * update
    return new_p, new_state
