"""Test-time training on text that was scored: which tensors may move, one SGD step after each chunk, everything else held still.

The artifact's arrays are never written to: what adapts is a copy ("changes"), made inside one evaluation and dropped after it.
"""

import math
import warnings
from contextlib import contextmanager

import numpy as np

# What each scope moves, by the `adapt` kind in a tensor's ParamSpec. A tensor without a kind (hash tables, embedding) never moves.
TTT_SCOPES = {
    "feedback": ("feedback", "skip", "decoder_scale"),
    "skc_safe": ("feedback", "skip", "decoder_scale", "decay", "mix", "conv", "skc_scale"),
    "capsule_bank": ("capsule_bank",),
    "scales": ("scale", "skip", "decoder_scale", "mix", "skc_scale"),
    "lora": ("matrix",),
}

TTT_ROWS = 4  # windows in one gradient: fixed, so that sums round the same for any batch size and number of ranks


def scope_specs(specs, scope):
    """The specs that `scope` adapts, in the table's order: an exact list of tensors. ValueError where there is none."""
    chosen = [spec for spec in specs if spec.adapt in TTT_SCOPES[scope]]
    if not chosen:
        useful = [name for name, kinds in TTT_SCOPES.items() if any(spec.adapt in kinds for spec in specs)]
        raise ValueError(f"eval.ttt_scope={scope} adapts no tensor of this architecture; possible: none, {', '.join(useful)}")
    return chosen


def first_changes(ops, cfg, specs, weights):
    """{name: array} that starts as the artifact's function: copies of the scope's tensors, or for lora the factors name/a (r, I),
    name/b (O, r) of matrices (O, I), with b zero."""
    changes = {}
    for spec in scope_specs(specs, cfg.eval.ttt_scope):
        if cfg.eval.ttt_scope == "lora":
            rows, columns = spec.shape
            start = np.random.default_rng(len(changes)).standard_normal((cfg.eval.ttt_lora_rank, columns)).astype(np.float32)
            changes[spec.name + "/a"] = ops.from_numpy(start * columns**-0.5, weights[spec.name])
            changes[spec.name + "/b"] = ops.from_numpy(np.zeros((rows, cfg.eval.ttt_lora_rank), np.float32), weights[spec.name])
        else:
            changes[spec.name] = ops.cast(weights[spec.name], "float32")
    return changes


def adapted(ops, cfg, weights, changes):
    """`weights` with `changes` applied, in the type they are computed in; nothing given is written to."""
    merged = dict(weights)
    if cfg.eval.ttt_scope == "lora":
        for name in [key[:-2] for key in changes if key[-2:] == "/a"]:
            merged[name] = weights[name] + ops.cast(changes[name + "/b"] @ changes[name + "/a"], cfg.train.compute_dtype)
    else:
        for name, array in changes.items():
            merged[name] = ops.cast(array, cfg.train.compute_dtype)
    return merged


def training_windows(tokens, low, high, length):
    """(inputs (W, T), targets (W, T), shares (W, T) 0 or 1) that cover the positions low .. high - 1, each with share 1 once, by windows
    that end at `high` and before; only tokens up to and including target high - 1 are read."""
    ends = np.arange(high, low, -length)[::-1, None]
    positions = np.maximum(ends - length, 0) + np.arange(min(length, high))
    return tokens[positions], tokens[positions + 1], ((positions >= np.maximum(low, ends - length)) & (positions < ends)).astype(np.float32)


def sgd_step(ops, cfg, velocity, changes, gradients, rate):
    """New changes after one step of size `rate` along `gradients`, whose global norm is clipped to eval.ttt_clip. The momentum in
    `velocity` {name: array}, written to, lasts over the chunks of one evaluation (skc.md EV12, D23)."""
    norm = math.sqrt(sum(float(ops.sum(gradient * gradient)) for gradient in gradients.values()))
    factor = min(1.0, cfg.eval.ttt_clip / (norm + 1e-12))
    for name, gradient in gradients.items():
        velocity[name] = cfg.eval.ttt_momentum * velocity.get(name, 0.0) + factor * gradient
    return {name: changes[name] - rate * velocity[name] for name in changes}


def learn_chunk(ops, cfg, model, velocity, changes, tokens, low, high, done):
    """Changes after eval.ttt_epochs passes over the scored positions low .. high - 1. `done`: share of the text scored so far; the
    rate falls with it along a cosine. Ranks share the windows; the sum over them has one order, whatever the number of ranks."""
    inputs, targets, shares = training_windows(tokens, low, high, cfg.eval.eval_seq_len)
    parts = range(0, len(inputs), TTT_ROWS)
    rate = cfg.eval.ttt_lr * 0.5 * (1.0 + math.cos(math.pi * done))
    for _ in range(cfg.eval.ttt_epochs):
        sums = {name: np.zeros((len(parts), *array.shape), np.float32) for name, array in changes.items()}
        for number, at in enumerate(parts):
            if number % model.world == model.rank:
                rows = slice(at, at + TTT_ROWS)
                for name, array in model.gradients(changes, inputs[rows], targets[rows], shares[rows]).items():
                    sums[name][number] = array
        means = {name: model.total(array).sum(0) / (high - low) for name, array in sums.items()}
        gradients = {name: ops.from_numpy(mean, changes[name]) for name, mean in means.items()}
        changes = sgd_step(ops, cfg, velocity, changes, gradients, rate)
    return changes


@contextmanager
def frozen(ops, weights, strict):
    """Hold the arrays in the dictionary `weights` still: where one is not the same bytes at the end, it is restored, and that is a
    RuntimeError (`strict`) or a warning. Packed tables belong to the artifact: nothing learned may drift into them (skc.md EN15)."""
    before = {name: ops.to_numpy(array).copy() for name, array in weights.items()}
    try:
        yield
    finally:
        moved = [name for name, array in before.items() if (ops.to_numpy(weights[name]) != array).any()]
        for name in moved:
            weights[name] = ops.from_numpy(before[name], weights[name])
        if moved:
            warnings.warn(f"the evaluation changed tensors of the artifact, restored: {', '.join(moved)}", stacklevel=2)
    if moved and strict:
        raise RuntimeError(f"the evaluation changed {', '.join(moved)}; only copies of the tensors in eval.ttt_scope may move")
