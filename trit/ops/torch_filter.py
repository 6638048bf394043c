"""Causal complex filters for PyTorch by linear FFT convolution, forward and backward behind operators that a compiler does not look into.

Outside them every tensor is real: complex numbers are two planes, their real parts before their imaginary ones. A compiler that saw the
complex tensors would not fuse around them, and would warn. Shapes: B batch, T time, C complex channels, K taps, N length of the transform.
"""

import torch

from trit.ops.fft_size import fft_size


def spectrum(planes, size):
    """Real (..., C, L, 2), time before the pair -> transform (..., C, N) complex, zeros behind the L values."""
    padded = planes.new_zeros((*planes.shape[:-2], size, 2))
    padded[..., : planes.shape[-2], :] = planes
    return torch.fft.fft(torch.view_as_complex(padded))


def signal_spectrum(x, size):
    """x (B, T, 2C) -> (B, C, N) complex."""
    return spectrum(x.reshape(*x.shape[:2], 2, -1).permute(0, 3, 1, 2), size)


def signal_of(transform, length):
    """Inverse of `signal_spectrum`: the first `length` values, (B, T, 2C) real and contiguous."""
    planes = torch.view_as_real(torch.fft.ifft(transform)[..., :length])
    return planes.permute(0, 2, 3, 1).reshape(planes.shape[0], length, -1)


def taps_spectrum(taps, size):
    """taps (2C, K) -> (C, N) complex."""
    return spectrum(taps.reshape(2, -1, taps.shape[1]).permute(1, 2, 0), size)


@torch.library.custom_op("trit::filtered", mutates_args=(), schema="(Tensor x, Tensor taps) -> Tensor")
def filtered(x, taps):
    """x (B, T, 2C) filtered by taps (2C, K) -> (B, T, 2C)."""
    size = fft_size(x.shape[1] + taps.shape[1] - 1)
    return signal_of(signal_spectrum(x, size).mul_(taps_spectrum(taps, size)), x.shape[1])


@torch.library.register_fake("trit::filtered")
def filtered_shape(x, taps):
    """What `filtered` gives, without values."""
    return x.new_empty(x.shape)


@torch.library.custom_op("trit::filtered_back", mutates_args=(), schema="(Tensor gradient, Tensor x, Tensor taps) -> (Tensor, Tensor)")
def filtered_back(gradient, x, taps):
    """Gradients (of x, of taps) from that of the output (B, T, 2C). The transform of x is made again: keeping it would take more memory."""
    size = fft_size(x.shape[1] + taps.shape[1] - 1)
    arriving = signal_spectrum(gradient, size)
    of_taps = torch.fft.ifft(signal_spectrum(x, size).conj_physical_().mul_(arriving).sum(0))[:, : taps.shape[1]]
    of_taps = torch.view_as_real(of_taps).permute(2, 0, 1).reshape(taps.shape)
    return signal_of(arriving.mul_(taps_spectrum(taps, size).conj_physical_()), x.shape[1]), of_taps


@torch.library.register_fake("trit::filtered_back")
def filtered_back_shape(gradient, x, taps):
    """What `filtered_back` gives, without values."""
    return x.new_empty(x.shape), taps.new_empty(taps.shape)


class ComplexFilter(torch.autograd.Function):
    """x (B, T, 2C) and taps (2C, K) -> (B, T, 2C). `shapes` keeps in a counted file what a compiler asks for."""

    shapes = (filtered_shape, filtered_back_shape)

    @staticmethod
    def forward(ctx, x, taps):
        ctx.save_for_backward(x, taps)
        return filtered(x, taps)

    @staticmethod
    def backward(ctx, gradient):
        return filtered_back(gradient.contiguous(), *ctx.saved_tensors)
