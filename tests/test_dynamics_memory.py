"""Dense associative memory as a circuit: its energy's law, its other forms, and the bars of XOR, Hamming and settling."""

from dataclasses import replace

import numpy as np
import pytest

from trit.dynamics.memory import (
    Memory,
    Part,
    check_conductances,
    check_memory,
    circuit_velocity,
    curvature,
    effective_energy,
    effective_velocity,
    energy,
    energy_slope,
    lagrangian,
    output,
    pattern_memory,
    settled_hidden,
    shifted,
    velocity,
)
from trit.dynamics.solver import relax, solve
from trit.dynamics.tasks import (
    TRUTH_TABLE,
    codewords,
    decode,
    hamming_table,
    received,
    settling_run,
    settling_table,
    xor_memory,
    xor_minima,
    xor_table,
    xor_trajectories,
)

PARTS = (Part("softmax", 7, 3.0), Part("relu", 5), Part("identity", 4))


def random_memory(parts=PARTS, width=7, seed=0, scale=0.2, held=None):
    """A memory whose hidden neurons are of several kinds, weights small enough for an energy with a lower bound."""
    generator, count = np.random.default_rng(seed), sum(part.count for part in parts)
    memory = Memory(
        scale * generator.standard_normal((count, width)),
        parts,
        generator.standard_normal(width),
        generator.standard_normal(count),
        1.0,
        0.1,
        held,
    )
    check_memory(memory)
    return memory


def random_states(memory, batch=(), seed=1):
    generator = np.random.default_rng(seed)
    return tuple(generator.standard_normal((*batch, size)) for size in memory.weights.shape[::-1])


def slope_by_difference(function, x, step=1e-6):
    """Gradient of a scalar function at x, by central differences."""
    found = np.zeros_like(x)
    for place in range(x.size):
        moved = np.zeros_like(x)
        moved[place] = step
        found[place] = (function(x + moved) - function(x - moved)) / (2 * step)
    return found


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.kind)
def test_outputs_and_curvatures_are_derivatives_of_the_lagrangian(part):
    x, y = np.random.default_rng(0).standard_normal((2, part.count))
    assert np.abs(slope_by_difference(lambda x: lagrangian(part, x), x) - output(part, x)).max() < 1e-8
    ahead, behind = output(part, x + 1e-6 * y), output(part, x - 1e-6 * y)
    assert abs((ahead - behind) @ y / 2e-6 - curvature(part, x, y)) < 1e-7 and curvature(part, x, y) >= 0


@pytest.mark.parametrize("held", [None, np.arange(7) < 2], ids=["free", "two held"])
def test_energy_falls_along_the_currents_as_its_identity_says(held):
    memory = random_memory(held=held)
    v, h = random_states(memory)
    moved_v, moved_h = velocity(memory, v, h)
    step = 1e-6
    ahead, behind = (energy(memory, v + way * step * moved_v, h + way * step * moved_h) for way in (1, -1))
    assert abs((ahead - behind) / (2 * step) - energy_slope(memory, v, h)) <= 1e-6 * abs(energy_slope(memory, v, h))
    assert energy_slope(memory, v, h) < -0.1
    run = solve(memory, v, 5.0, h, points=5000)
    assert run.largest_rise() <= 1e-9 and run.energies[0] - run.energies[-1] > 1
    # The identity over the whole way: the fall is the integral of the slope.
    fall = np.trapezoid(energy_slope(memory, run.visible, run.hidden), run.times)
    assert abs(fall - (run.energies[-1] - run.energies[0])) < 1e-3 * abs(fall)


def test_a_sign_in_the_currents_would_be_seen():
    """The law is no tautology: with the hidden bias's sign turned in the currents alone, the energy rises somewhere."""
    memory = random_memory()
    v, h = random_states(memory)
    other = replace(memory, bias=-3 * memory.bias)
    run = solve(other, v, 5.0, h)
    assert np.diff(energy(memory, run.visible, run.hidden)).max() > 1e-3


def test_circuit_form_is_the_plain_one():
    for seed in range(5):
        memory = random_memory(seed=seed, scale=1.0, held=np.arange(7) == 3)
        v, h = random_states(memory, (6,), seed)
        for plain, circuit in zip(velocity(memory, v, h), circuit_velocity(memory, v, h)):
            assert np.abs(plain - circuit).max() <= 1e-12


