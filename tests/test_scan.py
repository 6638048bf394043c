"""Laws of the linear recurrence, the causal convolution and the Hadamard matrix: each is what a plain loop or definition gives."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, tiny_config
from op_cases import linear_scan
from torch.utils._python_dispatch import TorchDispatchMode

from trit.compress.hadamard import hadamard_rotate
from trit.data.token_ids import BOS_ID
from trit.layers.conv import causal_conv, conv_reach, conv_specs
from trit.layers.hadamard import hadamard_matrix
from trit.layers.scan import decay_scan
from trit.ops import torch_ops

LENGTHS = (1, 31, 32, 33, 511, 2048)
KINDS = ("any", "near_one", "near_zero", "zeros")


def arrays(kind, length, rows=2, width=5):
    """Decays of a kind and inputs (rows, length, width)."""
    generator = np.random.default_rng(length)
    decays = generator.random((rows, length, width)).astype(np.float32)
    if kind == "near_one":
        decays = 1.0 - decays * np.float32(2.0**-14)
    elif kind == "near_zero":
        decays *= np.float32(1e-30)
    elif kind == "zeros":
        decays[generator.random(decays.shape) < 0.2] = 0.0
    return decays, generator.standard_normal(decays.shape).astype(np.float32)


def looped(decays, inputs):
    """The recurrence token by token, on tensors."""
    state, states = torch.zeros_like(inputs[:, 0]), []
    for step in range(inputs.shape[1]):
        state = decays[:, step] * state + inputs[:, step]
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scan_is_the_loop(backend, length, kind):
    ops, (decays, inputs) = BACKENDS[backend].ops, arrays(kind, length)
    wanted = linear_scan(*(x.astype(np.float64) for x in (decays, inputs)))
    found = ops.to_numpy(ops.linear_scan(ops.from_numpy(decays), ops.from_numpy(inputs)))
    assert found.dtype == np.float32 and np.abs(found - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_gradients_are_those_of_the_loop(length, kind):
    leaves = [torch.from_numpy(x).double().requires_grad_() for x in arrays(kind, length)]
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal(leaves[0].shape))
    wanted = torch.autograd.grad((looped(*leaves) * weights).sum(), leaves)
    found = torch.autograd.grad((torch_ops.linear_scan(*leaves) * weights).sum(), leaves)
    assert all(torch.allclose(*pair, rtol=1e-10, atol=1e-10) for pair in zip(found, wanted, strict=True))
    a, b, w = (mx.array(x.detach().float().numpy()) for x in (*leaves, weights))
    others = mx.grad(lambda a, b: (BACKENDS["mlx"].ops.linear_scan(a, b) * w).sum(), argnums=(0, 1))(a, b)
    assert all(np.abs(np.array(x) - y.numpy()).max() <= 1e-4 * max(1.0, y.abs().max()) for x, y in zip(others, wanted, strict=True))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 65])
def test_gradcheck(length):
    leaves = [torch.from_numpy(x).double().requires_grad_() for x in arrays("zeros", length, 2, 2)]
    assert torch.autograd.gradcheck(torch_ops.linear_scan, leaves)


@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_a_learned_initial_state_is_a_state_before_the_first_token(shape):
    decays, inputs = (torch.from_numpy(x).double() for x in arrays("any", 40))
    initial = torch.from_numpy(np.random.default_rng(3).standard_normal(shape).astype(np.float32)).requires_grad_()
    # The same as one more token in front, which brings the state and keeps nothing.
    front = initial.double().expand(2, 5)[:, None]
    wanted = looped(torch.cat([torch.zeros_like(front), decays], 1), torch.cat([front, inputs], 1))[:, 1:]
    found = decay_scan(torch_ops, decays, inputs, initial)
    assert found.dtype == torch.float32 and torch.allclose(found.double(), wanted, atol=1e-5)
    gradients = [torch.autograd.grad(x.square().sum(), initial)[0] for x in (found, wanted)]
    assert torch.allclose(*gradients, atol=1e-4) and gradients[0].abs().min() > 0
    zero = decay_scan(torch_ops, decays, inputs, torch.zeros(shape))
    assert torch.equal(zero, decay_scan(torch_ops, decays, inputs))


def test_the_state_is_float32_whatever_comes():
    """A thousand additions of 1/1000 are lost in bfloat16, which stops at 1/4."""
    found = decay_scan(torch_ops, torch.ones(1, 1000, 1).bfloat16(), torch.full((1, 1000, 1), 0.001).bfloat16())
    assert found.dtype == torch.float32 and abs(float(found[0, -1, 0]) - 1.0) < 0.01


def test_a_decay_of_zero_forgets_to_the_last_bit():
    decays, inputs = arrays("near_one", 300)
    for cut in (1, 7, 8, 100, 299):
        decays[:, cut] = 0.0
        other = inputs.copy()
        other[:, :cut] = 1e6
        for side in BACKENDS.values():
            found = [side.ops.to_numpy(side.ops.linear_scan(*map(side.ops.from_numpy, (decays, x)))) for x in (inputs, other)]
            assert np.array_equal(found[0][:, cut:], found[1][:, cut:]) and not np.array_equal(found[0][:, :cut], found[1][:, :cut])


def test_scan_compiles_as_one_graph():
    leaves = [torch.from_numpy(x).requires_grad_() for x in arrays("zeros", 75)]
    found = []
    for function in (torch_ops.linear_scan, torch.compile(torch_ops.linear_scan, fullgraph=True, backend="aot_eager")):
        states = function(*leaves)
        found.append([states, *torch.autograd.grad(states.square().sum(), leaves)])
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*found, strict=True))


class Written(TorchDispatchMode):
    """Counts all operations inside, and the numbers that they write."""

    calls = total = 0

    def __torch_dispatch__(self, function, types, given=(), named=None):
        result = function(*given, **named or {})
        self.calls += 1
        parts = result if isinstance(result, (tuple, list)) else [result]
        # A view writes nothing.
        views = {x.untyped_storage().data_ptr() for x in given if isinstance(x, torch.Tensor)}
        self.total += sum(x.numel() for x in parts if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in views)
        return result


def test_work_grows_with_the_length_and_not_faster():
    work = []
    for length in (512, 4096):
        leaves = [torch.from_numpy(x).requires_grad_() for x in arrays("any", length)]
        with Written() as counter:
            torch_ops.linear_scan(*leaves).sum().backward()
        work.append(counter.total / leaves[0].numel())
    assert work[1] <= 1.01 * work[0] and work[1] < 25


def test_scan_takes_far_fewer_operations_than_a_loop_over_tokens():
    leaves, calls = [torch.from_numpy(x).requires_grad_() for x in arrays("any", 512, 4, 128)], []
    for function in (torch_ops.linear_scan, looped):
        with Written() as counter:
            torch.autograd.grad(function(*leaves).sum(), leaves)
        calls.append(counter.calls)
    assert calls[0] <= 0.15 * calls[1]


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_impulse_comes_back_as_the_taps(backend, taps):
    ops, generator = BACKENDS[backend].ops, np.random.default_rng(0)
    weights, x = generator.standard_normal((taps, 3)).astype(np.float32), np.zeros((1, 9, 3), np.float32)
    x[0, 5] = 1.0
    found = ops.to_numpy(causal_conv(ops, ops.from_numpy(x), ops.from_numpy(weights), None))[0]
    wanted = np.zeros((9, 3), np.float32)
    wanted[5 : 5 + taps] = weights[::-1][: 9 - 5]
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_convolution_is_the_library_s(length):
    generator = torch.Generator().manual_seed(0)
    weights, x = torch.randn(4, 3, generator=generator), torch.randn(2, length, 3, generator=generator)
    padded = torch.nn.functional.pad(x.mT, (3, 0))
    wanted = torch.nn.functional.conv1d(padded, weights.T[:, None], groups=3).mT
    assert torch.allclose(causal_conv(torch_ops, x, weights, None), wanted, atol=1e-6)


def test_convolution_starts_as_a_mean_and_stops_at_documents():
    (spec,) = conv_specs(tiny_config(), "c", 4, 3)
    assert (spec.shape, spec.init, spec.value, spec.adapt) == ((4, 3), "constant", 0.25, "conv")
    tokens = torch.tensor([[5, 5, BOS_ID, 5, 5, BOS_ID, BOS_ID, 5]])
    reach = conv_reach(torch_ops, tokens)
    assert reach[0, :, 0].tolist() == [0, 1, 0, 1, 2, 0, 0, 1]
    x = torch.arange(1.0, 9.0)[None, :, None].expand(1, 8, 3)
    found = causal_conv(torch_ops, x, torch.full((4, 3), 0.25), reach)[0, :, 0]
    assert (4 * found).tolist() == [1, 3, 3, 7, 12, 6, 7, 15]
    x = x.clone()
    x[:, :2] = float("inf")  # not even what is not finite crosses
    assert torch.equal(causal_conv(torch_ops, x, torch.full((4, 3), 0.25), reach)[0, 2:, 0], found[2:])


@pytest.mark.parametrize("size", [1, 2, 32, 128])
def test_hadamard_matrix_is_the_rotation_of_the_packer(size):
    for side in BACKENDS.values():
        like = side.ops.from_numpy(np.zeros(1, np.float32))
        matrix = side.ops.to_numpy(hadamard_matrix(side.ops, size, like))
        rotated = side.ops.to_numpy(hadamard_rotate(side.ops, side.ops.from_numpy(np.eye(size, dtype=np.float32))))
        assert np.allclose(matrix, rotated, atol=1e-6) and np.array_equal(matrix, matrix.T)
        assert np.abs(matrix @ matrix - np.eye(size)).max() <= 1e-6
