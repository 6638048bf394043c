"""Noise that is a function of a place and a key alone, the same on every array library and device."""

from trit.layers.engram import mix_bits


def even_noise(ops, shape, key, like):
    """Even noise of variance one, float32 (R, C): hashed from the place and `key`, an int64 array (1,). The 24 bits behind a number are
    the same on every array library and device."""
    rows = mix_bits(key + ops.cast(ops.arange(shape[0], like), "int64") + 1)
    columns = ops.cast(ops.arange(shape[1], like), "int64") * 65599
    bits = mix_bits(mix_bits(rows[:, None] + columns[None, :])) & 0xFFFFFF
    return (ops.cast(bits, "float32") - 8388607.5) * (3.0**0.5 / 8388608.0)
