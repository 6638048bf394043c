"""What a dense associative memory is shown to do: XOR, the Hamming (7, 4) code, and settling in a time that its size does not change.

Each function gives plain numbers, as a command prints them and a test reads them. Times are in units of tau_v.
"""

import itertools

import numpy as np

from trit.dynamics.memory import effective_energy, pattern_memory
from trit.dynamics.solver import solve

TRUTH_TABLE = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]], float)
XOR_BETA, XOR_END = 8.0, 10.0
HAMMING_BETA, HAMMING_END = 10.0, 20.0
SETTLING_BETA, SETTLING_END = 10.0, 20.0


def xor_memory(beta, hidden_time=0.1):
    """Rows of the truth table; the two inputs are held."""
    return pattern_memory(TRUTH_TABLE, beta, np.array([True, True, False]), hidden_time)


def xor_trajectories(beta=XOR_BETA, end=XOR_END):
    """[(inputs, answer, Trajectory)] of the four inputs, the output beginning at a half."""
    memory = xor_memory(beta)
    return [(row[:2], row[2], solve(memory, [*row[:2], 0.5], end)) for row in TRUTH_TABLE]


def xor_minima(beta, row, points=2001):
    """Minima that the landscape over the output has between 0 and 1, ends included, for the inputs of a row of the truth table."""
    outputs = np.linspace(0.0, 1.0, points)
    states = np.stack([np.full(points, row[0]), np.full(points, row[1]), outputs], -1)
    landscape = effective_energy(xor_memory(beta), states)
    padded = np.concatenate([[np.inf], landscape, [np.inf]])
    return outputs[(padded[1:-1] < padded[:-2]) & (padded[1:-1] < padded[2:])]


def xor_table(betas=(2.0, 4.0, 5.0, 6.0, 8.0, 10.0)):
    """One row a beta: largest error of the four outputs, output of the case (1, 0), energy there at both ends, largest rise of any energy,
    most minima of a landscape."""
    rows = []
    for beta in betas:
        runs = xor_trajectories(beta)
        outputs, answers = [float(run.visible[-1, 2]) for _, _, run in runs], [int(answer) for _, answer, _ in runs]
        shown = runs[2][2]
        rows.append(
            {
                "beta": beta,
                "error": max(abs(found - answer) for found, answer in zip(outputs, answers)),
                "right": sum(round(found) == answer for found, answer in zip(outputs, answers)),
                "output": outputs[2],
                "energy_first": float(shown.energies[0]),
                "energy_last": float(shown.energies[-1]),
                "largest_rise": max(run.largest_rise() for _, _, run in runs),
                "minima": max(len(xor_minima(beta, row)) for row in TRUTH_TABLE),
            }
        )
    return rows


def codewords():
    """The 16 words (16, 7) of the systematic code: d1 d2 d3 d4, then the parities of d2 d3 d4, d1 d3 d4 and d1 d2 d4."""
    data = np.array(list(itertools.product((0, 1), repeat=4)))
    checks = np.array([[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1]])
    return np.concatenate([data, data @ checks.T % 2], 1).astype(float)


def received(errors):
    """(words (N, 7) with so many flipped bits, the codeword (N, 7) that each was)."""
    words, flips = codewords(), list(itertools.combinations(range(7), errors))
    sent = np.repeat(words, len(flips), 0)
    found = sent.copy()
    for place, flipped in enumerate(flips * len(words)):
        found[place, list(flipped)] = 1 - found[place, list(flipped)]
    return found, sent


def decode(words, beta=HAMMING_BETA, hidden_time=0.1, end=HAMMING_END):
    """(`Trajectory` of all words (N, 7) at once, the bits (N, 7) that they end with)."""
    run = solve(pattern_memory(codewords(), beta, None, hidden_time), words, end, points=100)
    return run, (run.visible[-1] > 0.5).astype(float)


def hamming_table(betas=(2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0), hidden_times=(0.1,)):
    """One row a beta and tau_h: how many of the 128 words with one error or none end as the word that was sent, their largest deviation from
    it, the largest rise of an energy; and of the 336 words with two errors how many end as another codeword."""
    words, sent = (np.concatenate(parts) for parts in zip(received(0), received(1)))
    twice, sent_twice = received(2)
    code, rows = {tuple(word) for word in codewords()}, []
    for beta, hidden_time in itertools.product(betas, hidden_times):
        run, bits = decode(words, beta, hidden_time)
        wrong = decode(twice, beta, hidden_time)[1]
        rows.append(
            {
                "beta": beta,
                "hidden_time": hidden_time,
                "right": int((bits == sent).all(1).sum()),
                "of": len(words),
                "deviation": float(np.abs(run.visible[-1] - sent).max()),
                "largest_rise": run.largest_rise(),
                "two_errors_elsewhere": sum(tuple(word) in code and bool((word != was).any()) for word, was in zip(wrong, sent_twice)),
                "two_errors": len(twice),
            }
        )
    return rows


def settling_run(size, seed=0, tolerance=0.01, share=0.1):
    """(`Trajectory`, the pattern, margin) of `size` neurons of either kind that hold random bits, begun at the first pattern with a share of its
    bits flipped, one at least. The margin is how many bits further away the nearest other pattern is: at 0 and below it is not the one to find."""
    generator = np.random.default_rng([seed, size])
    patterns = generator.integers(0, 2, (size, size)).astype(float)
    start = patterns[0].copy()
    flipped = generator.choice(size, max(1, round(share * size)), replace=False)
    start[flipped] = 1 - start[flipped]
    distances = np.abs(patterns - start).sum(1)
    run = solve(pattern_memory(patterns, SETTLING_BETA), start, SETTLING_END, target=patterns[0], tolerance=tolerance, points=100)
    return run, patterns[0], int(distances[1:].min() - distances[0])


def settling_table(sizes=(16, 64, 256, 1024), seeds=(0,)):
    """One row a size and seed: how much nearer the start is to its pattern than to any other (bits), time until every neuron is within 0.01 of the pattern (None: never), how often the currents were computed,
    products of one such computation, largest rise of the energy."""
    rows = []
    for size, seed in itertools.product(sizes, seeds):
        run, _, margin = settling_run(size, seed)
        rows.append(
            {
                "neurons": size,
                "seed": seed,
                "margin": margin,
                "settled": run.settled,
                "evaluations": run.evaluations,
                "products": 2 * size * size,
                "largest_rise": run.largest_rise(),
            }
        )
    return rows
