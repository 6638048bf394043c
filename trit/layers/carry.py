"""What a part of a model keeps of a text from one training window to the next: its state, and the last inputs of a convolution.

A window that goes on with a text then equals the rest of one long window, as far as these reach (skc.md C3): the states of Koopman and SKC
mixers, of SKC's spectral path and of the capsule bank. Attention, the engram and the feedback keep nothing: they begin anew in every window.
Under "carry" `p` holds a list of arrays (B, K, S) float32, one for each visit of such a part, in order: row 0 the state, the others the
inputs of the K - 1 tokens before the window, if it has a convolution. Every part takes its own from the front and puts what it leaves at
the end. Rows of the batch are texts of their own: nothing here mixes them. Shapes: B batch, T time, K taps, S state channels.
"""

from trit.layers.conv import causal_conv, conv_reach


def entering(ops, p, shape, like):
    """What was carried into a window, float32 of a shape (B, K, S). Zeros where nothing is carried, as in every evaluation."""
    return p["carry"].pop(0) if "carry" in p else ops.cast(ops.zeros(shape, like), "float32")


def leave(ops, p, states, inputs):
    """Hand on the last of the states (B, T, S) and the K - 1 inputs (B, K - 1, S), or None, to the next window."""
    if "carry" in p:
        last = states[:, states.shape[1] - 1 :]
        p["carry"].append(last if inputs is None else ops.concat([last, ops.cast(inputs, "float32")], 1))


def carried_reach(ops, tokens, taps):
    """`conv_reach` of the K - 1 places before a window of tokens (B, T) and of the window: (B, K - 1 + T, 1). Where no document begins,
    the one before the window goes on; what does not belong to it was not carried."""
    return conv_reach(ops, ops.pad(tokens, ((0, 0), (taps - 1, 0))))


def carried_conv(ops, cfg, x, weights, before, reach):
    """`causal_conv` of x (B, T, S) that goes on from the inputs in `before` (B, K, S) -> ((B, T, S), the inputs to carry on (B, K - 1, S)).
    `reach` is that of `carried_reach` or None."""
    past = weights.shape[0] - 1
    x = ops.concat([ops.cast(before[:, 1:], cfg.train.compute_dtype), x], 1)
    inputs = x[:, x.shape[1] - past :]
    if reach is not None:
        # The next window begins `lags` behind these: what the document that ends this one does not hold, it must not see.
        lags = ops.reshape(past - 1 - ops.arange(past, x), (1, past, 1))
        inputs = ops.where(reach[:, reach.shape[1] - 1 :] >= lags, inputs, ops.zeros((), inputs))
    return causal_conv(ops, x, weights, reach)[:, past:], inputs
