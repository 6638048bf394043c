"""The Walsh-Hadamard matrix as a product over channels, which costs less than its additions where matrices are multiplied fast."""


def hadamard_matrix(ops, size, like):
    """Orthonormal Sylvester matrix (size, size) of the type of `like`, symmetric and its own inverse; `size` is a power of two."""
    matrix = ops.zeros((1, 1), like) + size**-0.5
    while matrix.shape[0] < size:
        matrix = ops.concat([ops.concat([matrix, matrix], 1), ops.concat([matrix, -matrix], 1)], 0)
    return matrix
