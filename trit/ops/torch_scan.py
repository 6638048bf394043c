"""The linear recurrence for PyTorch, with the gradient that the recurrence has instead of that of its steps: it keeps the decays and
the states, and nothing else."""

import torch
import torch.nn.functional as functional

from trit.ops.chunked_scan import chunked_scan, scan_gradients


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
