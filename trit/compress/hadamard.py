"""Hadamard rotation of groups of weights, by additions in a fixed order: the same bits on every machine."""


def hadamard_rotate(ops, x):
    """x (groups, size) times the orthonormal Sylvester-Hadamard matrix in blocks of the largest power of two in `size`; its own inverse."""
    groups, size = x.shape
    block, width = size & -size, 1
    while width < block:
        x = ops.reshape(x, (-1, 2, width))
        x = ops.concat([x[:, :1] + x[:, 1:], x[:, :1] - x[:, 1:]], 1)
        width *= 2
    return ops.reshape(x, (groups, size)) * block**-0.5
