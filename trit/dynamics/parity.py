"""Parity of bits by the Analog Energy Transformer: a state relaxes under attention to the embedded bits and a learned memory, and a linear
decoder reads the answer off it. Training by backpropagation through the relaxation, its gradients written out; numpy alone.

    v' = A^T softmax(beta (A v + b)) + X^T relu(X v + c) + a - v        hidden neurons infinitely fast while training (tau_v = 1)

A (L, D) are the embeddings of a string's bits, so that a bit more is a row more; X (M, D) is learned, its largest singular value held
below 1, without which the energy has no lower bound. Without positions a string is its count of ones, nine classes for eight bits: see
`SPLITS`. Shapes: B strings, L bits, D channels, M hinges.
"""

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from trit.dynamics.memory import Memory, Part, check_memory, velocity
from trit.dynamics.solver import solve
from trit.train.optimizer import adam_update

BITS, CHANNELS, HINGES = 8, 32, 256
BETA, EMBEDDING, DECODER = 0.02, 1.5, 10.0  # a larger beta lets one bit win, and the nine counts fall together
STEPS, STEP = 20, 1.0  # long enough to be where the state stays: what is read after 8 tau_v need not be
RATE, DECODER_RATE = 3e-3, 3e-2
ADAM = SimpleNamespace(train=SimpleNamespace(beta1=0.9, beta2=0.99, adam_eps=1e-8))
SPLITS = ("random", "ends", "leave_one_count_out")


@dataclass(frozen=True)
class Setting:
    """How a model is trained: iterations over all training strings, largest gain of the memory, size of learned positions (0: none), seed,
    and the length of its explicit steps in tau_v, at most 2 for an energy that falls."""

    iterations: int = 3000
    gain: float = 0.9
    positions: float = 0.0
    seed: int = 0
    step: float = STEP


def all_strings(bits=BITS):
    """Every string (2^bits, bits) of zeros and ones."""
    return np.array(list(itertools.product((0, 1), repeat=bits)))


def split_strings(kind, seed=0, left_out=4):
    """(training strings, held out strings): 52 at random; 52 at random, but counts 0 and 8 in training; or all with `left_out` ones."""
    strings = all_strings()
    counts = strings.sum(1)
    if kind == "leave_one_count_out":
        return strings[counts != left_out], strings[counts == left_out]
    if kind not in SPLITS:
        raise ValueError(f"unknown split {kind!r}; possible: {', '.join(SPLITS)}")
    free = np.arange(len(strings)) if kind == "random" else np.flatnonzero((counts > 0) & (counts < BITS))
    held = np.zeros(len(strings), bool)
    held[np.random.default_rng([seed, 52]).choice(free, 52, replace=False)] = True
    return strings[~held], strings[held]


def bounded(patterns, gain):
    """Patterns (M, D) with singular values of at most `gain`."""
    squares, turn = np.linalg.eigh(patterns.T @ patterns)  # D x D, where a decomposition of the patterns themselves takes most of a step
    shrink = np.minimum(1.0, gain / np.sqrt(np.maximum(squares, 1e-30)))
    return patterns @ ((turn * shrink) @ turn.T)


def first_weights(setting):
    """{name: array} before training. Each hinge of the memory opens at a place of its own on the way from one bit's embedding to the other's,
    where the mean of a string's embeddings lies."""
    generator = np.random.default_rng([setting.seed, 8])
    embed = generator.standard_normal((2, CHANNELS)) * EMBEDDING
    patterns = bounded(generator.standard_normal((HINGES, CHANNELS)) * CHANNELS**-0.5, setting.gain)
    places = np.linspace(-0.1, 1.1, HINGES)[:, None]
    weights = {
        "embed": embed,
        "patterns": patterns,
        "hinge": -(patterns * (embed[0] + places * (embed[1] - embed[0]))).sum(1),
        "drive": np.zeros(CHANNELS),
        "decoder": generator.standard_normal((2, CHANNELS)) * CHANNELS**-0.5 / DECODER,
        "decoder_bias": np.zeros(2),
    }
    if setting.positions:
        weights["position"] = generator.standard_normal((BITS, CHANNELS)) * setting.positions
    return weights


