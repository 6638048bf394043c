"""Linear recurrences over time: h_t = a_t h_(t-1) + b_t for every channel, from a state that may be learned.

The op `linear_scan` starts from zero; its states and gradients come in chunks (trit/ops/chunked_scan.py), never token by token.
Shapes: B batch, T time, C channels.
"""


def decay_scan(ops, decays, inputs, initial=None):
    """States (B, T, C) of float32 decays and inputs (B, T, C). `initial` (C,) or (B, C) is the state before the first token, zero if None.

    The state is float32 whatever the model computes in: 16-bit floats do not hold a sum over hundreds of tokens.
    """
    decays, inputs = ops.cast(decays, "float32"), ops.cast(inputs, "float32")
    if initial is not None:
        first = decays[:, :1] * ops.reshape(ops.cast(initial, "float32"), (-1, 1, inputs.shape[2]))
        inputs = ops.concat([inputs[:, :1] + first, inputs[:, 1:]], 1)
    return ops.linear_scan(decays, inputs)
