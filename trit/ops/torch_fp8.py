"""Products with ternary matrices in 8-bit floats: the matrix is exact in them, only activations (e4m3) and gradients (e5m2) round.

A ternary matrix with one scale a row is diag(scales) codes, so its scales fold out of both products: x W^T = (x codes^T) scales and
g W = (g scales) codes. So do those of the rows of x and g, which are dynamic: no row depends on another, and a token's product on no
other token. The gradient of the matrix sums over tokens, whose scales do not fold out of that, and 8-bit units would want both factors
transposed in memory first: it stays a product in the type of x. Shapes: M tokens, I inputs, O outputs.
"""

import torch


def rounded_product(rows, codes, scales, kind, fast):
    """rows (M, I) in 8-bit floats of `kind`, each row scaled to their range, times codes (I, O) and scales (1, O) -> (M, O) of rows' type.

    `fast` lets Hopper's units sum in fewer bits. A CPU rounds alike and sums in float32.
    """
    row_scales = torch.amax(torch.abs(rows), 1, True).float().clamp_min(1e-30) / torch.finfo(kind).max
    rounded = (rows / row_scales).to(kind).contiguous()
    return torch._scaled_mm(rounded, codes, row_scales, scales, out_dtype=rows.dtype, use_fast_accum=fast)


class Fp8Product(torch.autograd.Function):
    """x (M, I) times a ternary matrix (O, I) with one scale a row, decoded -> (M, O) of the type of x."""

    @staticmethod
    def forward(ctx, x, weight):
        """x in e4m3 floats, one scale a row, times codes in e4m3 -> (M, O), the columns scaled."""
        # Signs and largest magnitudes give codes and scales back exactly; a quotient need not, as GPUs divide.
        codes, scales = torch.sign(weight).to(torch.float8_e4m3fn), torch.amax(torch.abs(weight), 1)
        ctx.save_for_backward(x, codes, scales)
        return rounded_product(x, codes.t(), scales.float()[None], torch.float8_e4m3fn, True)

    @staticmethod
    def backward(ctx, gradient):
        """Gradients of x, in e5m2 floats as gradients range wider, and of the weight, in the type they come in."""
        x, codes, scales = ctx.saved_tensors
        ones = torch.ones((1, codes.shape[1]), device=x.device)
        # The units read both factors along the summed axis, so the codes are laid out anew for it.
        return rounded_product(gradient * scales, codes.t().contiguous().t(), ones, torch.float8_e5m2, False), gradient.t() @ x