def context(weights, strings):
    """Rows A (B, L, D) that the bits of strings are embedded as; those of a shorter string than the positions have the first of these."""
    rows = weights["embed"][strings]
    return rows + weights["position"][: strings.shape[1]] if "position" in weights else rows


def attend(rows, v):
    """(scores' softmax (B, L), what it reads (B, D)) of rows (B, L, D) at states v (B, D)."""
    scores = BETA * np.einsum("bld,bd->bl", rows, v)
    share = np.exp(scores - scores.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    return share, np.einsum("bl,bld->bd", share, rows)


def relaxation(weights, rows, steps=STEPS, step=STEP):
    """States (steps + 1, B, D) of explicit steps from rest."""
    states = [np.zeros((len(rows), CHANNELS))]
    for _ in range(steps):
        v = states[-1]
        opened = np.maximum(v @ weights["patterns"].T + weights["hinge"], 0.0)
        states.append(v + step * (attend(rows, v)[1] + opened @ weights["patterns"] + weights["drive"] - v))
    return states


def logits_of(weights, v):
    """Scores (B, 2) of even and odd at states v (B, D)."""
    return DECODER * v @ weights["decoder"].T + weights["decoder_bias"]


def loss_and_gradients(weights, strings, share, step=STEP):
    """(cross-entropy in nats, {name: gradient}) of strings (B, L), each of which counts for its `share` (B,); the shares add up to 1."""
    rows = context(weights, strings)
    states = relaxation(weights, rows, STEPS, step)
    logits, odd = logits_of(weights, states[-1]), strings.sum(1) % 2
    logits = logits - logits.max(1, keepdims=True)
    chance = np.exp(logits)
    chance /= chance.sum(1, keepdims=True)
    loss = -(share * np.log(chance[np.arange(len(odd)), odd])).sum()
    error = chance.copy()
    error[np.arange(len(odd)), odd] -= 1.0
    error *= share[:, None]
    found = {name: np.zeros_like(array) for name, array in weights.items()}
    found["decoder"], found["decoder_bias"] = DECODER * error.T @ states[-1], error.sum(0)
    slope, to_rows = DECODER * error @ weights["decoder"], np.zeros_like(rows)
    for v in states[-2::-1]:
        # The field is a slope, so its Jacobian is symmetric: what takes a change of the state forward takes the loss's slope back.
        chosen, _ = attend(rows, v)
        seen = np.einsum("bld,bd->bl", rows, slope)
        turned = BETA * chosen * (seen - (chosen * seen).sum(1, keepdims=True))
        opened = v @ weights["patterns"].T + weights["hinge"]
        back = (opened > 0) * (slope @ weights["patterns"].T)
        to_rows += step * (chosen[:, :, None] * slope[:, None] + turned[:, :, None] * v[:, None])
        found["patterns"] += step * (np.maximum(opened, 0.0).T @ slope + back.T @ v)
        found["hinge"] += step * back.sum(0)
        found["drive"] += step * slope.sum(0)
        slope = slope + step * (np.einsum("bl,bld->bd", turned, rows) + back @ weights["patterns"] - slope)
    np.add.at(found["embed"], strings, to_rows)
    if "position" in weights:
        found["position"][: strings.shape[1]] = to_rows.sum(0)
    return loss, found


def distinct(strings, positional):
    """(strings that differ to the model, share of each): without positions one for every count of ones, which is all that it sees."""
    if positional:
        return strings, np.full(len(strings), 1 / len(strings))
    _, first, counts = np.unique(strings.sum(1), return_index=True, return_counts=True)
    return strings[first], counts / counts.sum()


def train(strings, setting, tick=None):
    """(weights, losses) after Adam with a cosine's decay on all strings at once, the norm of the gradients clipped to 1 and the memory's gain
    held after every step. `tick` is called after each."""
    weights, losses = first_weights(setting), []
    moments = {name: (np.zeros_like(array), np.zeros_like(array)) for name, array in weights.items()}
    shown, share = distinct(strings, setting.positions > 0)
    for place in range(setting.iterations):
        loss, gradients = loss_and_gradients(weights, shown, share, setting.step)
        norm = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))
        fade = 0.5 + 0.5 * np.cos(np.pi * place / setting.iterations)
        for name, gradient in gradients.items():
            rate = fade * (DECODER_RATE if name.startswith("decoder") else RATE)
            moments[name], update = adam_update(np, ADAM, *moments[name], gradient * min(1.0, 1.0 / norm), place + 1)
            weights[name] = weights[name] - rate * update
        weights["patterns"] = bounded(weights["patterns"], setting.gain)
        losses.append(float(loss))
        if tick:
            tick()
    return weights, losses


