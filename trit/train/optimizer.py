"""One optimiser step as a pure function over the backend's arrays: Muon for matrices, Adam for everything else.

Groups come from the ParamSpec table, so every tensor is in exactly one. Muon: Jordan et al., github.com/KellerJordan/Muon.
"""


def orthogonalise(ops, cfg, x):
    """Nearest semi-orthogonal matrix to x (R, C) by Newton-Schulz iterations of the quintic 3.4445, -4.7750, 2.0315."""
    if cfg.train.muon_row_norm:
        x = x * ops.rsqrt(ops.sum(x * x, -1, True) + 1e-14)
    x = x * ops.rsqrt(ops.sum(x * x) + 1e-14)
    tall = x.shape[0] > x.shape[1]
    x = ops.swap_last(x) if tall else x
    for _ in range(cfg.train.muon_backend_steps):
        gram = x @ ops.swap_last(x)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return ops.swap_last(x) if tall else x


def muon_update(ops, cfg, momentum, gradient):
    """(new momentum, update): Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns))."""
    momentum = cfg.train.muon_momentum * momentum + gradient
    update = orthogonalise(ops, cfg, gradient + cfg.train.muon_momentum * momentum)
    return momentum, update * max(1.0, gradient.shape[0] / gradient.shape[1]) ** 0.5


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
    for spec in specs:
        x, gradient, rate = p[spec.name], gradients[spec.name], factor * group_rate(cfg, spec)
        if spec.group == "matrix":
            momentum, update = muon_update(ops, cfg, state[spec.name][0], gradient)
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
