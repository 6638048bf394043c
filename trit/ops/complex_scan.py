"""The recurrence h_t = a_t h_(t-1) + b_t and its adjoint for complex numbers as pairs of real arrays: the body of `complex_scan` in both
vocabularies. Chunks advance side by side as in `chunked_scan`; only products of decays occur, so a decay may be 0. Arrays are
(B, T, 2 C), the real parts before the imaginary ones."""

from trit.ops.chunked_scan import CHUNK


def complex_chunks(stack, pad, a, b, reverse):
    """(real, imaginary) states (B, T, C) from h = 0 of decays `a` and inputs `b`, pairs of (B, T, C); with `reverse` time runs backwards.
    `stack` and `pad` are the array library's, as in `chunked_scan`."""
    batch, length, width = b[0].shape
    steps = min(CHUNK, length)
    chunks = -(-length // steps)
    missing = chunks * steps - length

    def cut(x):
        return (pad(x, 0, missing) if missing else x).reshape(batch, chunks, steps, width)

    (ax, ay), (bx, by) = map(cut, a), map(cut, b)
    order = list(range(steps))[:: -1 if reverse else 1]
    first = order[0]
    state, decay = (bx[:, :, first], by[:, :, first]), (ax[:, :, first], ay[:, :, first])
    states, decays = [state], [decay]
    for step in order[1:]:
        x, y = ax[:, :, step], ay[:, :, step]
        state = x * state[0] - y * state[1] + bx[:, :, step], x * state[1] + y * state[0] + by[:, :, step]
        states.append(state)
        if chunks > 1:
            decay = x * decay[0] - y * decay[1], x * decay[1] + y * decay[0]
            decays.append(decay)
    real, imaginary = (stack(parts[:: -1 if reverse else 1], 2) for parts in zip(*states))
    if chunks > 1:
        ends = complex_chunks(stack, pad, decay, state, reverse)
        u, v = ((pad(end[:, 1:], 0, 1) if reverse else pad(end[:, :-1], 1, 0))[:, :, None] for end in ends)
        x, y = (stack(parts[:: -1 if reverse else 1], 2) for parts in zip(*decays))
        real, imaginary = real + x * u - y * v, imaginary + x * v + y * u
    return tuple(part.reshape(batch, chunks * steps, width)[:, :length] for part in (real, imaginary))


def parts_of(x):
    """Real and imaginary part (B, T, C) of x (B, T, 2 C)."""
    width = x.shape[-1] // 2
    return x[..., :width], x[..., width:]


def complex_scan_states(stack, concat, pad, decays, inputs):
    """States (B, T, 2 C) of decays and inputs (B, T, 2 C)."""
    return concat(complex_chunks(stack, pad, parts_of(decays), parts_of(inputs), False), -1)


def complex_scan_gradients(stack, concat, pad, decays, states, gradient):
    """Gradients (of the decays, of the inputs) from that of the states, all (B, T, 2 C). What arrives at b_t is g_t plus the conjugate of
    a_(t+1) times what arrives at b_(t+1); what arrives at a_t is that times the conjugate of h_(t-1)."""
    real, imaginary = (pad(x[:, 1:], 0, 1) for x in parts_of(decays))
    x, y = complex_chunks(stack, pad, (real, -imaginary), parts_of(gradient), True)
    p, q = (pad(state[:, :-1], 1, 0) for state in parts_of(states))
    return concat([x * p + y * q, y * p - x * q], -1), concat([x, y], -1)
