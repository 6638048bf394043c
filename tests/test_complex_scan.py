"""The scan of complex numbers: the recurrence to rounding, its adjoint, and neither time nor a graph that grows with the square of T."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks.sem_scan import indexed_loop, unbind_loop
from trit.config_load import ROOT
from trit.ops import torch_ops


def case(length, dtype, channels=5, seed=0):
    """(decays with moduli up to 0.9999, inputs scaled to unit variance of the states), (2, length, 2 C)."""
    generator = np.random.default_rng(seed)
    modulus = 1 - 10.0 ** generator.uniform(-4, -0.3, (2, length, channels))
    angle = generator.uniform(-3, 3, modulus.shape)
    gain = np.sqrt(1 - modulus**2)
    decays = np.concatenate([modulus * np.cos(angle), modulus * np.sin(angle)], -1)
    inputs = generator.standard_normal((2, length, 2 * channels)) * np.concatenate([gain, gain], -1)
    return [torch.from_numpy(x.astype(dtype)).requires_grad_() for x in (decays, inputs)]


def one_by_one(decays, inputs):
    """States token by token in complex numbers, by the library's own gradient."""
    a, b = (torch.complex(*x.chunk(2, -1)) for x in (decays, inputs))
    state, states = torch.zeros_like(b[:, 0]), []
    for now, entering in zip(a.unbind(1), b.unbind(1), strict=True):
        state = now * state + entering
        states.append(state)
    states = torch.stack(states, 1)
    return torch.cat([states.real, states.imag], -1)


@pytest.mark.parametrize("length", [1, 7, 32, 33, 100, 512])
def test_states_and_gradients_are_those_of_the_recurrence(length):
    """A6: in float64 to 1e-12, in float32 to 1e-5, gradients in proportion."""
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        given, exact = case(length, dtype), [x.detach().double().requires_grad_() for x in case(length, dtype)]
        weights = torch.from_numpy(np.random.default_rng(1).standard_normal(given[1].shape))
        found, wanted = torch_ops.complex_scan(*given), one_by_one(*exact)
        assert (found - wanted).abs().max() <= tolerance
        (found * weights).sum().backward()
        (wanted * weights).sum().backward()
        for one, two in zip(given, exact, strict=True):
            assert (one.grad - two.grad).norm() <= max(tolerance, 1e-12) * two.grad.norm()


def test_gradients_pass_finite_differences():
    decays, inputs = case(11, "float64", 1)
    assert torch.autograd.gradcheck(torch_ops.complex_scan, (decays[:1], inputs[:1]))


def nodes(x):
    """Number of nodes of the graph behind a tensor."""
    seen, waiting = set(), [x.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [each for each, _ in node.next_functions]
    return len(seen)


def test_the_graph_does_not_grow_with_time():
    """A7: one node for the scan, however long."""
    assert nodes(torch_ops.complex_scan(*case(16, "float32"))) == nodes(torch_ops.complex_scan(*case(512, "float32"))) == 3


def seconds(function, given):
    """Least seconds of the processor in five runs forward and back, after two: a busy machine only adds."""
    found = []
    for _ in range(7):
        begin = time.process_time()
        torch.autograd.grad(function(*given).square().sum(), given)
        found.append(time.process_time() - begin)
    return min(found[2:])


@pytest.mark.slow
def test_the_scan_is_quicker_than_loops():
    """A7: ratios in one run, four windows of 512 and 128 channels."""
    given = [torch.cat([x.detach()] * 2).requires_grad_() for x in case(512, "float32", 128)]
    assert torch.allclose(unbind_loop(*given), torch_ops.complex_scan(*given), atol=1e-5)
    scan, loop, indexed = (seconds(function, given) for function in (torch_ops.complex_scan, unbind_loop, indexed_loop))
    assert scan <= 0.6 * loop and scan <= 0.2 * indexed, (scan, loop, indexed)


WINDOWS = ["train.train_seq_len=512", "train.train_batch_tokens=2048", "model.yarn_max_len=512", "eval.eval_seq_len=512"]
KEEPING = "import json, torch; from benchmarks.sem_scan import *; torch.set_num_threads(1); assert keep_freed_memory()"
WAY_BACK = "print(json.dumps(list(medians(ways_back((256, 512, 1024)), 15).values())))"
WHOLE = "print(json.dumps(list(medians(model_forms('configs/sem_byte.toml', " + repr(WINDOWS) + "), 3).values())))"


def measured(program):
    """The numbers that a program prints, in a process of its own with freed memory kept, as every training has it. Where every array gets
    fresh pages, those of 512 tokens are the first that the C library asks the system for: ratios then say more of it than of the scan."""
    found = subprocess.run([sys.executable, "-c", KEEPING + "; " + program], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(found.stdout)


@pytest.mark.slow
def test_the_way_back_is_linear_in_time():
    """A7: as the text doubles."""
    short, middle, long = measured(WAY_BACK)
    assert middle <= 2.6 * short and long <= 2.6 * middle, (short, middle, long)


@pytest.mark.slow
def test_a_whole_step_is_quicker_than_with_the_published_loop():
    """A7: the byte preset on four windows of 512. With a vocabulary of 4,096 (`sem_2m`) the head alone takes too much of a step for 0.4."""
    scan, loop = measured(WHOLE)
    assert scan <= 0.4 * loop, (scan, loop)
