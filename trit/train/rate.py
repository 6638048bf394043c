"""What the bytes of three-valued codes add to the training objective, so that training can trade weights for bytes (skc.md D4)."""

import math

from trit.compress.quantize import group_mean, to_groups


def kept_share(ops, cfg, specs, p):
    """Share of codes that are not zero, over all tensors whose codes are -1, 0, 1, with a soft edge: differentiable in `p`.

    A weight feels it only near the edge of its group's dead zone, which itself is held fixed; at a share of zeros of a half a code
    takes 1.5 bits, at 0.6 1.37.
    """
    total, count = 0.0, 0
    for spec in specs:
        if spec.bits == 2:
            size = ops.abs(to_groups(ops, spec, p[spec.name]))
            still = ops.stop_gradient(size)
            if spec.scheme == "ternary":
                edge = group_mean(ops, spec, still) * cfg.quant.ternary_threshold
            else:
                edge = ops.sqrt(group_mean(ops, spec, still * still)) * (0.5 * spec.clip)
            total = total + ops.sum(ops.sigmoid(4.0 * (size / ops.maximum(edge, 1e-8) - 1.0)))
            count += math.prod(spec.shape)
    return total / max(count, 1)