def answers(weights, strings, steps=STEPS, step=STEP):
    """Decoded parity (B,) of strings (B, L) after the steps of training."""
    return logits_of(weights, relaxation(weights, context(weights, strings), steps, step)[-1]).argmax(1)


def circuit(weights, strings, hidden_time=0.1):
    """The full circuit (`Memory`) of strings (B, L): attention and memory as hidden neurons with a time constant of their own."""
    rows = context(weights, strings)
    patterns = np.broadcast_to(weights["patterns"], (len(rows), *weights["patterns"].shape))
    parts = (Part("softmax", rows.shape[1], BETA), Part("relu", HINGES))
    bias = np.concatenate([np.zeros(rows.shape[1]), weights["hinge"]])
    memory = Memory(np.concatenate([rows, patterns], 1), parts, weights["drive"], bias, 1.0, hidden_time)
    check_memory(memory)
    return memory


def with_row(memory, row):
    """The circuit of one string with an embedding (D,) more: autoregression adds one hidden neuron of attention, and nothing else changes."""
    attention, rest = memory.parts
    place = attention.count
    weights = np.insert(memory.weights, place, row, -2)
    return replace(memory, weights=weights, parts=(replace(attention, count=place + 1), rest), bias=np.insert(memory.bias, place, 0.0, -1))


def verified(weights, strings, end=60.0, hidden_time=0.1):
    """The full circuit on strings (B, L) until `end` (tau_v): {right: decoded bits that are the parity, flat: whether every bit stays over the
    second half, speed: largest |v'| at the end, largest_rise: of any energy} and the `Trajectory`. Strings that a model cannot tell apart
    are run once."""
    shown, share = distinct(strings, "position" in weights)
    run = solve(circuit(weights, shown, hidden_time), np.zeros((len(shown), CHANNELS)), end, points=200)
    late = run.visible[run.times >= end / 2]
    bits = logits_of(weights, late).argmax(-1)
    right = (bits[-1] == shown.sum(1) % 2) * share * len(strings)
    return {
        "right": round(float(right.sum())),
        "flat": bool((bits == bits[-1]).all()),
        "speed": float(np.abs(velocity(circuit(weights, shown, hidden_time), run.visible[-1], run.hidden[-1])[0]).max()),
        "largest_rise": run.largest_rise(),
    }, run


def parity_row(kind, setting, tick=None, whole=True):
    """({what came of one split}, weights): right answers on what was trained on and held out, the strings that were missed, and what the full
    circuit says of those held out, where `whole`."""
    trained_on, held = split_strings(kind, setting.seed)
    weights, losses = train(trained_on, setting, tick)
    wrong = held[answers(weights, held, STEPS, setting.step) != held.sum(1) % 2]
    row = {
        "split": kind,
        "seed": setting.seed,
        "positions": setting.positions,
        "step": setting.step,
        "loss": losses[-1],
        "trained_right": int((answers(weights, trained_on, STEPS, setting.step) == trained_on.sum(1) % 2).sum()),
        "trained": len(trained_on),
        "right": len(held) - len(wrong),
        "held": len(held),
        "missed": ["".join(map(str, string)) for string in wrong],
        "counts_not_trained": sorted(set(map(int, held.sum(1))) - set(map(int, trained_on.sum(1)))),
    }
    if whole:
        found, _ = verified(weights, held)
        row |= {f"circuit_{name}": value for name, value in found.items()}
    return row, weights
