"""The recurrence h_t = a_t h_(t-1) + b_t and its adjoint, in plain array operators: the body of `linear_scan` in both vocabularies.

Chunks of the time axis advance side by side, one step of all of them after another; then the last states of the chunks, a CHUNK-th of
the length, obey the same recurrence, and its solution enters every chunk. Nothing is divided and no logarithm is taken, so a decay may
be 0; the work is 3 operations an element and a little, whatever the length. Shapes: B batch, T time, C channels.
"""

CHUNK = 8


def chunked_scan(stack, pad, a, b, reverse):
    """States (B, T, C) from h = 0 of decays `a` and inputs `b` (B, T, C); with `reverse` time runs from the end to the beginning.

    `stack(parts, axis)` and `pad(x, before, after)`, zeros around the time axis, are the array library's.
    """
    batch, length, width = b.shape
    steps = min(CHUNK, length)
    chunks = -(-length // steps)
    missing = chunks * steps - length
    if missing:
        a, b = pad(a, 0, missing), pad(b, 0, missing)
    a, b = a.reshape(batch, chunks, steps, width), b.reshape(batch, chunks, steps, width)
    order = list(range(steps))[:: -1 if reverse else 1]
    state, decay = b[:, :, order[0]], a[:, :, order[0]]
    states, decays = [state], [decay]
    for step in order[1:]:
        state = a[:, :, step] * state + b[:, :, step]
        states.append(state)
        if chunks > 1:
            decay = a[:, :, step] * decay
            decays.append(decay)
    result = stack(states[:: -1 if reverse else 1], 2)
    if chunks > 1:
        ends = chunked_scan(stack, pad, decay, state, reverse)
        before = pad(ends[:, 1:], 0, 1) if reverse else pad(ends[:, :-1], 1, 0)
        result = result + stack(decays[:: -1 if reverse else 1], 2) * before[:, :, None]
    return result.reshape(batch, chunks * steps, width)[:, :length]


def scan_gradients(stack, pad, a, states, gradient):
    """Gradients (of `a`, of `b`) from that of the states. Each state feeds the next through its decay, so what arrives at b_t is a scan
    from the end: g_t + a_(t+1) times what arrives at b_(t+1)."""
    of_b = chunked_scan(stack, pad, pad(a[:, 1:], 0, 1), gradient, True)
    return of_b * pad(states[:, :-1], 1, 0), of_b
