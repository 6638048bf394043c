"""FlashAttention 3 or 2 in place of scaled_dot_product_attention, where it is installed, made for the GPU, and right on a trial.

Version 3 is for Hopper and 2 for the generation before it; on others, and on Hopper without version 3, torch chooses as well or better
(cuDNN's kernel on Hopper). Both packages take (B, T, H, D) with any strides but the last one's, so that views do, and register their
kernels as custom operators, which a compiled step holds whole.
"""

import torch

CHOSEN = None  # what `flash_kernel` chose for this process


def gpu_generation(x):
    """Major number of the compute capability of the GPU that holds `x`: 8 is Ampere and Ada, 9 Hopper. 0 without one."""
    return torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 0


def installed_kernel(generation):
    """(name, function of q, k, v (B, T, H, D)) of the package for a generation of GPUs. Raises where there is none, or it is not installed."""
    if generation == 9:
        from flash_attn_interface import flash_attn_func

        return "FlashAttention 3", flash_attn_func
    if generation == 8:
        from flash_attn import flash_attn_func

        return "FlashAttention 2", flash_attn_func
    raise ValueError(f"no FlashAttention for GPUs of generation {generation}" if generation else "no CUDA device")


def try_kernel(kernel, plain, q, k):
    """Raise where `kernel` cannot run, as it is or compiled whole, or where its output or gradients are not those of `plain`, on random
    heads like q and k."""
    found = []
    with torch.enable_grad():
        shapes = [(2, x.shape[1], 128, x.shape[3]) for x in (q, k, k)]
        heads = [torch.randn(shape, dtype=q.dtype, device=q.device, requires_grad=True) for shape in shapes]
        for function in (plain, kernel, torch.compile(kernel, fullgraph=True, backend="aot_eager")):
            out = function(*heads)
            found.append((out, *torch.autograd.grad(out.float().square().sum(), heads)))
    for wanted, *others in zip(*found):
        if not all((other - wanted).abs().max() < 0.05 * wanted.abs().max() for other in others):
            raise ValueError("its numbers are wrong")


def flash_kernel(q, k, plain):
    """The function to call in place of `plain`, the attention that always works, for q (B, H, T, D) and k (B, K, T, D) in 16 bits.

    The first call chooses for the process and prints, so it must not be inside a compiled function.
    """
    global CHOSEN
    if CHOSEN is None:
        CHOSEN = plain
        try:
            name, function = installed_kernel(gpu_generation(q))

            def kernel(q, k, v):
                return function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True).transpose(1, 2)

            try_kernel(kernel, plain, q, k)
            CHOSEN = kernel
            print("attention:", name)
        except Exception as fault:
            print("attention: scaled_dot_product_attention,", type(fault).__name__, str(fault).strip().partition("\n")[0])
    return CHOSEN