def test_batches_are_runs_of_their_own_also_with_weights_of_their_own():
    memory = random_memory()
    v, h = random_states(memory, (3,))
    wide = replace(memory, weights=np.stack([memory.weights, 2 * memory.weights, -memory.weights]))
    for row in range(3):
        alone = replace(memory, weights=wide.weights[row])
        for together, apart in zip(velocity(wide, v, h), velocity(alone, v[row], h[row])):
            assert np.abs(together[row] - apart).max() < 1e-14
        assert abs(energy(wide, v, h)[row] - energy(alone, v[row], h[row])) < 1e-13


def test_fast_hidden_neurons_leave_the_effective_flow():
    """tau_h = 0.001 ends where the flow down the effective energy does, which is the slope of that energy."""
    patterns = np.random.default_rng(2).standard_normal((6, 4))
    memory = pattern_memory(patterns, 1.5, hidden_time=0.001)
    v = np.array([0.3, -0.2, 0.4, 0.1])
    assert np.abs(effective_velocity(memory, v) + slope_by_difference(lambda v: effective_energy(memory, v), v)).max() < 1e-7
    distances = np.square(patterns - v).sum(1)
    assert abs(effective_energy(memory, v) + np.log(np.exp(-0.75 * distances).sum()) / 1.5) < 1e-12
    fast = solve(memory, v, 1.0, settled_hidden(memory, v)).visible[-1]
    assert np.abs(fast - relax(memory, v, 1.0)).max() <= 1e-3
    slow = solve(replace(memory, hidden_time=1.0), v, 1.0).visible[-1]
    assert np.abs(slow - relax(memory, v, 1.0)).max() > 1e-2


def test_signed_weights_by_an_offset_end_in_the_same_state():
    generator = np.random.default_rng(3)
    memory = pattern_memory(generator.integers(-1, 2, (12, 9)).astype(float), 4.0)
    with pytest.raises(ValueError, match=r"weights are negative \(lowest -1\), and a conductance cannot be; shift them by 1 or more"):
        check_conductances(memory)
    moved = shifted(memory, 1.0)
    check_conductances(moved)
    start = generator.standard_normal(9)
    ends = [solve(each, start, 10.0).visible[-1] for each in (memory, moved)]
    assert np.abs(ends[0] - ends[1]).max() < 1e-9
    with pytest.raises(ValueError, match="relu parts see a constant offset"):
        shifted(random_memory((Part("relu", 3),)), 1.0)


def test_two_integrators_agree():
    for inputs in ([1.0, 0.0, 0.5], [1.0, 1.0, 0.5]):
        ends = [solve(xor_memory(8.0), inputs, 10.0, method=method).visible[-1] for method in ("DOP853", "Radau")]
        assert np.abs(ends[0] - ends[1]).max() <= 1e-7
    words = received(1)[0][:3]
    ends = [solve(pattern_memory(codewords(), 10.0), words, 20.0, method=method).visible[-1] for method in ("RK45", "LSODA")]
    assert np.abs(ends[0] - ends[1]).max() <= 1e-7


@pytest.mark.parametrize(
    "change,message",
    [
        ({"parts": (Part("relu", 4),)}, r"parts of \[4\] hidden neurons do not add up to the 16 rows"),
        ({"parts": (Part("tanh", 16),)}, "unknown Lagrangian 'tanh'; possible: identity, softmax, relu"),
        ({"parts": (Part("softmax", 16, -1.0),)}, "beta of a softmax must be positive"),
        ({"hidden_time": 0.0}, "time constants 1.0 and 0.0 must be positive"),
        ({"drive": np.zeros(3)}, "do not fit weights of 16 x 7"),
    ],
)
def test_memories_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_memory(replace(random_memory(), **change))


def test_an_energy_without_a_lower_bound_is_reported():
    """REQ-B5.1: a relu memory whose gain exceeds 1 runs away."""
    memory = random_memory((Part("relu", 40),), width=4, scale=1.0)
    with pytest.raises(FloatingPointError, match="is the energy bounded below"):
        solve(memory, np.ones(4), 1e4)


