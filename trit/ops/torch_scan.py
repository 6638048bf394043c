"""The linear recurrence for PyTorch, with the gradient that the recurrence has instead of that of its steps: it keeps the decays and
the states, and nothing else."""

import torch
import torch.nn.functional as functional

from trit.ops.chunked_scan import chunked_scan, scan_gradients
from trit.ops.complex_scan import complex_scan_gradients, complex_scan_states


def pad_time(x, before, after):
    """Zeros around the second axis of x (B, T, C)."""
    return functional.pad(x, (0, 0, before, after))


class LinearScan(torch.autograd.Function):
    """Decays and inputs (B, T, C) -> states (B, T, C)."""

    @staticmethod
    def forward(ctx, decays, inputs):
        """States; they and the decays are kept for the way back."""
        states = chunked_scan(torch.stack, pad_time, decays, inputs, False)
        ctx.save_for_backward(decays, states)
        return states

    @staticmethod
    def backward(ctx, gradient):
        """Gradients of decays and inputs, by the same scan run backwards."""
        return scan_gradients(torch.stack, pad_time, *ctx.saved_tensors, gradient)


class ComplexScan(torch.autograd.Function):
    """Decays and inputs (B, T, 2 C), real parts first -> states (B, T, 2 C)."""

    @staticmethod
    def forward(ctx, decays, inputs):
        states = complex_scan_states(torch.stack, torch.cat, pad_time, decays, inputs)
        ctx.save_for_backward(decays, states)
        return states

    @staticmethod
    def backward(ctx, gradient):
        return complex_scan_gradients(torch.stack, torch.cat, pad_time, *ctx.saved_tensors, gradient)
