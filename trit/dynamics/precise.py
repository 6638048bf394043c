"""The array vocabulary of PyTorch in 64 bits: what it calls float32 is float64. For checks that rounding must not decide."""

from types import SimpleNamespace

from trit.ops import torch_ops


def precise_ops():
    """A namespace with the functions of `torch_ops`, of which those that name a type or make numbers give float64 for float32."""
    ops = SimpleNamespace(**vars(torch_ops))
    ops.cast = lambda x, dtype: x.double() if dtype == "float32" else torch_ops.cast(x, dtype)
    ops.arange = lambda count, like: torch_ops.arange(count, like).double()
    ops.constant = lambda values, like: torch_ops.arange(1, like).double().new_tensor(values)
    ops.rotary_table = lambda frequencies, length, dtype: torch_ops.rotary_table(frequencies, length, "float64")
    return ops


def precise_weights(arrays):
    """{name: float64 tensor} of numpy arrays."""
    return {name: torch_ops.from_numpy(array).double() for name, array in arrays.items()}