def test_xor_table():
    """Outputs of the table that the specification measured, and the bars: four of four within 0.01 from beta 6 on, one minimum, no rise."""
    rows = {row["beta"]: row for row in xor_table()}
    wanted = {2.0: 0.69416, 4.0: 0.95924, 5.0: 0.98577, 6.0: 0.99489, 8.0: 0.99930, 10.0: 0.99988}
    assert rows.keys() == wanted.keys()
    for beta, row in rows.items():
        assert abs(row["output"] - wanted[beta]) < 1e-5 and row["right"] == 4
        assert row["largest_rise"] <= 1e-9 and row["minima"] == 1
        assert (row["error"] <= 0.01) == (beta >= 6)
    assert abs(rows[8.0]["energy_first"] - 0.4517) < 1e-4 and abs(rows[8.0]["energy_last"]) < 2e-4


def test_xor_is_soft_at_beta_1_and_its_minimum_is_where_the_output_ends():
    outputs = [run.visible[-1, 2] for _, _, run in xor_trajectories(1.0)]
    assert np.abs(np.array(outputs) - [0.4601, 0.5399, 0.5399, 0.4601]).max() < 1e-4
    for row, (_, _, run) in zip(TRUTH_TABLE, xor_trajectories()):
        (minimum,) = xor_minima(8.0, row)
        assert abs(minimum - run.visible[-1, 2]) < 1e-3
        assert np.array_equal(run.visible[:, :2], np.broadcast_to(row[:2], (len(run.times), 2)))


def test_the_landscape_of_xor_is_convex_up_to_beta_4_only():
    """So uniqueness of its minimum is what the bar asks, not convexity."""
    outputs = np.linspace(0, 1, 1001)
    states = np.stack([np.ones(1001), np.zeros(1001), outputs], -1)
    lowest = {beta: np.diff(effective_energy(xor_memory(beta), states), 2).min() * 1e6 for beta in (2.0, 4.0, 8.0, 16.0)}
    assert [round(float(value), 2) + 0.0 for value in lowest.values()] == [0.5, 0.0, -1.0, -3.0]


def test_the_code_is_hamming_s():
    words = codewords()
    distances = np.abs(words[:, None] - words).sum(2)
    assert distances[~np.eye(16, dtype=bool)].min() == 3
    assert sorted(words.sum(1)) == [0] + 7 * [3] + 7 * [4] + [7]
    assert {"0001111", "0010110", "0100101", "1000011"} <= {"".join(str(int(bit)) for bit in word) for word in words}


def test_hamming_corrects_all_single_errors():
    """128 of 128: every codeword and every word one bit from it; deviations of the specification. Two errors end elsewhere; beta 2 fails."""
    soft, rough, sharp = hamming_table((2.0, 4.0, 10.0))
    assert sharp["of"] == 128 and sharp["right"] == 128 and sharp["deviation"] < 1e-6 and sharp["largest_rise"] <= 1e-9
    assert rough["right"] == 128 and 9e-3 < rough["deviation"] < 1.1e-2
    assert sharp["two_errors_elsewhere"] == sharp["two_errors"] == 336
    assert soft["right"] == 16


@pytest.mark.parametrize("hidden_time", [0.001, 0.3, pytest.param(0.1, marks=pytest.mark.slow), pytest.param(3.0, marks=pytest.mark.slow)])
def test_hamming_does_not_depend_on_the_hidden_time(hidden_time):
    words, sent = received(1)
    few = slice(None, None, 1 if hidden_time >= 0.1 else 14)
    run, bits = decode(words[few], hidden_time=hidden_time)
    assert np.array_equal(bits, sent[few]) and run.largest_rise() <= 1e-9


def test_settling_takes_the_same_time_at_every_size():
    """The bar: within 2 % from 16 to 1,024 neurons, and near ln 100, while products grow as the square."""
    rows = settling_table()
    times = [row["settled"] for row in rows]
    assert [row["neurons"] for row in rows] == [16, 64, 256, 1024]
    assert max(times) / min(times) <= 1.02 and abs(times[-1] - np.log(100)) < 1e-3
    assert max(row["evaluations"] for row in rows) <= 1.2 * min(row["evaluations"] for row in rows)
    assert all(row["largest_rise"] <= 1e-9 and row["margin"] > 0 for row in rows)


def test_a_start_as_near_to_another_pattern_is_not_retrieved():
    """The claim's limit: 16 random words of 16 bits may have a neighbour that is as near, and the state then rests between the two."""
    run, pattern, margin = settling_run(16, seed=1)
    assert margin == 0 and run.settled is None and np.abs(run.visible[-1] - pattern).max() > 0.4
